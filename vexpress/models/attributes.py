"""Attributes of a face as tokens for audio attention: one for each eyelid, gaze in x and y, brows and smile."""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

ATTRIBUTES = {
    "lid_left": (0.0, 1.0),
    "lid_right": (0.0, 1.0),
    "gaze_x": (-1.0, 1.0),
    "gaze_y": (-1.0, 1.0),
    "brows": (-1.0, 1.0),
    "smile": (0.0, 1.0),
}
"""Name -> smallest and largest value, in the order of all arrays. Lids are 0 closed to 1 open, gaze grows to the
viewer's right and down, brows are -1 lowered, 0 at rest, 1 raised, the smile 0 at rest; left is the viewer's left.
A value that is not known is NaN."""

NUM_WAVES = 2  # of sine and cosine, beside the value itself


class AttributeProjection(ModelMixin, ConfigMixin):
    """Turns each frame's attributes into one token each; what is not known has a token of its own.

    Args:
        dim: width inside.
        output_dim: width of the tokens, the denoising UNet's `cross_attention_dim`.

    A token depends on its own attribute alone, so that pixels of an eye can attend to its lid and to nothing else.
    """

    @register_to_config
    def __init__(self, dim: int = 256, output_dim: int = 768):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(1 + 2 * NUM_WAVES, dim), nn.SiLU(), nn.Linear(dim, output_dim)) for _ in ATTRIBUTES
        )
        self.unknown = nn.Parameter(torch.randn(len(ATTRIBUTES), output_dim))
        self.norm_out = nn.LayerNorm(output_dim)

    def forward(self, attributes: Tensor, keep: Tensor | None = None) -> Tensor:
        """Projects attributes.

        Args:
            attributes: (... 6) in the order of `ATTRIBUTES`; NaN is not known.
            keep: (... 6), 0 where a value counts as not known, 1 elsewhere; None keeps all.

        Returns:
            Tokens (... 6 output_dim).
        """
        is_known = ~attributes.isnan() if keep is None else ~attributes.isnan() & (keep > 0)
        values = torch.where(is_known, attributes, 0).float()[..., None]  # ... 6 1
        angles = values * (torch.pi / 2 * torch.arange(1, NUM_WAVES + 1, device=values.device))
        features = torch.cat([values, angles.sin(), angles.cos()], dim=-1).to(self.unknown.dtype)
        tokens = torch.stack([layer(features[..., i, :]) for i, layer in enumerate(self.layers)], dim=-2)
        # Not indexed: all parameters stay in the graph of each step, as data-parallel training needs.
        return self.norm_out(torch.where(is_known[..., None], tokens, self.unknown))
