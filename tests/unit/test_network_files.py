"""Networks from hostile files: programs are not run unasked, sizes are bounded, and what does not fit is one line."""

import json
import logging

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.unit.evaluation.talkers import loudness_syncnet, write_feature_networks
from vexpress.errors import InputError
from vexpress.evaluation.evaluate import find_networks, load_networks
from vexpress.evaluation.features import ClipFeatures, FrameFeatures
from vexpress.evaluation.metric_networks import ClipNetwork, FrameNetwork, load_metric_network, save_metric_network
from vexpress.files import hash_file
from vexpress.model_folder import EMBEDDED_MODEL_DIR
from vexpress.network_files import hash_prefix
from vexpress.syncnet import load_syncnet, save_syncnet

SMALL = {"frame_px": 8, "widths": (3, 4), "num_features": 5}


class Writer(torch.nn.Module):
    """TorchScript that writes a file as soon as it is loaded, and again when it is run."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(3), self.path)

    def forward(self, images: torch.Tensor, return_features: bool = True) -> torch.Tensor:
        torch.save(torch.zeros(3), self.path)
        return images.flatten(1).double()


@pytest.fixture
def foreign_dir(tmp_path):
    """A model folder of somebody else's, whose network writes tmp_path/victim."""
    folder = tmp_path / "model"
    (folder / "evaluation").mkdir(parents=True)
    torch.jit.save(torch.jit.script(Writer(str(tmp_path / "victim"))), str(folder / "evaluation" / "fid.pt"))
    (tmp_path / "victim").unlink(missing_ok=True)  # saving may have made it
    return folder


def test_a_program_in_a_model_folder_is_run_only_if_it_is_named_or_known(tmp_path, foreign_dir, caplog):
    victim, script = tmp_path / "victim", foreign_dir / "evaluation" / "fid.pt"
    found = find_networks(foreign_dir)
    assert found["fid_network"] == script
    networks = load_networks(found, "cpu")
    assert networks.frames is None
    assert str(script) in networks.missing["FID"]
    assert "give `fid_network`" in networks.missing["FID"]
    networks = load_networks(found, "cpu", trusted=["0" * 64])
    assert networks.frames is None
    assert not victim.exists()

    with caplog.at_level(logging.WARNING):
        networks = load_networks(find_networks(foreign_dir, fid_network=str(script)), "cpu", named=["fid_network"])
    assert networks.frames is not None
    assert "a program that can write any of your files" in caplog.text
    assert victim.exists()  # else this test shows nothing

    caplog.clear()
    networks = load_networks(found, "cpu", trusted=[hash_file(script)])
    assert networks.frames is not None
    assert caplog.text == ""


def test_the_pack_has_no_program():
    assert not list(EMBEDDED_MODEL_DIR.rglob("*.pt"))
    networks = load_networks(find_networks(EMBEDDED_MODEL_DIR), "cpu")
    assert not networks.missing
    assert {facts.kind for facts in networks.facts[:2]} == {"small, of drawn faces"}


@pytest.mark.parametrize(("network_class", "features"), [(FrameNetwork, FrameFeatures), (ClipNetwork, ClipFeatures)])
def test_a_small_network_is_saved_with_its_sizes(tmp_path, network_class, features):
    path, network = tmp_path / "net.safetensors", network_class(**SMALL).eval()
    save_metric_network(path, network, "for tests")
    loaded, kind = load_metric_network(path, network_class, "fid_network")
    assert (kind, loaded.sizes) == ("for tests", network.sizes)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    frames = np.random.default_rng(0).integers(0, 255, (32, 20, 30, 3)).astype(np.uint8)
    found = features(path)
    assert found(frames).shape == ((32, 5) if network_class is FrameNetwork else (2, 5))
    assert found.facts.sha256 == hash_prefix(path)
    assert "8 px" in found.facts.resize
    with pytest.raises(InputError, match="fvd_network=.*is no ClipNetwork|fid_network=.*is no FrameNetwork"):
        (ClipFeatures if network_class is FrameNetwork else FrameFeatures)(path)


def write_with_facts(path, **changes) -> None:
    """A FrameNetwork whose metadata says something else."""
    facts = {"network": "FrameNetwork", "sizes": json.dumps(SMALL), "kind": "odd"} | changes
    weights = {name: t.contiguous() for name, t in FrameNetwork(**SMALL).state_dict().items()}
    safetensors.torch.save_file(weights, path, metadata=facts)


