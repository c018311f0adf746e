"""The ReferenceNet: Stable Diffusion 1.5's UNet, read out at every transformer block."""

import functools
from collections.abc import Callable

import torch
from diffusers import ModelMixin, UNet2DConditionModel  # noqa: F401 - pipelines look for ModelMixin in this module
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from einops import rearrange
from torch import Tensor


class ReferenceNet(UNet2DConditionModel):
    """Turns the portrait's latents into features for reference attention.

    It runs at timestep 0 with one all-zero text token. Zero tokens have zero keys and values, so text attention adds
    just its output bias, and that is all that is computed of it.

    Source: paper section 3.2; parameter names are the released ones, without `conv_norm_out` and `conv_out`, which
    come after all that is read.
    """

    gradient_checkpointing = False  # set by ModelMixin.enable_gradient_checkpointing

    @functools.wraps(UNet2DConditionModel.__init__)  # ConfigMixin reads the signature
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.conv_norm_out, self.conv_out

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        """Reads out the features.

        Args:
            latents: (b c h w), scaled, without noise.

        Returns:
            Path of each transformer block -> (b, h*w, d), the output of its `norm2`.
        """
        temb = self.time_proj(torch.zeros(latents.shape[0], device=latents.device)).to(latents.dtype)
        temb = self.time_embedding(temb)
        features: dict[str, Tensor] = {}

        def layer(block: torch.nn.Module, path: str, i: int, x: Tensor) -> Tensor:
            x = self._run(block.resnets[i], x, temb)
            if hasattr(block, "attentions"):
                x, features[f"{path}.attentions.{i}.transformer_blocks.0"] = self._run(_attend, block.attentions[i], x)
            return x

        # 1. down
        x = self.conv_in(latents)
        skips = [x]
        for number, block in enumerate(self.down_blocks):
            for i in range(len(block.resnets)):
                x = layer(block, f"down_blocks.{number}", i, x)
                skips.append(x)
            for downsampler in block.downsamplers or ():
                x = downsampler(x)
                skips.append(x)

        # 2. middle
        x = layer(self.mid_block, "mid_block", 0, x)
        x = self._run(self.mid_block.resnets[1], x, temb)

        # 3. up
        for number, block in enumerate(self.up_blocks):
            for i in range(len(block.resnets)):
                x = layer(block, f"up_blocks.{number}", i, torch.cat([x, skips.pop()], dim=1))
            for upsampler in block.upsamplers or ():
                x = upsampler(x, output_size=skips[-1].shape[-2:])
        return features

    def _run(self, function: Callable, *args):
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(function, *args)
        return function(*args)


def _attend(transformer: Transformer2DModel, x: Tensor) -> tuple[Tensor, Tensor]:
    """A spatial transformer with an all-zero text token: (b c h w) -> its output and the feature read out."""
    height = x.shape[-2]
    hidden = rearrange(transformer.proj_in(transformer.norm(x)), "b c h w -> b (h w) c")
    block: BasicTransformerBlock = transformer.transformer_blocks[0]
    hidden = hidden + block.attn1(block.norm1(hidden))
    feature = block.norm2(hidden)
    hidden = hidden + block.attn2.to_out[0].bias
    hidden = hidden + block.ff(block.norm3(hidden))
    return x + transformer.proj_out(rearrange(hidden, "b (h w) c -> b c h w", h=height)), feature
