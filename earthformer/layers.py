"""The small layers: initialisation, norms, activations, feed-forward layers and position embeddings.

Source: Earthformer, section 3; initialisation, names and constants as in the authors' released code, whose configs name
the modes of initialisation ("0" everywhere in the released ones).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earthformer.options import Options

FFN_EXPANSION = 4
NORM_EPS = 1e-5
POSITION_TYPES = ("t+h+w", "t+hw")
LINEAR_MODES = ("0", "1")
ONLY_MODE = ("0",)
EMBEDDING_STD = 0.02
CACHED_ELEMENTS = 2**20  # hidden activations computed at a time on a CPU: 4 MiB in float32
# Slope of the leaky rectifier that fan-out initialisation assumes.
LEAKY_SLOPE = 0.1


def check_mode(mode: str | int, known: tuple[str, ...], argument: str) -> str:
    """Returns `mode` as a string if it is one of `known`.

    Raises:
        ValueError: it is not; `argument` names it.
    """
    if str(mode) not in known:
        raise ValueError(f"{argument}: expected one of {', '.join(known)}, found {mode!r}")
    return str(mode)


def init_linear(layer: nn.Linear, mode: str = "0") -> None:
    """Draws the weights of a linear layer from N(0, 1/fan_in) (mode "0") or Kaiming fan-out (mode "1"); bias 0.

    Raises:
        ValueError: unknown mode.
    """
    if check_mode(mode, LINEAR_MODES, "linear_init_mode") == "0":
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="linear")
    else:
        nn.init.kaiming_normal_(layer.weight, a=LEAKY_SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_conv(layer: nn.Conv2d, mode: str = "0") -> None:
    """Draws the weights of a convolution from the Kaiming normal distribution (fan-out); bias 0.

    Raises:
        ValueError: unknown mode.
    """
    check_mode(mode, ONLY_MODE, "conv_init_mode")
    nn.init.kaiming_normal_(layer.weight, a=LEAKY_SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class RMSNorm(nn.Module):
    """Divides by the root mean square over the channels and scales.

    The epsilon is added to the root, not under it as in ``torch.nn.RMSNorm``: checkpoints depend on that.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", equation 4.
    """

    def __init__(self, channels: int, eps: float = NORM_EPS) -> None:
        """Starts with scale 1 for each of `channels`."""
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised `x` (..., C)."""
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return self.scale * (x / (root + self.eps))


def make_norm(name: str, channels: int, *, eps: float = NORM_EPS, mode: str = "0") -> nn.Module:
    """Returns a norm over `channels`: ``layer_norm`` or ``rms_norm``.

    Raises:
        ValueError: unknown name or initialisation mode.
    """
    check_mode(mode, ONLY_MODE, "norm_init_mode")
    if name == "layer_norm":
        return nn.LayerNorm(channels, eps=eps)
    if name == "rms_norm":
        return RMSNorm(channels, eps=eps)
    raise ValueError(f"norm_layer: expected layer_norm or rms_norm, found {name!r}")


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(LEAKY_SLOPE),
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softrelu": nn.Softplus,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "identity": nn.Identity,
}


def make_activation(name: str) -> nn.Module:
    """Returns the activation that configs call `name`.

    Raises:
        ValueError: unknown name.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(_ACTIVATIONS)}, found {name!r}")
    return _ACTIVATIONS[name]()


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Returns `x` with each element zeroed with probability `p` in training, and the others scaled by 1 / (1 - p)."""
    if not training or p == 0 or p == 1 or x.device.type != "cpu":
        return F.dropout(x, p, training)
    # On CPUs, a uniform draw takes half the time of a Bernoulli draw, and multiplying by numbers is faster than by
    # booleans, forward and backward.
    return x * torch.rand(x.shape).ge_(p).to(x.dtype).mul_(1 / (1 - p))


class Dropout(nn.Dropout):
    """`dropout` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` (any shape), in training with elements dropped."""
        return dropout(x, self.p, self.training)


class FeedForward(nn.Module):
    """Two linear layers with an activation, dropout, a norm and the residual.

    Source: Earthformer, section 3.1; the gated variant after Shazeer 2020, "GLU Variants Improve Transformer".
    """

    def __init__(
        self,
        options: Options,
        units: int,
        *,
        hidden_size: int | None = None,
        activation_dropout: float | None = None,
        eps: float = NORM_EPS,
        pre_norm: bool = True,
    ) -> None:
        """Makes the layer for tokens of `units` channels.

        Args:
            options: hyperparameters of the model.
            units: input and output channels.
            hidden_size: hidden channels, by default four times `units`.
            activation_dropout: dropout after the activation, by default the same as after the layer.
            eps: epsilon of the norm.
            pre_norm: whether the norm is before the layer rather than after the residual.

        Raises:
            ValueError: unknown activation, norm or initialisation mode.
        """
        super().__init__()
        hidden_size = FFN_EXPANSION * units if hidden_size is None else hidden_size
        self.pre_norm = pre_norm
        self.dropout_layer = Dropout(options.ffn_drop)
        self.activation_dropout_layer = Dropout(options.ffn_drop if activation_dropout is None else activation_dropout)
        self.ffn_1 = nn.Linear(units, hidden_size)
        self.ffn_1_gate = nn.Linear(units, hidden_size) if options.gated_ffn else None
        self.activation = make_activation(options.ffn_activation)
        self.ffn_2 = nn.Linear(hidden_size, units)
        self.layer_norm = make_norm(options.norm_layer, units, eps=eps, mode=options.norm_init_mode)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                init_linear(layer, options.ffn_linear_init_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` (..., C) plus its transformation."""
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.transform(x)
        # For forecasts on a CPU: some tokens at a time, so that their hidden activations stay in the cache.
        tokens = max(1, CACHED_ELEMENTS // self.ffn_1.out_features)
        return torch.cat([self.transform(part) for part in x.reshape(-1, x.shape[-1]).split(tokens)]).view(x.shape)

    def transform(self, x: Tensor) -> Tensor:
        """Returns `forward(x)`, computed for all tokens at once."""
        u = self.layer_norm(x) if self.pre_norm else x
        if self.ffn_1_gate is None:
            hidden = self.activation(self.ffn_1(u))
        else:
            hidden = self.activation(self.ffn_1_gate(u)) * self.ffn_1(u)
        out: Tensor = x + self.dropout_layer(self.ffn_2(self.activation_dropout_layer(hidden)))
        return out if self.pre_norm else self.layer_norm(out)


class PositionEmbedding(nn.Module):
    """Adds a learned vector per frame and per row and column (``t+h+w``), or per frame and pixel (``t+hw``)."""

    def __init__(self, embed_dim: int, max_t: int, max_h: int, max_w: int, kind: str = "t+h+w") -> None:
        """Makes tables for grids of at most `max_t` x `max_h` x `max_w`.

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
        """Returns `x` (B, T, H, W, C) with the embedding of its position added to each token.

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


class HasReference(nn.Module):
    """A model with a plain formulation: the one whose cost the papers report.

    Attributes:
        plain: whether ``forward`` runs the plain formulation; set by `reference`.
    """

    plain: bool = False

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Returns a context in which this model runs the plain formulation; see `earthformer.reference`."""
        from earthformer.reference import plain_formulation  # counting alone needs it

        with plain_formulation(self):
            yield
