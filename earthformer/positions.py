"""Learned position embeddings.

Source: Earthformer, section 3.2; variants as in the authors' released code.
"""

from __future__ import annotations

from torch import Tensor, nn

from earthformer.initialization import EMBEDDING_STD

POSITION_TYPES = ("t+h+w", "t+hw")


class PositionEmbedding(nn.Module):
    """Add a learned vector per frame and per row and column (``t+h+w``), or per frame and pixel (``t+hw``)."""

    def __init__(self, embed_dim: int, max_t: int, max_h: int, max_w: int, kind: str = "t+h+w") -> None:
        """Make tables for grids of at most `max_t` x `max_h` x `max_w`.

        Raises:
            ValueError: unknown `kind`.
        """
        super().__init__()
        self.kind = kind
        self.limits = (max_t, max_h, max_w)
        self.T_embed = nn.Embedding(max_t, embed_dim)
        if kind == "t+h+w":
            self.H_embed = nn.Embedding(max_h, embed_dim)
            self.W_embed = nn.Embedding(max_w, embed_dim)
        elif kind == "t+hw":
            self.HW_embed = nn.Embedding(max_h * max_w, embed_dim)
        else:
            raise ValueError(f"pos_embed_type: expected one of {', '.join(POSITION_TYPES)}, found {kind!r}")
        for table in self.children():
            assert isinstance(table, nn.Embedding)
            nn.init.trunc_normal_(table.weight, std=EMBEDDING_STD)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (B, T, H, W, C) with the embedding of its place added to each token.

        Raises:
            ValueError: the grid of `x` is larger than the tables.
        """
        t, h, w = (int(size) for size in x.shape[1:4])
        max_t, max_h, max_w = self.limits
        if t > max_t or h > max_h or w > max_w:
            raise ValueError(f"position embedding: expected at most (T, H, W) = {self.limits}, found {(t, h, w)}")
        frames = self.T_embed.weight[:t, None, None]
        if self.kind == "t+hw":
            return x + (frames + self.HW_embed.weight.unflatten(0, (max_h, max_w))[:h, :w])
        return x + (frames + (self.H_embed.weight[:h, None] + self.W_embed.weight[:w]))
