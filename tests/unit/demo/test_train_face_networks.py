"""The small face networks: they learn, and insightface loads what is exported. How well they see, their report says."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from scripts.demo import train_face_networks
from scripts.demo.face_networks import CAUTION, FINE_PX, LEVELS, NETWORKS, SHRINK, Detector, export_network
from vexpress.errors import InputError
from vexpress.media.faces import FaceAnalyzer


@pytest.fixture(scope="module")
def pool():
    return train_face_networks.random_pool(4)


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_falls(name, pool):
    torch.manual_seed(0)
    network = NETWORKS[name][0]()
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    losses = []
    for _ in range(15):  # the same batch each time
        loss = train_face_networks.LOSSES[name](network, np.random.default_rng(3), pool, 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.6 * losses[0]


def test_program_writes_networks_that_insightface_loads_and_goes_on(tmp_path, monkeypatch):
    for name in NETWORKS:
        monkeypatch.setitem(train_face_networks.BATCH_SIZES, name, 2)
    arguments = ["--output_dir", str(tmp_path), "--num_people", "2", "--num_heldout_people", "2"]
    arguments += [f"--{name}_steps=2" for name in NETWORKS]
    train_face_networks.main(arguments)
    report = json.loads((tmp_path / "report.json").read_text())
    assert all(case["shots"] == 2 for case in report["cases"].values())
    FaceAnalyzer(tmp_path, modules=("landmark_2d_106", "recognition"))  # refuses networks that do not fit
    states = {name: (tmp_path / "states" / f"{name}.pt").read_bytes() for name in NETWORKS}
    monkeypatch.setattr(train_face_networks, "random_pool", None)  # which is not needed any more
    train_face_networks.main(arguments)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert states == {name: (tmp_path / "states" / f"{name}.pt").read_bytes() for name in NETWORKS}


def test_resumed_training_equals_training_without_a_break(tmp_path, pool, monkeypatch):
    monkeypatch.setitem(train_face_networks.BATCH_SIZES, "landmarks", 2)
    for folder in (tmp_path / "whole", tmp_path / "broken"):
        for part in ("states", "models/buffalo_l"):
            (folder / part).mkdir(parents=True)
    train_face_networks.train_face_network("landmarks", 3, 1e-3, lambda: pool, tmp_path / "whole")
    monkeypatch.setattr(train_face_networks, "SAVE_SECONDS", 0)

    steps = iter([train_face_networks.compute_landmark_loss] * 2)
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setitem(train_face_networks.LOSSES, "landmarks", lambda *batch: next(steps)(*batch))
        train_face_networks.train_face_network("landmarks", 3, 1e-3, lambda: pool, tmp_path / "broken")
    train_face_networks.train_face_network("landmarks", 3, 1e-3, lambda: pool, tmp_path / "broken")
    whole, broken = (
        torch.load(tmp_path / folder / "states" / "landmarks.pt", weights_only=True) for folder in ("whole", "broken")
    )
    assert whole["step"] == broken["step"] == 3
    torch.testing.assert_close(broken["network"], whole["network"], rtol=0, atol=0)


def test_exported_detector_says_what_the_network_sees(tmp_path):
    torch.manual_seed(0)
    network = Detector().eval()
    images = torch.randn(1, 3, 96, 160)  # the size is dynamic
    session = onnxruntime.InferenceSession(str(export_network("detection", network, tmp_path)))
    outputs = session.run(None, {"input": images.numpy()})
    with torch.no_grad():
        levels = network.levels(torch.nn.functional.avg_pool2d(images, SHRINK))
    for index, ((stride, _), (logits, points)) in enumerate(zip(LEVELS, levels), start=1):
        scores, boxes, kps = (torch.from_numpy(outputs[index + kind]) for kind in (0, 3, 6))
        rows, columns = torch.meshgrid(*(torch.arange(size) for size in logits.shape[1:]), indexing="ij")
        cells = torch.stack([columns, rows], -1).flatten(0, 1).repeat_interleave(2, 0) * stride  # as SCRFD decodes
        wanted = points[0].flatten(1).T.repeat_interleave(2, 0) * FINE_PX
        seen = (logits - CAUTION).sigmoid().flatten().repeat_interleave(2)
        torch.testing.assert_close(scores[:, 0], seen, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(cells.repeat(1, 5) + kps * stride, wanted[:, :10], atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(cells - boxes[:, :2] * stride, wanted[:, 10:12], atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(cells + boxes[:, 2:] * stride, wanted[:, 12:], atol=1e-2, rtol=1e-3)
    assert not outputs[0].any()


def test_a_flag_out_of_range_is_refused(tmp_path):
    with pytest.raises(InputError, match="num_people=1: must be 2 or more"):
        train_face_networks.main(["--output_dir", str(tmp_path), "--num_people", "1"])