@pytest.mark.parametrize(
    "sizes",
    [
        "",
        "[" * 100_000,
        "[]",
        "{}",
        json.dumps(SMALL | {"frame_px": 2**40}),
        json.dumps(SMALL | {"frame_px": 3}),
        json.dumps(SMALL | {"widths": [10**9, 10**9]}),
        json.dumps(SMALL | {"widths": [3] * 1000}),
        json.dumps(SMALL | {"widths": []}),
        json.dumps(SMALL | {"widths": 7}),
        json.dumps(SMALL | {"num_features": -1}),
        json.dumps(SMALL | {"num_features": 4.5}),
        json.dumps(SMALL | {"num_features": 6}),
        json.dumps(SMALL | {"widths": (4096, 4096)}),
    ],
    ids=lambda sizes: sizes[:30],
)
def test_sizes_that_do_not_fit_the_file_are_one_line(tmp_path, sizes):
    path = tmp_path / "net.safetensors"
    write_with_facts(path, sizes=sizes)
    with pytest.raises(InputError, match=f"^fid_network={path}: [^\n]*$"):
        FrameFeatures(path)


@pytest.mark.parametrize("num_bytes", [0, 5, 300, 2000])
def test_truncated_weights_are_one_line(tmp_path, num_bytes):
    write_with_facts(tmp_path / "whole.safetensors")
    path = tmp_path / "net.safetensors"
    path.write_bytes((tmp_path / "whole.safetensors").read_bytes()[:num_bytes])
    with pytest.raises(InputError, match="^fid_network=.*is no FrameNetwork, or damaged[^\n]*$"):
        FrameFeatures(path)
    fid, _ = write_feature_networks(tmp_path / "scripts")
    (tmp_path / "cut.pt").write_bytes(fid.read_bytes()[:num_bytes])
    with pytest.raises(InputError, match="^fid_network=.*no TorchScript network, or damaged[^\n]*$"):
        FrameFeatures(tmp_path / "cut.pt")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    network = FrameNetwork(**SMALL)
    with torch.no_grad():
        network.features.weight[0, 0] = float("nan")
    save_metric_network(tmp_path / "net.safetensors", network, "nan")
    with pytest.raises(InputError, match="features.weight is not finite"):
        FrameFeatures(tmp_path / "net.safetensors")


class Odd(torch.nn.Module):
    """Gives something else than features."""

    def __init__(self, kind: int):
        super().__init__()
        self.kind = kind

    def forward(self, images: torch.Tensor, return_features: bool = True) -> torch.Tensor:
        if self.kind == 0:
            return images.float().mean()
        if self.kind == 1:
            return images[:1].float().flatten(1)
        if self.kind == 2:
            raise RuntimeError("")
        return torch.zeros([0, 4])


@pytest.mark.parametrize("kind", range(4))
def test_odd_outputs_are_one_line(tmp_path, kind):
    torch.jit.save(torch.jit.script(Odd(kind)), str(tmp_path / "net.pt"))
    with pytest.raises(InputError, match="^fid_network: the network does not take [^\n]*$"):
        FrameFeatures(tmp_path / "net.pt")(np.zeros((3, 16, 16, 3), np.uint8))


@pytest.mark.parametrize(
    "facts", ["[" * 100_000, "[]", "{", json.dumps({"frame_px": 10**12}), json.dumps({"frame_px": True})]
)
def test_an_odd_extra_file_is_one_line(tmp_path, facts):
    script = torch.jit.script(Odd(0))
    torch.jit.save(script, str(tmp_path / "net.pt"), _extra_files={"evaluation.json": facts})
    with pytest.raises(InputError, match="^fvd_network=[^\n]*$"):
        ClipFeatures(tmp_path / "net.pt")


@pytest.mark.parametrize(
    "sizes",
    [
        "[" * 1_000_000,
        '{"a":' * 1_000_000,
        "[]",
        "7",
        json.dumps({"crop_px": 10**9}),
        json.dumps({"crop_px": "80"}),
        json.dumps({"visual_widths": [10**6] * 6}),
        json.dumps({"audio_widths": [1, 2]}),
        json.dumps({"hidden_width": 0}),
        json.dumps({"crop_px": 224}),
    ],
    ids=lambda sizes: sizes[:30],
)
def test_odd_sizes_of_a_syncnet_are_one_line(tmp_path, sizes):
    path = tmp_path / "net.safetensors"
    save_syncnet(path, loudness_syncnet())
    path.with_suffix(".json").write_text(sizes)
    with pytest.raises(InputError, match="^syncnet_path=[^\n]*$"):
        load_syncnet(path)
