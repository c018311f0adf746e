"""The spatial transformer: self attention, reference attention, audio attention, feed-forward (paper, figure 2)."""

from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import Tensor, nn

from vexpress.models.attention import Attention, attend_to_self
from vexpress.models.conditions import Conditions


class TransformerBlock(nn.Module):
    """One transformer block; `path` is its name in the UNet, which pairs it with the ReferenceNet's block."""

    def __init__(self, dim: int, num_heads: int, audio_dim: int, path: str):
        super().__init__()
        self.path = path
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, num_heads)
        self.norm1_5 = nn.LayerNorm(dim)
        self.attn1_5 = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, num_heads, context_dim=audio_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, activation_fn="geglu")

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        """(b f) n d -> (b f) n d."""
        reference_kv = conditions.reference_kv and conditions.reference_kv[self.path]
        audio_kv = conditions.audio_kv and conditions.audio_kv[self.path]
        x = x + attend_to_self(self.attn1, self.norm1(x))
        reference = self.attn1_5(self.norm1_5(x), reference_kv, conditions.reference_keep)
        x = x + conditions.reference_attention_weight * reference
        audio = self.attn2(self.norm2(x), audio_kv, conditions.audio_keep)
        x = x + conditions.audio_attention_weight * audio
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Group norm, a 1x1 convolution in, transformer blocks over the pixels of each frame, a 1x1 convolution out."""

    def __init__(self, channels: int, num_heads: int, audio_dim: int, norm_num_groups: int, path: str):
        super().__init__()
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, kernel_size=1)
        block = TransformerBlock(channels, num_heads, audio_dim, f"{path}.transformer_blocks.0")
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        """(b f) c h w -> (b f) c h w."""
        height = x.shape[-2]
        hidden = rearrange(self.proj_in(self.norm(x)), "bf c h w -> bf (h w) c")
        for block in self.transformer_blocks:
            hidden = block(hidden, conditions)
        return x + self.proj_out(rearrange(hidden, "bf (h w) c -> bf c h w", h=height))
