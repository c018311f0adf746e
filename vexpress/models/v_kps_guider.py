"""The V-Kps guider: keypoint images to features that are added to the latents' first features."""

import math

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle, silu


class VKpsGuider(ModelMixin, ConfigMixin):
    """A small convolutional encoder that halves the size once per entry of `block_out_channels` after the first.

    Args:
        out_channels: width of the denoising UNet's first level.
        in_channels: 3 times the pixels of the patches that a keypoint image is first cut into: 3 is none, as released,
            12 is patches of 2 x 2, since convolutions of few channels at full size would take most of a small model's
            time.
        block_out_channels: width per resolution.

    Source: paper section 3.2; the pose guider of Moore-AnimateAnyone has the same form.

    Raises:
        ValueError: no patch is of so many channels.
    """

    @register_to_config
    def __init__(
        self, out_channels: int = 320, in_channels: int = 3, block_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    ):
        super().__init__()
        widths = list(block_out_channels)
        self.patch_size = math.isqrt(in_channels // 3)
        if in_channels < 3 or 3 * self.patch_size**2 != in_channels:
            raise ValueError(f"in_channels is {in_channels}: must be 3, 12, 27, 48 and so on")
        self.conv_in = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1)
        self.blocks = nn.ModuleList()
        for width, next_width in zip(widths, widths[1:]):
            self.blocks.append(nn.Conv2d(width, width, kernel_size=3, padding=1))
            self.blocks.append(nn.Conv2d(width, next_width, kernel_size=3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], out_channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # training starts as if there were no guider
        nn.init.zeros_(self.conv_out.bias)

    @property
    def downsampling(self) -> int:
        """Pixels per feature, along each side."""
        return self.patch_size * 2 ** (len(self.config.block_out_channels) - 1)

    def forward(self, kps_images: Tensor) -> Tensor:
        """Keypoint images (b 3 f H W) in 0..1 -> features (b d f h w)."""
        x = pixel_unshuffle(rearrange(kps_images, "b c f h w -> (b f) c h w"), self.patch_size)
        x = silu(self.conv_in(x))
        for block in self.blocks:
            x = silu(block(x))
        return rearrange(self.conv_out(x), "(b f) c h w -> b c f h w", b=kps_images.shape[0])
