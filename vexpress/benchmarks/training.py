"""Times a training step of stage 3 on random clips: plain, with what saves memory or time, and the release's.

What both do alike is left out: the frozen autoencoder, clipping of the gradient and the optimizer.
"""

import importlib.util
import statistics
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vexpress.benchmarks.measuring import Table, gpu_peak, reset_gpu_peak, synchronize, take_turns
from vexpress.benchmarks.random_networks import CONFIGS, build_network, pick_machine
from vexpress.benchmarks.settings import TrainingSettings
from vexpress.data.config import DataConfig
from vexpress.errors import InputError, first_line
from vexpress.training.config import TrainConfig
from vexpress.training.objectives import Batch, Denoising, Predict
from vexpress.training.randomness import RandomParts
from vexpress.training.stages import TrainingNetworks, set_trainable

DOWNSAMPLING = 8  # px per latent
PLAIN, RELEASED = "plain", "the release's networks"
MOTION = {
    "use_inflated_groupnorm": True,
    "use_motion_module": True,
    "motion_module_mid_block": True,
    "motion_module_type": "Vanilla",
    "unet_use_cross_frame_attention": False,
    "unet_use_temporal_attention": False,
    "motion_module_kwargs": {
        "num_transformer_block": 1,
        "attention_block_types": ("Temporal_Self", "Temporal_Self"),
        "temporal_position_encoding": True,
    },
}
"""Of the released denoising UNet. Source: its inference_v2.yaml."""


class Step(NamedTuple):
    """A way to make a step: the networks whose gradients it leaves, and their prediction."""

    networks: nn.Module
    predict: Predict


