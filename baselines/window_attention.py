"""Window attention as Rainformer has it: Swin blocks with an extra channel attention.

Papers: Z. Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021
(arXiv:2103.14030); C. Bai et al., "Rainformer", IEEE GRSL 19, 2022 (doi.org/10.1109/LGRS.2022.3162882).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Channel attention squeezes channels by this factor.
SQUEEZE = 16
# The channel attention inside a window block does not squeeze below this width.
LEAST_SQUEEZED = 10


def squeezing(channels: int, squeezed: int) -> nn.Sequential:
    """Returns the two-layer perceptron of a channel attention, over pooled channels (N, C, 1, 1)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels))


class ChannelAttention(nn.Module):
    """Scales channels by their pooled mean and maximum, each of which passes its own perceptron."""

    def __init__(self, channels: int) -> None:
        """Builds the attention for images (N, C, H, W)."""
        super().__init__()
        squeezed = channels // SQUEEZE
        squeezed = squeezed if squeezed >= LEAST_SQUEEZED else channels
        self.MLP1 = squeezing(channels, squeezed)
        self.MLP2 = squeezing(channels, squeezed)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the scaled images (N, C, H, W)."""
        logits = self.MLP1(F.adaptive_avg_pool2d(x, 1)) + self.MLP2(F.adaptive_max_pool2d(x, 1))
        return x * torch.sigmoid(logits)[:, :, None, None]


class WindowAttention(nn.Module):
    """Self-attention within square windows, shifted by half a window or not, then channel attention.

    Source: Swin Transformer (shifted windows), in the form of Rainformer's code
    (github.com/Zjut-MultimediaPlus/Rainformer): all heads share one table of relative positions, and the
    masks are stored among the weights.
    """

    def __init__(self, channels: int, *, heads: int, head_dim: int, window: int, shifted: bool) -> None:
        """Builds the attention for channels-last images (N, H, W, C)."""
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.window = window
        self.shift = window // 2 if shifted else 0
        y = torch.arange(window).repeat_interleave(window)
        x = torch.arange(window).repeat(window)
        self.upper_lower_mask: nn.Parameter | None = None
        self.left_right_mask: nn.Parameter | None = None
        if shifted:
            # After the roll, the last rows (columns) of the last windows come from the opposite edge of the image.
            self.upper_lower_mask = nn.Parameter(_separation(y >= window - self.shift), requires_grad=False)
            self.left_right_mask = nn.Parameter(_separation(x >= window - self.shift), requires_grad=False)
        self.pos_embedding = nn.Parameter(torch.randn(2 * window - 1, 2 * window - 1))
        self.row_offset: Tensor
        self.column_offset: Tensor
        self.register_buffer("row_offset", y[None, :] - y[:, None] + window - 1, persistent=False)
        self.register_buffer("column_offset", x[None, :] - x[:, None] + window - 1, persistent=False)
        self.to_qkv = nn.Linear(channels, 3 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, channels)
        self.ca = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the attended images (N, H, W, C)."""
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        n, height, width, _ = x.shape
        s = self.window
        rows, columns = height // s, width // s
        qkv = self.to_qkv(x).reshape(n, rows, s, columns, s, 3, self.heads, self.head_dim)
        # 3 N rows columns heads tokens head_dim
        q, k, v = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).unbind(0)
        logits = torch.matmul(q * self.head_dim**-0.5, k.transpose(-1, -2))
        logits = logits + self.pos_embedding[self.row_offset, self.column_offset]
        if self.upper_lower_mask is not None and self.left_right_mask is not None:
            logits[:, -1] += self.upper_lower_mask
            logits[:, :, -1] += self.left_right_mask
        out = torch.matmul(logits.softmax(dim=-1), v)
        out = (
            out.reshape(n, rows, columns, self.heads, s, s, -1)
            .permute(0, 1, 4, 2, 5, 3, 6)
            .reshape(n, height, width, -1)
        )
        out = self.to_out(out)
        if self.shift:
            out = torch.roll(out, (self.shift, self.shift), dims=(1, 2))
        return self.ca(out.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _separation(late: Tensor) -> Tensor:
    """Returns a mask: -inf between tokens of which exactly one is late, 0 elsewhere."""
    return torch.zeros(len(late), len(late)).masked_fill(late[:, None] != late[None, :], -math.inf)


class _FeedForward(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class _PreNorm(nn.Module):
    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class _Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(x)


class SwinBlock(nn.Module):
    """Window attention and a perceptron, each after a layer norm and with a skip connection.

    Source: Swin Transformer (successive blocks).
    """

    def __init__(self, channels: int, attention: WindowAttention, mlp_hidden: int) -> None:
        """Builds the block for channels-last images (N, H, W, C)."""
        super().__init__()
        self.attention_block = _Residual(_PreNorm(channels, attention))
        self.mlp_block = _Residual(_PreNorm(channels, _FeedForward(channels, mlp_hidden)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns images (N, H, W, C) of the same shape."""
        return self.mlp_block(self.attention_block(x))
