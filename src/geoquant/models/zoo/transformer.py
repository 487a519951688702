"""An encoder-only Transformer with every projection under its own name.

Queries, keys, values and outputs are separate layers (``layers.0.attention.q`` …), as is the feed-forward
pair (``layers.0.feed_forward.up``, ``.down``), so that components can be compared. Layer norm comes before each half
(arXiv:2002.04745); positions are learned; the mean over real tokens is classified.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geoquant.errors import ModelError
from geoquant.models.zoo.catalogue import ZOO


class SelfAttention(nn.Module):
    """Multi-head self-attention with separate projections q, k, v and o of shape (width, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ModelError(f"the width {width} does not divide into {heads} heads; choose a multiple")
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map (N, T, width) to the same shape; `keep` (N, 1, 1, T) is False at padding."""
        query, key, value = (self._split(project(x)) for project in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keep)
        return self.o(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers, up and down, with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each behind a layer norm and inside a residual."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Map (N, T, width) to the same shape."""
        x = x + self.attention(self.attention_norm(x), keep)
        return x + self.feed_forward(self.feed_forward_norm(x))  # type: ignore[no-any-return]


class TransformerClassifier(nn.Module):
    """Token and position embeddings, `depth` encoder layers, and a linear head on the mean token."""

    def __init__(
        self,
        vocabulary: int = 256,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        hidden: int = 512,
        context: int = 128,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map token ids (N, T) to logits (N, classes); `attention_mask` (N, T) is 0 at padding."""
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        keep = None if attention_mask is None else attention_mask.bool()
        for layer in self.layers:
            x = layer(x, None if keep is None else keep[:, None, None, :])
        x = self.norm(x)
        if keep is None:
            return self.head(x.mean(1))  # type: ignore[no-any-return]
        weight = keep.to(x)[..., None]
        return self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1))  # type: ignore[no-any-return]


@ZOO.add("transformer6")
def transformer6(
    vocabulary: int = 256,
    width: int = 128,
    heads: int = 4,
    hidden: int = 512,
    context: int = 128,
    classes: int = 2,
) -> TransformerClassifier:
    """Build the 6-layer encoder; by default it reads bytes.

    >>> sum(p.numel() for p in transformer6().parameters())
    1239298
    """
    return TransformerClassifier(vocabulary, width, 6, heads, hidden, context, classes)
