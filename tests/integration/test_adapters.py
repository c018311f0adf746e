"""Adapters in a pipeline of tiny networks: what they do, that they leave no trace, and what is refused."""

import json

import pytest
import safetensors
import safetensors.torch
import torch

from tests import tiny
from vexpress.errors import InputError
from vexpress.models import lora
from vexpress.pipeline.adapters import split_weight
from vexpress.weights import Adapter, attach_adapter, base_digest, load_adapter, save_adapter

NETWORKS = ("reference_net", "denoising_unet", "v_kps_guider", "audio_projection")
LAYERS = {
    "denoising_unet": ["conv_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"],
    "reference_net": ["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"],
}


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture(autouse=True)
def without(pipe):
    yield
    pipe.unload_lora_weights()


@pytest.fixture(scope="module")
def digest(pipe):
    return base_digest({name: getattr(pipe, name) for name in NETWORKS})


@pytest.fixture(scope="module")
def path(pipe, digest, tmp_path_factory):
    return write(tmp_path_factory.mktemp("adapters") / "anna.safetensors", pipe, digest)


def random_weights(pipe, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, layers in LAYERS.items():
        there = lora.adaptable_layers(getattr(pipe, name))
        weights[name] = {
            f"{layer}.{part}.weight": 0.3 * torch.randn(shape, generator=generator)
            for layer in layers
            for part, shape in lora.adapter_shapes(there[layer], 2).items()
        }
    return weights


def write(path, pipe, digest, weights=None, rank=2):
    save_adapter(path, Adapter(rank, {"denoising_unet": [".*"]}, digest, weights or random_weights(pipe)))
    return path


def test_the_same_weights_make_the_same_file(pipe, path, digest, tmp_path):
    for i in range(8):  # the library's order is by chance
        assert write(tmp_path / f"{i}.safetensors", pipe, digest).read_bytes() == path.read_bytes()


def latents(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    kps = torch.tensor([[20.0, 30], [44, 30], [32, 44]]).expand(2, 3, 2)
    return pipe(
        torch.full((64, 64, 3), 128, dtype=torch.uint8).numpy(),
        torch.randn(1600, generator=generator),
        kps,
        num_inference_steps=1,
        output_type="latent",
    ).frames


def test_off_fused_and_unloaded(pipe, path):
    base, names = latents(pipe), list(pipe.denoising_unet.state_dict())
    name = pipe.load_lora_weights(path)
    loaded = latents(pipe)
    assert not torch.allclose(loaded, base)
    pipe.disable_lora()
    assert torch.equal(latents(pipe), base)
    pipe.enable_lora()
    assert torch.equal(latents(pipe), loaded)
    pipe.fuse_lora()
    assert torch.allclose(latents(pipe), loaded, atol=1e-4)
    for what in (
        pipe.fuse_lora,
        pipe.disable_lora,
        lambda: pipe.set_adapters(name),
        lambda: pipe.load_lora_weights(path),
    ):
        with pytest.raises(InputError, match="adapters are fused"):
            what()
    pipe.unfuse_lora()
    assert torch.equal(latents(pipe), loaded)
    pipe.fuse_lora(0.5)
    pipe.unload_lora_weights()  # fused as it is
    assert torch.equal(latents(pipe), base)
    assert list(pipe.denoising_unet.state_dict()) == names


def test_weights_scale_and_add_up(pipe, path, digest, tmp_path):
    """Where the layers' weights go, which is exact to check."""
    layer = lora.adaptable_layers(pipe.denoising_unet)["conv_in"]
    before = layer.weight.detach().clone()
    other = write(tmp_path / "ben.safetensors", pipe, digest, random_weights(pipe, 1))

    def delta(file) -> torch.Tensor:
        weights = load_adapter(file).weights["denoising_unet"]
        narrow, wide = (weights[f"conv_in.lora_{part}.weight"].float() for part in "AB")
        return torch.einsum("or,rihw->oihw", wide[..., 0, 0], narrow)

    pipe.use_adapters([str(path), f"{other}:-0.5"])
    assert torch.allclose(layer.weight, before + delta(path) - 0.5 * delta(other), atol=1e-5)
    assert not lora.adapter_layers(pipe.denoising_unet)  # plain layers are left
    with pytest.raises(InputError, match="adapters are fused"):
        pipe.load_lora_weights(path)
    pipe.unload_lora_weights()
    assert torch.equal(layer.weight, before)
    for file in (path, other):
        pipe.load_lora_weights(file)
    pipe.set_adapters("adapter_1", 2.0)
    pipe.fuse_lora(0.25)
    assert torch.allclose(layer.weight, before + 0.5 * delta(other), atol=1e-5)
    pipe.unload_lora_weights()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", ("a", 1)), ("a:0.5", ("a", 0.5)), ("C:\\a", ("C:\\a", 1)), ("C:\\a:2", ("C:\\a", 2)), ("a:-1e0", ("a", -1))],
)
def test_a_weight_stands_after_the_path(text, expected):
    assert split_weight(text) == expected


def test_the_digest_is_of_the_base_in_fp32_and_fp16_alike(pipe, digest, path):
    networks = {name: getattr(tiny, name)() for name in NETWORKS}
    assert base_digest(networks) == digest
    assert base_digest({name: network.half() for name, network in networks.items()}) == digest
    pipe.load_lora_weights(path)
    assert base_digest({name: getattr(pipe, name) for name in NETWORKS}) == digest
    networks["v_kps_guider"].conv_in.bias.data[0] += 1
    assert base_digest(networks) != digest


def test_another_base_model_is_refused_unless_asked_for(pipe, path, tmp_path):
    foreign = write(tmp_path / "foreign.safetensors", pipe, "0" * 64)
    with pytest.raises(InputError, match="another base model: its digest is 000000000000"):
        pipe.load_lora_weights(foreign)
    assert not lora.adapter_layers(pipe.denoising_unet)
    pipe.use_adapters([str(foreign)], check_base=False)
    pipe.unload_lora_weights()
    with pytest.raises(InputError, match="are not saved with a pipeline"):
        pipe.load_lora_weights(path)
        pipe.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bf16_shows_too_little_to_tell_models_apart(path, tmp_path):
    other = tiny.pipeline().to(torch.bfloat16)
    with pytest.raises(InputError, match="load them in fp16 or fp32"):
        other.load_lora_weights(path)
    other = type(other).from_pretrained(tiny.write_model_dir(tmp_path), dtype=torch.bfloat16)
    other.load_lora_weights(path)  # by its files
    assert lora.adapter_weights(other.reference_net.state_dict(), "adapter_0")


def changed(weights, network: str, old: str, new: str | None, cut: bool = False):
    part = dict(weights[network])
    tensor = part.pop(old)
    if new:
        part[new] = tensor[..., :1] if cut else tensor
    return {**weights, network: part}


CONV_A = "conv_in.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {"unet": w["denoising_unet"]}, "is for unet; there are reference_net"),
        (lambda w: changed(w, "denoising_unet", CONV_A, "conv_up.lora_A.weight"), "denoising_unet has no conv_up"),
        (lambda w: changed(w, "denoising_unet", CONV_A, None), "conv_in.lora_A is missing"),
        (lambda w: changed(w, "denoising_unet", CONV_A, CONV_A, cut=True), r"has shape \(2, 4, 3, 1\), needed"),
        (lambda w: changed(w, "denoising_unet", CONV_A, "conv_in.weight"), "conv_in.weight is no weight of an adapter"),
    ],
)
def test_what_does_not_fit_changes_nothing(pipe, digest, tmp_path, change, message):
    path = write(tmp_path / "odd.safetensors", pipe, digest, change(random_weights(pipe)))
    with pytest.raises(InputError, match=message):
        pipe.load_lora_weights(path)
    assert not lora.adapter_layers(pipe.denoising_unet)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"format": "other"}, "is no adapter of this project"),
        ({"version": "2"}, "has version 2 of the format, this program reads 1"),
        ({"rank": "many"}, "metadata are not whole"),
        ({"rank": "0"}, "not as they were written"),
        ({"targets": "{"}, "metadata are not whole"),
    ],
)
def test_damaged_files_are_refused(path, tmp_path, facts, message):
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    odd = tmp_path / "odd.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(path), odd, {**metadata, **facts})
    with pytest.raises(InputError, match=message) as caught:
        load_adapter(odd)
    assert caught.value.field == "lora"
    assert json.loads(metadata["targets"]) == {"denoising_unet": [".*"]}