def measure(settings: TrainingSettings) -> Table:
    """Times the rows in turns; ratios are those of medians.

    Raises:
        InputError: the release's checkout holds no such networks, or they do not run with the installed libraries.
    """
    torch.manual_seed(0)
    device, dtype = pick_machine(settings)
    config = TrainConfig(
        train_stage="stage_3", data=DataConfig(num_frames=settings.num_frames, lip_loss_weight=100.0), uncond_ratio=0.0
    )
    objective = Denoising(config, device)
    networks = build_networks(settings.size, device)
    batch = random_batch(settings, device)
    parts = objective.random_parts([0], batch.latents.shape[1:], drop=False).to(device)
    parts = RandomParts(**{**vars(parts), "timesteps": torch.full((1,), 499, device=device)})

    ways = {PLAIN: Step(networks, networks), "gradient checkpointing": Step(networks, checkpointed(networks))}
    if settings.compile:
        ways["torch.compile of the denoising UNet"] = Step(networks, with_compiled_unet(networks))
    if settings.released is not None:
        ways[RELEASED] = released_step(Path(settings.released), networks)

    def run(way: Step) -> tuple[float, float, str]:
        reset_gpu_peak(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = objective.loss(way.predict, batch, parts).loss
        loss.backward()
        trained = (parameter.grad for parameter in way.networks.parameters() if parameter.grad is not None)
        norm = torch.stack(torch._foreach_norm(list(trained))).norm()
        way.networks.zero_grad(set_to_none=True)
        return float(loss.detach()), float(norm), gpu_peak(device)

    rows = {name: partial(run, way) for name, way in ways.items()}
    seconds, results = take_turns(rows, settings.repeats, 1, partial(synchronize, device))
    plain = statistics.median(seconds[PLAIN])
    cells = []
    for name, (loss, norm, peak) in results.items():
        median, fastest = statistics.median(seconds[name]), min(seconds[name])
        times = [f"{1000 * median:.1f}", f"{1000 * fastest:.1f}", f"{median / plain:.3f}"]
        cells.append([name, *times, f"{loss:.6g}", f"{norm:.6g}", peak])
    header = ["step of stage 3", "median ms", "fastest ms", "median to plain's", "loss", "gradient's norm"]
    return Table([*header, "peak GPU memory"], cells)


def build_networks(size: str, device: torch.device) -> TrainingNetworks:
    """Builds networks with random weights, of which stage 3's are trained."""
    parts = ("reference_net", "denoising_unet", "v_kps_guider", "audio_projection")
    networks = TrainingNetworks(**{part: build_network(part, size, device) for part in parts})
    set_trainable(networks, "stage_3")
    return networks


def random_batch(settings: TrainingSettings, device: torch.device) -> Batch:
    """One clip of noise, with the mouth in the middle."""
    height, width, frames = settings.height // DOWNSAMPLING, settings.width // DOWNSAMPLING, settings.num_frames
    embedding_dim = CONFIGS[settings.size]["audio_projection"].get("embedding_dim", 768)
    lip_masks = torch.zeros(1, 1, frames, height, width, device=device)
    lip_masks[..., height // 2 : height * 3 // 4, width // 3 : width * 2 // 3] = 1
    conditions = {
        "reference_latents": torch.randn(1, 4, height, width, device=device),
        "kps_images": torch.rand(1, 3, frames, settings.height, settings.width, device=device),
        "audio_windows": torch.randn(1, frames, 10, embedding_dim, device=device),
    }
    return Batch(torch.randn(1, 4, frames, height, width, device=device), conditions, lip_masks)


def checkpointed(networks: TrainingNetworks) -> Predict:
    """The networks, which compute their activations again for the gradient."""

    def predict(*inputs: Tensor, **conditions: Tensor) -> Tensor:
        unets = networks.reference_net, networks.denoising_unet
        for unet in unets:
            unet.enable_gradient_checkpointing()
        try:
            return networks(*inputs, **conditions)
        finally:
            for unet in unets:
                unet.disable_gradient_checkpointing()

    return predict


def with_compiled_unet(networks: TrainingNetworks) -> TrainingNetworks:
    """The networks with the same weights, as `solver.compile` has them."""
    parts = dict(networks.named_children())
    return TrainingNetworks(**{**parts, "denoising_unet": torch.compile(networks.denoising_unet)})


def released_step(checkout: Path, networks: TrainingNetworks) -> Step:
    """Builds the release's networks on the very weights of ours, with what stage 3 trains.

    Args:
        checkout: of https://github.com/tencent-ailab/V-Express; its package `modules` is imported, and so runs.
        networks: whose weights they share.

    Raises:
        InputError: there are none, or they do not run with the installed libraries.
    """
    try:
        modules = _import_modules(checkout)
        released = _build_released(modules, networks)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot use its networks: {first_line(error)}", "released", checkout) from error
    device = networks.denoising_unet.device
    no_text = torch.zeros(1, 1, networks.reference_net.config.cross_attention_dim, device=device)
    control = partial(modules.ReferenceAttentionControl, do_classifier_free_guidance=False, fusion_blocks="full")
    writer = control(released["reference_net"], mode="write")
    reader = control(released["denoising_unet"], mode="read")

    def predict(
        noisy: Tensor, timesteps: Tensor, reference_latents: Tensor, kps_images: Tensor, audio_windows: Tensor, **_
    ) -> Tensor:
        kps_features = released["v_kps_guider"](kps_images)
        tokens = released["audio_projection"](rearrange(audio_windows, "b f n d -> (b f) n d"))
        reference_time = torch.zeros_like(timesteps)
        released["reference_net"](reference_latents, reference_time, encoder_hidden_states=no_text, return_dict=False)
        reader.update(writer, do_classifier_free_guidance=False, dtype=kps_features.dtype)
        made = released["denoising_unet"](noisy, timesteps, tokens, kps_features=kps_features).sample
        for end in (reader, writer):
            end.clear()
        return made.float()

    return Step(released, predict)


def _import_modules(checkout: Path) -> ModuleType:
    """Imports the package `modules` of a checkout."""
    path = checkout / "modules" / "__init__.py"
    if not path.is_file():
        raise InputError("must be a checkout of tencent-ailab/V-Express: modules/__init__.py", "released", checkout)
    spec = importlib.util.spec_from_file_location("modules", path)
    modules = sys.modules["modules"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(modules)
    return modules


def _build_released(modules: ModuleType, networks: TrainingNetworks) -> nn.ModuleDict:
    """The release's networks of the sizes of ours, which share its weights and train the same of them."""
    own = networks.named_children()
    sizes = {part: {name: value for name, value in network.config.items() if name[0] != "_"} for part, network in own}
    guider, unet = sizes["v_kps_guider"], sizes["denoising_unet"]
    motion = {
        "num_attention_heads": unet.pop("motion_num_attention_heads"),
        "temporal_position_encoding_max_len": unet.pop("motion_max_seq_length"),
    }
    num_groups = unet.pop("motion_norm_num_groups")
    for direction in ("down", "up"):
        types = unet[f"{direction}_block_types"]
        unet[f"{direction}_block_types"] = tuple(name.replace("Block2D", "Block3D") for name in types)
    unet |= {**MOTION, "motion_module_kwargs": {**MOTION["motion_module_kwargs"], **motion}}
    with torch.device("meta"):  # without weights
        released = nn.ModuleDict(
            {
                "reference_net": modules.UNet2DConditionModel(**sizes["reference_net"]),
                "denoising_unet": modules.UNet3DConditionModel(**unet),
                "v_kps_guider": modules.VKpsGuider(
                    guider["out_channels"], block_out_channels=guider["block_out_channels"]
                ),
                "audio_projection": modules.AudioProjection(**sizes["audio_projection"]),
            }
        )
    for name, module in released["denoising_unet"].named_modules():
        if name.endswith("temporal_transformer.norm"):
            module.num_groups = num_groups  # which only a tiny network has otherwise
    released.load_state_dict(networks.state_dict(keep_vars=True), strict=False, assign=True)
    for module in released.modules():  # what only the release has: computed, and of no use
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                zeros = torch.zeros(parameter.shape, device=networks.denoising_unet.device)
                setattr(module, name, nn.Parameter(zeros, requires_grad=False))
    return released.train()
