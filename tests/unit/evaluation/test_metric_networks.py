"""The small networks of the demo pack: trained for a few steps, and read by the evaluation."""

import json

import numpy as np
import pytest
import torch

from scripts.demo import train_metric_networks as program
from tests.unit.evaluation.talkers import write_drawn
from vexpress.errors import InputError
from vexpress.evaluation.features import ClipFeatures, FrameFeatures
from vexpress.syncnet import load_syncnet

FLAGS = ("--num_people", "4", "--num_clips", "4", "--fid_steps", "2", "--fvd_steps", "2", "--sync_steps", "2")


def test_what_is_written_can_be_measured_with(tmp_path, capsys):
    data_dir = write_drawn(tmp_path / "data", 5).parent
    flags = ["--data_dir", str(data_dir), "--output_dir", str(tmp_path / "networks"), *FLAGS]
    program.main(flags)
    frames = np.random.default_rng(0).integers(0, 255, (33, 100, 120, 3)).astype(np.uint8)
    folder = tmp_path / "networks"
    pictures, clips = FrameFeatures(folder / "fid.safetensors"), ClipFeatures(folder / "fvd.safetensors")
    assert pictures(frames).shape == (33, 64) and clips(frames).shape == (2, 64)
    assert "96 px" in pictures.facts.resize and "48 px" in clips.facts.resize
    assert load_syncnet(tmp_path / "networks" / "syncnet.safetensors")[0].config == program.SYNC_SIZES
    report = json.loads((tmp_path / "networks" / "report.json").read_text())
    assert report.keys() == {"fid", "fvd", "syncnet"} and report["fid"]["halves"] > 0
    assert not (tmp_path / "networks" / "states").exists()

    written = {path: path.read_bytes() for path in (tmp_path / "networks").iterdir()}
    program.main(flags)  # all is done
    assert written == {path: path.read_bytes() for path in (tmp_path / "networks").iterdir()}


def test_going_on_gives_what_an_uninterrupted_run_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "SAVE_SECONDS", 0)

    def build() -> torch.nn.Linear:
        torch.manual_seed(0)
        return torch.nn.Linear(3, 1)

    def train(folder: str, network: torch.nn.Linear, num_steps_done: int = 6) -> torch.nn.Linear:
        calls = []

        def compute_loss(rng: np.random.Generator) -> torch.Tensor:
            calls.append(1)
            if len(calls) > num_steps_done:
                raise KeyboardInterrupt
            return network(torch.from_numpy(rng.normal(size=(8, 3))).float()).square().mean()

        (tmp_path / folder).mkdir(exist_ok=True)
        return program.train_metric_network("fid", network, 6, tmp_path / folder, compute_loss)

    whole = train("whole", build())
    with pytest.raises(KeyboardInterrupt):
        train("cut", build(), num_steps_done=3)
    again = train("cut", build(), num_steps_done=3)
    assert torch.equal(again.weight, whole.weight) and not torch.equal(again.weight, build().weight)


def test_data_without_labels_is_an_error(tmp_path):
    meta_path = write_drawn(tmp_path / "data", 4)
    rows = json.loads(meta_path.read_text())
    del rows[0]["labels"]
    meta_path.write_text(json.dumps(rows))
    with pytest.raises(InputError, match="with labels"):
        program.load_drawn_clips(meta_path, 4)