def test_no_file_no_safetensors_and_not_finite(pipe, digest, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_adapter(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="no safetensors file"):
        load_adapter(tmp_path / "text")
    weights = random_weights(pipe)
    weights["denoising_unet"][CONV_A][0, 0] = float("nan")
    with pytest.raises(InputError, match="is not finite"):
        load_adapter(write(tmp_path / "nan.safetensors", pipe, digest, weights))


def test_attached_twice_has_two_names(pipe, path):
    networks = {name: getattr(pipe, name) for name in NETWORKS}
    attach_adapter(networks, load_adapter(path), path, "one")
    attach_adapter(networks, load_adapter(path), path, "two")
    assert list(lora.adapter_layers(pipe.denoising_unet)["conv_in"].lora_A) == ["one", "two"]


def test_what_could_not_be_loaded_leaves_nothing_behind(pipe, digest, path, tmp_path):
    plain = latents(pipe)
    with pytest.raises(InputError, match="lora"):
        pipe.use_adapters([str(path), str(tmp_path / "missing.safetensors")])
    assert torch.equal(latents(pipe), plain)
    pipe.load_lora_weights(path, adapter_name="kept")
    one = latents(pipe)
    with pytest.raises(InputError, match="lora"):
        pipe.use_adapters([str(path), str(tmp_path / "missing.safetensors")])
    assert torch.equal(latents(pipe), one)


def test_disabled_adapters_stay_so_when_another_is_loaded(pipe, path):
    plain = latents(pipe)
    pipe.load_lora_weights(path)
    pipe.disable_lora()
    pipe.load_lora_weights(path)
    assert torch.equal(latents(pipe), plain)
    pipe.enable_lora()
    assert not torch.equal(latents(pipe), plain)


def test_a_name_is_made_that_nobody_has_given(pipe, path):
    pipe.load_lora_weights(path, adapter_name="adapter_1")
    assert [pipe.load_lora_weights(path), pipe.load_lora_weights(path)] == ["adapter_0", "adapter_2"]


def test_a_service_makes_all_videos_with_its_adapters(pipe, path, tmp_path):
    from vexpress.server.engine import Engine
    from vexpress.server.turns import Watch

    engine = Engine(tiny.write_model_dir(tmp_path), "cpu", dtype="fp32", lora=[f"{path}:0.5"])
    engine.load()
    pipe.load_lora_weights(path, weight=0.5)
    pipe.fuse_lora()
    made = engine.pipeline("ddim", Watch()).denoising_unet.conv_in.weight
    assert torch.equal(made, lora.adaptable_layers(pipe.denoising_unet)["conv_in"].weight)
