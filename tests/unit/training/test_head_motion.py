"""Training of the head-motion network on a small data set whose heads move with what is said."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter1d

from vexpress.audio_encoders import EncoderRecord
from vexpress.cli.main import PROGRAMS
from vexpress.cli.program import run_program
from vexpress.cli.train_motion import main
from vexpress.data.formats import (
    ClipRecord,
    FaceInfo,
    load_audio_embeds,
    save_audio_embeds,
    save_face_info,
    save_metadata,
)
from vexpress.errors import InputError
from vexpress.media.retargeting import apply_motion, measure_pose, place_points
from vexpress.models.head_motion import motion_from_speech
from vexpress.training.head_motion import HeadMotionConfig, HeadMotionTrainer, learning_rate_factor
from vexpress.weights.head_motion import load_head_motion

FACE = torch.tensor([[200.0, 200.0], [312.0, 206.0], [262.0, 275.0]])
FPS = 25
SMALL = {"width": 16, "num_audio_blocks": 1, "num_blocks": 2, "batch_size": 16, "validation_steps": 0, "dropout": 0.0}


def write_clip(folder, index: int, seconds: float) -> ClipRecord:
    """A head that shifts sideways as the first feature of the speech says, and rolls as it likes."""
    rng = np.random.default_rng(index)
    time = (np.arange(round(seconds * FPS)) + 0.5) / FPS
    states_time = (np.arange(round(seconds * 50)) + 0.5) / 50

    def walk() -> np.ndarray:
        return gaussian_filter1d(rng.normal(size=len(states_time)), 12) * 6.5  # deviation about 1

    said = walk()
    motion = np.zeros((len(time), 6))
    motion[:, 0] = 0.2 * np.interp(time, states_time, said)
    motion[:, 3] = 0.1 * np.interp(time, states_time, walk())
    kps = place_points(apply_motion(measure_pose(FACE), torch.from_numpy(motion))).numpy()
    kps = np.concatenate([kps, kps[:, :2] + [0, 100]], axis=1).astype(np.float32)
    n = len(time)
    info = FaceInfo(
        np.tile(np.float32([150, 150, 350, 350]), (n, 1)), kps, np.zeros((n, 106, 2), np.float32), np.ones(n)
    )
    states = rng.normal(0, 0.1, (len(states_time), 4)) + [0, 0, 2, -2]
    states[:, 0] += said
    states[:, 1] -= said
    record = ClipRecord(
        folder / f"{index}.mp4", folder / f"{index}.npz", folder / f"{index}.safetensors", fps=float(FPS)
    )
    save_face_info(record.face_info, info)
    save_audio_embeds(record.audio_embeds, torch.from_numpy(states))
    return record


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_metadata(folder / "train.json", [write_clip(folder, i, 8) for i in range(12)])
    save_metadata(folder / "heldout.json", [write_clip(folder, 100 + i, 8) for i in range(4)])
    return folder


def configuration(data, output_dir, **changes) -> HeadMotionConfig:
    values = {"meta_paths": [str(data / "train.json")], "output_dir": str(output_dir), "max_train_steps": 4}
    return HeadMotionConfig(**{**values, **SMALL, **changes})


def test_it_learns_what_speech_tells_and_is_random_in_the_rest(data, tmp_path):
    changes = {"max_train_steps": 250, "validation_steps": 125, "learning_rate": 4e-3, "batch_size": 32}
    validation = {"validation_meta_paths": [str(data / "heldout.json")]}
    trainer = HeadMotionTrainer(configuration(data, tmp_path / "run", **changes, **validation))
    path = trainer.train()
    network = load_head_motion(path)
    told, free = [], []
    for clip in trainer.validation_clips:
        made = [motion_from_speech(network, clip.hidden_states.float(), len(clip.motion), FPS, s) for s in (0, 1)]
        told.append(np.corrcoef(made[0][:, 0], clip.motion[:, 0])[0, 1])
        free.append((made[0][:, 3] - made[1][:, 3]).std().item())
    assert np.mean(told) > 0.8
    assert min(free) > 0.02
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [entry["validation_loss"] for entry in log if "validation_loss" in entry]
    assert len(losses) == 2 and min(losses) < 1.5
    plots = sorted(path.name for path in (tmp_path / "run" / "validation").iterdir())
    assert plots == ["step_00000125.png", "step_00000250.png"]
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000


def test_resumed_is_as_uninterrupted(data, tmp_path):
    whole = configuration(data, tmp_path / "whole", max_train_steps=6, dropout=0.2)
    expected = load_file(HeadMotionTrainer(whole).train())
    # The second half knows nothing but the folder; the learning rate depends on the run's whole length.
    part = configuration(data, tmp_path / "part", max_train_steps=6, checkpointing_steps=3, dropout=0.2)
    trainer = HeadMotionTrainer(part)
    trainer._update, counted = _stop_after(trainer._update, 4), []
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    resumed = HeadMotionTrainer(part)
    counted.append(resumed.step)
    found = load_file(resumed.train())
    assert counted == [3]
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def _stop_after(update, num_calls: int):
    calls = []

    def stopping() -> float:
        calls.append(None)
        if len(calls) > num_calls:
            raise KeyboardInterrupt
        return update()

    return stopping


def test_the_model_folder_gets_the_network(data, tmp_path):
    model_dir = tmp_path / "model"
    path = HeadMotionTrainer(configuration(data, tmp_path / "run", model_dir=str(model_dir))).train()
    assert path == model_dir / "v-express" / "head_motion.safetensors"
    own, exported = load_head_motion(path), load_head_motion(tmp_path / "run/export/v-express/head_motion.safetensors")
    for one, other in zip(own.state_dict().values(), exported.state_dict().values()):
        assert torch.equal(one, other)
    assert own.deviations[0] > 0.05 and own.config.audio_width == 4


def test_clips_that_cannot_be_used_are_left_out_and_said(data, tmp_path, caplog):
    records = [write_clip(tmp_path, 7, 8), write_clip(tmp_path, 8, 1)]
    records.append(ClipRecord(tmp_path / "x.mp4", tmp_path / "no.npz", tmp_path / "no.safetensors", fps=25.0))
    save_metadata(tmp_path / "some.json", records)
    with caplog.at_level(logging.WARNING):
        trainer = HeadMotionTrainer(configuration(data, tmp_path / "run", meta_paths=[str(tmp_path / "some.json")]))
    assert len(trainer.clips) == 1
    assert "2 clips are left out" in caplog.text and "too short" in caplog.text
    save_metadata(tmp_path / "none.json", records[1:2])
    with pytest.raises(InputError, match="^meta_paths=.*no clip that is long enough"):
        HeadMotionTrainer(configuration(data, tmp_path / "none", meta_paths=[str(tmp_path / "none.json")]))
    with pytest.raises(InputError, match="^meta_paths=.*is empty"):
        HeadMotionTrainer(configuration(data, tmp_path / "none", meta_paths=[]))


def test_speech_of_two_encoders_does_not_mix(data, tmp_path):
    records = [write_clip(tmp_path, index, 8) for index in (7, 8)]
    states = load_audio_embeds(records[1].audio_embeds)
    save_audio_embeds(records[1].audio_embeds, states, EncoderRecord("hubert", "abc"))
    save_metadata(tmp_path / "mixed.json", records)
    with pytest.raises(InputError, match=r"^meta_paths=.* by hubert abc, last layer and by wav2vec2 \(weights unknown"):
        HeadMotionTrainer(configuration(data, tmp_path / "run", meta_paths=[str(tmp_path / "mixed.json")]))


def test_another_size_of_network_does_not_resume(data, tmp_path):
    HeadMotionTrainer(configuration(data, tmp_path / "run")).train()
    with pytest.raises(InputError, match=r"^output_dir=.*state\.pt does not fit this configuration"):
        HeadMotionTrainer(configuration(data, tmp_path / "run", width=24))


def test_the_program(data, tmp_path, capsys):
    assert "train-motion" in PROGRAMS
    config = tmp_path / "motion.yaml"
    config.write_text(f"meta_paths: [{data / 'train.json'}]\nwidth: 16\nnum_blocks: 1\nbatch_size: 4\n")
    arguments = ["--config", str(config), f"output_dir={tmp_path / 'run'}", "max_train_steps=2", "validation_steps=0"]
    assert run_program(lambda: main(arguments)) == 0
    assert "2 steps, network in" in capsys.readouterr().out
    assert (tmp_path / "run" / "export" / "v-express" / "head_motion.json").exists()
    for change, message in (
        ("overlap_points=24", "overlap_points=24: must be below `piece_points` 24"),
        ("widht=3", "unknown key widht; did you mean width?"),
        ("dropout=2", "must be 0 to 0.9"),
    ):
        assert run_program(lambda: main([*arguments, change])) == 2  # noqa: B023
        assert message.replace("`", "") in capsys.readouterr().err.replace("`", "").replace("--", "")


def test_learning_rate_rises_stays_and_falls():
    factors = [learning_rate_factor(step, 1000) for step in range(1000)]
    assert factors[0] == 0.01 and factors[99] == factors[600] == 1 and factors[-1] == pytest.approx(1 / 400)
