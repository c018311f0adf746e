"""Down, middle and up blocks of the denoising UNet: ResNet layer, spatial transformer, motion module, in this order."""

from dataclasses import dataclass

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from vexpress.models.conditions import Conditions
from vexpress.models.motion_module import MotionModule
from vexpress.models.transformer import SpatialTransformer


@dataclass(frozen=True)
class BlockConfig:
    """What all blocks of one UNet share."""

    time_dim: int
    norm_num_groups: int
    norm_eps: float
    audio_dim: int
    motion_num_attention_heads: int
    motion_max_seq_length: int
    motion_norm_num_groups: int

    def resnet(self, in_channels: int, out_channels: int) -> ResnetBlock2D:
        return ResnetBlock2D(
            in_channels=in_channels,
            out_channels=out_channels,
            temb_channels=self.time_dim,
            groups=self.norm_num_groups,
            eps=self.norm_eps,
        )

    def attention(self, channels: int, num_heads: int, path: str) -> SpatialTransformer:
        return SpatialTransformer(channels, num_heads, self.audio_dim, self.norm_num_groups, path)

    def motion(self, channels: int) -> MotionModule:
        return MotionModule(
            channels, self.motion_num_attention_heads, self.motion_max_seq_length, self.motion_norm_num_groups
        )


class UNetBlock(nn.Module):
    """What the three kinds of block have in common: running a module, with or without keeping its activations.

    Args of every block: `num_heads` None means a block without spatial transformers; `path` is the block's name.
    """

    gradient_checkpointing = False  # set by ModelMixin.enable_gradient_checkpointing

    def run(self, module: nn.Module, *args) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(module, *args)
        return module(*args)

    def add_attentions(self, config: BlockConfig, num: int, channels: int, num_heads: int | None, path: str) -> None:
        if num_heads is not None:
            self.attentions = nn.ModuleList(
                config.attention(channels, num_heads, f"{path}.attentions.{i}") for i in range(num)
            )

    def layer(self, i: int, x: Tensor, temb: Tensor, conditions: Conditions, num_frames: int) -> Tensor:
        x = self.run(self.resnets[i], x, temb)
        if hasattr(self, "attentions"):
            x = self.run(self.attentions[i], x, conditions)
        return self.run(self.motion_modules[i], x, num_frames)


class DownBlock(UNetBlock):
    """Layers at one resolution, then an optional halving."""

    def __init__(
        self,
        config: BlockConfig,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        num_heads: int | None,
        downsample: bool,
        path: str,
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nn.ModuleList(config.resnet(width, out_channels) for width in widths)
        self.add_attentions(config, num_layers, out_channels, num_heads, path)
        self.motion_modules = nn.ModuleList(config.motion(out_channels) for _ in range(num_layers))
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels, use_conv=True, name="op")] if downsample else [])

    def forward(self, x: Tensor, temb: Tensor, conditions: Conditions, num_frames: int) -> tuple[Tensor, list[Tensor]]:
        """Returns the output and what the up path takes from here."""
        skips = []
        for i in range(len(self.resnets)):
            x = self.layer(i, x, temb, conditions, num_frames)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler(x)
            skips.append(x)
        return x, skips


class MidBlock(UNetBlock):
    """A ResNet layer with attention and motion, and a second ResNet layer."""

    def __init__(self, config: BlockConfig, channels: int, num_heads: int, path: str):
        super().__init__()
        self.resnets = nn.ModuleList(config.resnet(channels, channels) for _ in range(2))
        self.add_attentions(config, 1, channels, num_heads, path)
        self.motion_modules = nn.ModuleList([config.motion(channels)])

    def forward(self, x: Tensor, temb: Tensor, conditions: Conditions, num_frames: int) -> Tensor:
        """(b f) c h w -> (b f) c h w."""
        x = self.layer(0, x, temb, conditions, num_frames)
        return self.run(self.resnets[1], x, temb)


class UpBlock(UNetBlock):
    """Layers at one resolution, each fed with a skip connection, then an optional doubling."""

    def __init__(
        self,
        config: BlockConfig,
        in_channels: int,
        out_channels: int,
        skip_channels: list[int],
        num_heads: int | None,
        upsample: bool,
        path: str,
    ):
        super().__init__()
        widths = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.resnets = nn.ModuleList(
            config.resnet(width + skip, out_channels) for width, skip in zip(widths, skip_channels)
        )
        self.add_attentions(config, len(widths), out_channels, num_heads, path)
        self.motion_modules = nn.ModuleList(config.motion(out_channels) for _ in widths)
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels, use_conv=True)] if upsample else [])

    def forward(
        self, x: Tensor, skips: list[Tensor], temb: Tensor, conditions: Conditions, num_frames: int
    ) -> tuple[Tensor, Tensor]:
        """Takes its skip connections off the end of `skips`; returns the output, and that before the doubling."""
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat([x, skips.pop()], dim=1), temb, conditions, num_frames)
        return self.double(x, skips), x

    def double(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Doubles to the size of the next skip, which at odd latent sizes is not twice this one's."""
        for upsampler in self.upsamplers:
            x = upsampler(x, output_size=skips[-1].shape[-2:])
        return x
