"""The audio projection: a Q-Former that sums up the speech around a frame in a few tokens."""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class PerceiverAttention(nn.Module):
    """Queries attend to the audio steps and to themselves."""

    def __init__(self, dim: int, dim_head: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, audio: Tensor, queries: Tensor) -> Tensor:
        """Audio steps (b n d) and queries (b m d) -> (b m d)."""
        audio, queries = self.norm1(audio), self.norm2(queries)
        keys, values = rearrange(
            self.to_kv(torch.cat([audio, queries], dim=1)), "b n (two h d) -> two b h n d", two=2, h=self.heads
        )
        out = scaled_dot_product_attention(
            rearrange(self.to_q(queries), "b m (h d) -> b h m d", h=self.heads), keys, values
        )
        return self.to_out(rearrange(out, "b h m d -> b m (h d)"))


class AudioProjection(ModelMixin, ConfigMixin):
    """Audio hidden states around one frame -> tokens for audio attention.

    Args:
        dim: width inside.
        depth: number of attention + feed-forward pairs.
        dim_head: width of a head.
        heads: number of heads.
        num_queries: tokens per frame.
        embedding_dim: width of the audio encoder's hidden states.
        output_dim: width of the tokens, the denoising UNet's `cross_attention_dim`.
        ff_mult: feed-forward expansion.
        max_seq_len: most audio steps per frame.

    Source: paper section 3.2.
    """

    @register_to_config
    def __init__(
        self,
        dim: int = 768,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 12,
        num_queries: int = 5,
        embedding_dim: int = 768,
        output_dim: int = 768,
        ff_mult: int = 4,
        max_seq_len: int = 10,
    ):
        super().__init__()
        self.pos_emb = nn.Embedding(max_seq_len, embedding_dim)
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(embedding_dim, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(dim, dim_head, heads),
                    nn.Sequential(
                        nn.LayerNorm(dim),
                        nn.Linear(dim, dim * ff_mult, bias=False),
                        nn.GELU(),
                        nn.Linear(dim * ff_mult, dim, bias=False),
                    ),
                ]
            )
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)

    def forward(self, audio_windows: Tensor) -> Tensor:
        """Audio steps (b n d), n up to `max_seq_len`, -> tokens (b num_queries output_dim)."""
        audio = self.proj_in(audio_windows + self.pos_emb.weight[: audio_windows.shape[1]])
        queries = self.latents.expand(audio.shape[0], -1, -1)
        for attention, feed_forward in self.layers:
            queries = queries + attention(audio, queries)
            queries = queries + feed_forward(queries)
        return self.norm_out(self.proj_out(queries))
