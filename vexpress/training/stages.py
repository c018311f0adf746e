"""The stages as a table: what is trained, what starts silent, and the networks as one module.

A pattern is a regular expression that must match from the start of a parameter's name. One that matches nothing is an
error, so a renamed parameter cannot silently drop out of training.
"""

import re
from dataclasses import asdict, dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vexpress.errors import InputError
from vexpress.models import AttributeProjection, AudioProjection, Conditions, DenoisingUNet, ReferenceNet, VKpsGuider
from vexpress.training.adapters import add_adapters
from vexpress.training.config import LoraConfig, ModuleTrainingConfig

ALL = r".*"
AUDIO_ATTENTION = r".*\.transformer_blocks\.\d+\.(attn2|norm2)\."
MOTION = r".*\.motion_modules\."


@dataclass(frozen=True)
class Selection:
    """Parameters that match one of `train` and none of `freeze`."""

    train: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()


# Frozen are what comes after the last feature that is read, with the rest of its block as in the release, and the
# matrices of text attention: its one token is all zeros, so that only the output bias does anything.
REFERENCE_NET = Selection((ALL,), (r"up_blocks\.{last}\.", r".*\.attn2\..*weight"))


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        reference_net: parameters trained, and likewise for the other networks.
        attribute_projection: likewise, where there is one.
        starts_silent: audio attention and motion modules add nothing at the start.
        has_trained_motion: the stage before has trained the motion modules, and nothing may replace them.
        distils: a teacher says what is learned, see `vexpress.training.distillation`.
    """

    reference_net: Selection
    denoising_unet: Selection
    v_kps_guider: Selection
    audio_projection: Selection
    attribute_projection: Selection = Selection()
    starts_silent: bool = False
    has_trained_motion: bool = False
    distils: bool = False


EVERYTHING = {
    "reference_net": REFERENCE_NET,
    "denoising_unet": Selection((ALL,)),
    "v_kps_guider": Selection((ALL,)),
    "audio_projection": Selection((ALL,)),
    "attribute_projection": Selection((ALL,)),
}
STAGES = {
    "stage_1": Stage(
        reference_net=REFERENCE_NET,
        denoising_unet=Selection((ALL,), (AUDIO_ATTENTION, MOTION)),
        v_kps_guider=Selection((ALL,)),
        audio_projection=Selection(),
        starts_silent=True,
    ),
    "stage_2": Stage(
        reference_net=Selection(),
        denoising_unet=Selection((AUDIO_ATTENTION, MOTION)),
        v_kps_guider=Selection(),
        audio_projection=Selection((ALL,)),
        attribute_projection=Selection((ALL,)),
    ),
    "stage_3": Stage(**EVERYTHING, has_trained_motion=True),
    "stage_4": Stage(**EVERYTHING, has_trained_motion=True, distils=True),
}
"""Source: paper section 3.3; names of trained parameters as recorded from the release (tests/data/parity). Stage 4 is
ours."""


class TrainingNetworks(nn.Module):
    """The four networks and the optional fifth, chained as in a training step; one module, for DDP and the like."""

    # What FSDP gathers on its own. Not transformer blocks: keys and values are projected outside of their forward.
    _no_split_modules = ("ResnetBlock2D", "MotionModule")

    def __init__(
        self,
        reference_net: ReferenceNet,
        denoising_unet: DenoisingUNet,
        v_kps_guider: VKpsGuider,
        audio_projection: AudioProjection,
        attribute_projection: AttributeProjection | None = None,
    ):
        super().__init__()
        self.reference_net = reference_net
        self.denoising_unet = denoising_unet
        self.v_kps_guider = v_kps_guider
        self.audio_projection = audio_projection
        self.attribute_projection = attribute_projection

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        reference_latents: Tensor,
        kps_images: Tensor,
        audio_windows: Tensor,
        **options: Tensor | float | None,
    ) -> Tensor:
        """Predicts v for noisy clips.

        Args:
            noisy_latents: (b c f h w).
            timesteps: (b,) int64.
            reference_latents, kps_images, audio_windows, options: see `prepare_conditions`.

        Returns:
            (b c f h w).
        """
        conditions = self.prepare_conditions(reference_latents, kps_images, audio_windows, **options)
        return self.denoising_unet(noisy_latents, timesteps, conditions)

    def prepare_conditions(
        self,
        reference_latents: Tensor,
        kps_images: Tensor,
        audio_windows: Tensor,
        *,
        reference_keep: Tensor | None = None,
        kps_keep: Tensor | None = None,
        audio_keep: Tensor | None = None,
        attributes: Tensor | None = None,
        attribute_keep: Tensor | None = None,
        any_keep: Tensor | None = None,
        **attention_weights: float,
    ) -> Conditions:
        """Makes what the denoising UNet is told of clips.

        A dropped condition is multiplied by zero, so that every trained parameter is in every step's graph. With
        attributes, audio that is dropped alone is tokens of zeros beside the attributes' tokens.

        Args:
            reference_latents: (b c h w).
            kps_images: (b 3 f H W) in 0..1.
            audio_windows: (b f n d).
            reference_keep: (b f), 0 where the reference is dropped; None keeps all. Likewise the others.
            attributes: (b f 6), read only where there is an attribute projection, which then needs them.
            attribute_keep: (b f 6), 0 where a value counts as not known.
            any_keep: (b f), 0 where all conditions are dropped; audio_keep is 0 there, too.
            attention_weights: see `Conditions`.
        """
        kps_features = self.v_kps_guider(kps_images)
        if kps_keep is not None:
            kps_features = kps_features * rearrange(kps_keep, "b f -> b 1 f 1 1").to(kps_features.dtype)
        audio_tokens = self.audio_projection(rearrange(audio_windows, "b f n d -> (b f) n d"))
        audio_tokens = rearrange(audio_tokens, "(b f) m d -> b f m d", b=audio_windows.shape[0])
        if self.attribute_projection is not None:
            if audio_keep is not None:
                audio_tokens = audio_tokens * audio_keep[..., None, None].to(audio_tokens.dtype)
            attribute_tokens = self.attribute_projection(attributes, attribute_keep)
            audio_tokens = torch.cat([audio_tokens, attribute_tokens.to(audio_tokens.dtype)], dim=2)
            audio_keep = any_keep
        return self.denoising_unet.prepare_conditions(
            self.reference_net(reference_latents),
            audio_tokens,
            kps_features,
            reference_keep=reference_keep,
            audio_keep=audio_keep,
            **attention_weights,
        )


def select(names: list[str], selection: Selection, last_up_block: int = 0) -> list[str]:
    """Names that a selection trains.

    Raises:
        InputError: a pattern matches no name: the network has another architecture.
    """
    matched = {}
    for pattern in (*selection.train, *selection.freeze):
        filled = pattern.replace("{last}", str(last_up_block))
        matched[pattern] = {name for name in names if re.match(filled, name)}
        if not matched[pattern]:
            raise InputError(f"pattern {filled} matches no parameter of the network: it has another architecture")
    frozen = set().union(*(matched[pattern] for pattern in selection.freeze))
    trained = set().union(*(matched[pattern] for pattern in selection.train)) - frozen
    return [name for name in names if name in trained]


def set_trainable(
    networks: TrainingNetworks,
    stage: str,
    switches: ModuleTrainingConfig | None = None,
    lora: LoraConfig | None = None,
) -> None:
    """Switches gradients on for what a stage trains, and off for all else; networks without any are in eval mode.

    Args:
        networks: changed in place.
        stage: key of `STAGES`.
        switches: False freezes a network, True trains all of it; unset follows the table.
        lora: with targets, adapters are put on layers that would be trained, and they alone are.

    Raises:
        InputError: a pattern matches nothing.
    """
    switches = asdict(switches) if switches else {}
    last_up_block = len(networks.denoising_unet.up_blocks) - 1
    for network_name, network in networks.named_children():
        switch = switches.get(network_name)
        selection = getattr(STAGES[stage], network_name)
        if switch is False:
            selection = Selection()
        elif switch is True:
            selection = REFERENCE_NET if network_name == "reference_net" else Selection((ALL,))
        trained = set(select([name for name, _ in network.named_parameters()], selection, last_up_block))
        if lora and lora.is_on:
            trained = add_adapters(network, network_name, trained, lora)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in trained)
        network.train(bool(trained))


def count_parameters(networks: TrainingNetworks) -> dict[str, tuple[int, int]]:
    """Network -> (number of trained parameters, number of all)."""
    return {
        name: (
            sum(p.numel() for p in network.parameters() if p.requires_grad),
            sum(p.numel() for p in network.parameters()),
        )
        for name, network in networks.named_children()
    }


def compute_memory_bytes(networks: TrainingNetworks, mixed_precision: str) -> int:
    """Bytes for the networks' weights, gradients and Adam's two moments on one process; all else comes on top."""
    frozen_bytes = 4 if mixed_precision == "no" else 2  # of networks of which nothing is trained, see `half_frozen`
    return sum(
        total * 4 + trained * 12 if trained else total * frozen_bytes
        for trained, total in count_parameters(networks).values()
    )


def half_frozen(networks: TrainingNetworks, dtype: torch.dtype) -> None:
    """Holds networks of which nothing is trained in half precision."""
    for network in networks.children():
        if not any(parameter.requires_grad for parameter in network.parameters()):
            network.to(dtype)
