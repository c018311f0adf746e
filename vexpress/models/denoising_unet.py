"""The denoising UNet: Stable Diffusion 1.5's, with reference attention, audio attention and motion modules."""

import inspect
from dataclasses import replace

from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import silu

from vexpress.models.conditions import Conditions
from vexpress.models.motion_module import TemporalTransformer
from vexpress.models.transformer import TransformerBlock
from vexpress.models.unet_blocks import BlockConfig, DownBlock, MidBlock, UpBlock

DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # name -> has spatial transformers
UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


class DenoisingUNet(ModelMixin, ConfigMixin):
    """Predicts noise, or v, of a video's latents, given prepared conditions.

    Frames are folded into the batch here, once; only motion modules unfold them.

    Args:
        in_channels: latent channels.
        out_channels: channels predicted.
        down_block_types: one of `DOWN_BLOCKS` per level.
        up_block_types: one of `UP_BLOCKS` per level.
        block_out_channels: width per level; as many levels as entries.
        layers_per_block: layers per level (one more on the way up).
        norm_num_groups: groups of all spatial group norms.
        norm_eps: epsilon of the ResNet layers' group norms.
        cross_attention_dim: width of the audio tokens.
        attention_head_dim: number of attention heads. Stable Diffusion 1.5's configuration names it so.
        motion_num_attention_heads: heads of temporal attention.
        motion_max_seq_length: most frames in one window.
        motion_norm_num_groups: groups of the motion modules' norms.

    Raises:
        ValueError: a block type or configuration value that this network does not implement.

    Source: paper section 3.2; parameter names are the released ones.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 768,
        attention_head_dim: int = 8,
        motion_num_attention_heads: int = 8,
        motion_max_seq_length: int = 32,
        motion_norm_num_groups: int = 32,
    ):
        super().__init__()
        if unknown := {*down_block_types, *up_block_types} - {*DOWN_BLOCKS, *UP_BLOCKS}:
            raise ValueError(f"UNet block types {sorted(unknown)}: allowed are {[*DOWN_BLOCKS, *UP_BLOCKS]}")
        if not len(down_block_types) == len(up_block_types) == len(block_out_channels):
            raise ValueError(
                f"UNet with {len(down_block_types)} down_block_types, {len(up_block_types)} up_block_types and "
                f"{len(block_out_channels)} block_out_channels: the three must be equally long"
            )
        widths, heads = list(block_out_channels), attention_head_dim
        config = BlockConfig(
            time_dim=4 * widths[0],
            norm_num_groups=norm_num_groups,
            norm_eps=norm_eps,
            audio_dim=cross_attention_dim,
            motion_num_attention_heads=motion_num_attention_heads,
            motion_max_seq_length=motion_max_seq_length,
            motion_norm_num_groups=motion_norm_num_groups,
        )
        self.conv_in = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1)
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], config.time_dim)

        self.down_blocks = nn.ModuleList()
        skip_widths, last = [widths[0]], len(widths) - 1
        for i, kind in enumerate(down_block_types):
            self.down_blocks.append(
                DownBlock(
                    config,
                    in_channels=skip_widths[-1],
                    out_channels=widths[i],
                    num_layers=layers_per_block,
                    num_heads=heads if DOWN_BLOCKS[kind] else None,
                    downsample=i < last,
                    path=f"down_blocks.{i}",
                )
            )
            skip_widths += [widths[i]] * (layers_per_block + (i < last))

        self.mid_block = MidBlock(config, widths[-1], heads, path="mid_block")

        self.up_blocks = nn.ModuleList()
        previous = widths[-1]
        for i, (kind, width) in enumerate(zip(up_block_types, reversed(widths))):
            self.up_blocks.append(
                UpBlock(
                    config,
                    in_channels=previous,
                    out_channels=width,
                    skip_channels=[skip_widths.pop() for _ in range(layers_per_block + 1)],
                    num_heads=heads if UP_BLOCKS[kind] else None,
                    upsample=i < last,
                    path=f"up_blocks.{i}",
                )
            )
            previous = width

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, widths[0], eps=norm_eps)
        self.conv_out = nn.Conv2d(widths[0], out_channels, kernel_size=3, padding=1)

    @classmethod
    def from_config(cls, config: dict, **kwargs):
        """Builds the network from a `UNet2DConditionModel` configuration, or from its own.

        Raises:
            ValueError: a key asks for something that Stable Diffusion 1.5's UNet does not have.
        """
        own = inspect.signature(cls.__init__).parameters
        fixed = {n: p.default for n, p in inspect.signature(UNet2DConditionModel.__init__).parameters.items()}
        fixed["sample_size"] = config.get("sample_size")  # the size in training, which binds nothing
        for key, value in config.items():
            if not key.startswith("_") and key not in own and (key not in fixed or value != fixed[key]):
                raise ValueError(f"UNet configuration {key}={value!r}: DenoisingUNet has only {fixed.get(key)!r}")
        config = {key: value for key, value in config.items() if key in own or key.startswith("_")}
        return super().from_config(config, **kwargs)

    def transformer_blocks(self) -> list[TransformerBlock]:
        """All spatial transformer blocks; each knows its path."""
        return [module for module in self.modules() if isinstance(module, TransformerBlock)]

    def silence_audio(self) -> None:
        """Zeroes what audio attention adds."""
        _zero([block.attn2.to_out[0] for block in self.transformer_blocks()])

    def silence_motion(self) -> None:
        """Zeroes what motion modules add."""
        _zero([module.proj_out for module in self.modules() if isinstance(module, TemporalTransformer)])

    @apply_forward_hook  # with model offloading, weights are on the device from here on
    def prepare_conditions(
        self,
        reference_features: dict[str, Tensor] | None = None,
        audio_tokens: Tensor | None = None,
        kps_features: Tensor | None = None,
        **weights_and_masks,
    ) -> Conditions:
        """Projects reference and audio to keys and values, which serve every denoising step.

        Args:
            reference_features: block path -> (b n d), from the ReferenceNet; None drops the reference.
            audio_tokens: (b f m d), from the audio projection; None drops the audio.
            kps_features: (b d f h w), from the V-Kps guider; None drops the keypoints.
            weights_and_masks: the other fields of `Conditions`.

        Raises:
            ValueError: a block has no reference feature of its path.
        """
        blocks = self.transformer_blocks()
        reference_kv = audio_kv = None
        if reference_features is not None:
            if missing := [block.path for block in blocks if block.path not in reference_features]:
                raise ValueError(f"reference_features lack {missing[:3]}: another size of ReferenceNet?")
            reference_kv = {block.path: block.attn1_5.project_kv(reference_features[block.path]) for block in blocks}
        if audio_tokens is not None:
            tokens = rearrange(audio_tokens, "b f m d -> (b f) m d")
            audio_kv = {block.path: block.attn2.project_kv(tokens) for block in blocks}
        return Conditions(kps_features, reference_kv, audio_kv, **weights_and_masks)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditions: Conditions,
        deep: Tensor | None = None,
        returns_deep: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predicts from noisy latents.

        Args:
            latents: (b c f h w).
            timestep: (b,) or (1,) or scalar, 0 to 999.
            conditions: from `prepare_conditions`; `Conditions()` drops them all.
            deep: what the blocks below the first level gave at another step, ((b f) d h/2 w/2); they are not run.
            returns_deep: return that of this step, too.

        Returns:
            (b c f h w), and with `returns_deep` what a later step takes as `deep`.

        Raises:
            ValueError: more frames than positions, or deep blocks of a network that has one level.
        """
        if (deep is not None or returns_deep) and len(self.up_blocks) < 2:
            raise ValueError("this network has one level, and so no deep blocks")
        num_videos, _, num_frames = latents.shape[:3]
        if num_frames > self.config.motion_max_seq_length:
            raise ValueError(
                f"{num_frames} frames in one window: motion modules have {self.config.motion_max_seq_length} positions"
            )
        conditions = replace(
            conditions,
            reference_keep=_per_frame(conditions.reference_keep),
            audio_keep=_per_frame(conditions.audio_keep),
        )

        # 1. time and first convolution, frames folded into the batch
        temb = self.time_embedding(self.time_proj(timestep.reshape(-1).expand(num_videos)).to(latents.dtype))
        temb = temb.repeat_interleave(num_frames, dim=0)
        x = self.conv_in(rearrange(latents, "b c f h w -> (b f) c h w"))
        if conditions.kps_features is not None:
            x = x + rearrange(conditions.kps_features, "b c f h w -> (b f) c h w")

        # 2. down, middle, up; or the first level alone, around what the others gave
        skips = [x]
        if deep is None:
            for block in self.down_blocks:
                x, block_skips = block(x, temb, conditions, num_frames)
                skips += block_skips
            x = self.mid_block(x, temb, conditions, num_frames)
            for block in self.up_blocks[:-1]:
                x, deep = block(x, skips, temb, conditions, num_frames)
        else:
            skips += self.down_blocks[0](x, temb, conditions, num_frames)[1][:-1]  # without the halved one
            x = self.up_blocks[-2].double(deep, skips)
        x, _ = self.up_blocks[-1](x, skips, temb, conditions, num_frames)

        # 3. last convolution
        x = self.conv_out(silu(self.conv_norm_out(x)))
        prediction = rearrange(x, "(b f) c h w -> b c f h w", f=num_frames)
        return (prediction, deep) if returns_deep else prediction


def _per_frame(keep: Tensor | None) -> Tensor | None:
    """(b f) -> one entry per folded frame."""
    return None if keep is None else keep.flatten()


def _zero(layers: list[nn.Linear]) -> None:
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
