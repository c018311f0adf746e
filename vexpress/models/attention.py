"""Multi-head attention whose keys and values may be projected ahead of time."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

KeyValue = tuple[Tensor, Tensor]
"""Projected keys and values, each (b heads m d)."""


class Attention(nn.Module):
    """Attention without bias on queries, keys and values, and with bias on the output.

    That pair is what makes a dropped condition cheap: a context of zeros has keys and values of zeros, so all that is
    left of the attention is the output bias.

    Args:
        dim: width of the queries and of the output.
        num_heads: heads; must divide `dim`.
        context_dim: width of the tokens attended to; None means `dim`.

    Raises:
        ValueError: `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide a width of {dim}")
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # a list, for the released name `to_out.0`

    def project_kv(self, context: Tensor) -> KeyValue:
        """Projects context tokens (b m d) to keys and values."""
        return self._split_heads(self.to_k(context)), self._split_heads(self.to_v(context))

    def _split_heads(self, x: Tensor) -> Tensor:
        # Plain tensor methods here and below: attention is called most, and torch.compile traces einops' parser anew
        # at every call, some 0.1 s each.
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # b heads m d

    def forward(self, x: Tensor, kv: KeyValue | None, keep: Tensor | None = None) -> Tensor:
        """Attends from `x` to projected keys and values.

        Args:
            x: queries before projection, (b n d).
            kv: from `project_kv`. Their batch may be b / f: then f consecutive items of `x` share one context, and
                their queries are laid side by side instead of the context being repeated. None is a dropped context.
            keep: (b,), 0 for items whose context is dropped, 1 for the others. None keeps all.

        Returns:
            (b n d); the output bias alone, as (d,), where the context is None.
        """
        if kv is None:
            return self.to_out[0].bias
        keys, values = kv
        num_contexts = keys.shape[0]
        queries = self.to_q(x).reshape(num_contexts, -1, x.shape[-1])  # b (f n) d
        out = scaled_dot_product_attention(self._split_heads(queries), keys, values)
        out = out.transpose(1, 2).reshape(x.shape)  # (b f) n d
        if keep is not None:
            out = out * keep.to(out.dtype)[:, None, None]
        return self.to_out[0](out)


def attend_to_self(attention: Attention, x: Tensor) -> Tensor:
    """Self attention over (b n d)."""
    return attention(x, attention.project_kv(x))


def sinusoidal_positions(num_positions: int, dim: int) -> Tensor:
    """Sine and cosine position table, (1 num_positions dim) float32, sine in even columns.

    Source: Vaswani et al. 2017, section 3.5.
    """
    frequencies = torch.exp(torch.arange(0, dim, 2) * (-torch.log(torch.tensor(10000.0)) / dim))
    angles = torch.arange(num_positions)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]
