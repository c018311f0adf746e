"""The motion module: attention over the frames of a window, at each pixel on its own."""

from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import Tensor, nn

from vexpress.models.attention import Attention, attend_to_self, sinusoidal_positions


class PositionEncoder(nn.Module):
    """Adds sinusoidal positions to (b n d). The table is in the state dict, as in the released files."""

    def __init__(self, dim: int, max_seq_length: int):
        super().__init__()
        self.register_buffer("pe", sinusoidal_positions(max_seq_length, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Adds positions 0..n-1."""
        return x + self.pe[:, : x.shape[1]]


class TemporalAttention(Attention):
    """Self attention over frames, with positions added to its input."""

    def __init__(self, dim: int, num_heads: int, max_seq_length: int):
        super().__init__(dim, num_heads)
        self.pos_encoder = PositionEncoder(dim, max_seq_length)


class TemporalBlock(nn.Module):
    """Two temporal self attentions and a feed-forward, each behind a layer norm."""

    def __init__(self, dim: int, num_heads: int, max_seq_length: int, num_attentions: int = 2):
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            TemporalAttention(dim, num_heads, max_seq_length) for _ in range(num_attentions)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(num_attentions))
        self.ff = FeedForward(dim, activation_fn="geglu")
        self.ff_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(b h w) f c -> (b h w) f c."""
        for attention, norm in zip(self.attention_blocks, self.norms):
            x = x + attend_to_self(attention, attention.pos_encoder(norm(x)))
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    """Group norm per frame, temporal blocks between two linear layers, and a residual."""

    def __init__(self, channels: int, num_heads: int, max_seq_length: int, norm_num_groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(channels, num_heads, max_seq_length)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """(b f) c h w -> (b f) c h w."""
        height, width = x.shape[-2:]
        hidden = rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=num_frames)
        hidden = self.proj_in(hidden)
        for block in self.transformer_blocks:
            hidden = block(hidden)
        hidden = self.proj_out(hidden)
        return x + rearrange(hidden, "(b h w) f c -> (b f) c h w", h=height, w=width)


class MotionModule(nn.Module):
    """A temporal transformer under its released name.

    Source: AnimateDiff, arXiv 2307.04725, figure 3; its released weights load after renaming.
    """

    def __init__(self, channels: int, num_heads: int, max_seq_length: int, norm_num_groups: int):
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, num_heads, max_seq_length, norm_num_groups)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """(b f) c h w -> (b f) c h w, mixing the frames of each video."""
        return self.temporal_transformer(x, num_frames)
