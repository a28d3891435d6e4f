"""The position-wise feed-forward layer between attention layers.

Source: Earthformer, section 3.1; the gated variant after Shazeer 2020, "GLU Variants Improve Transformer".
"""

from __future__ import annotations

from torch import Tensor, nn

from earthformer import kernels
from earthformer.initialization import init_linear
from earthformer.normalization import NORM_EPS, make_activation, make_norm
from earthformer.paths import TwoPaths


class FeedForward(TwoPaths):
    """Two linear layers with an activation, dropout, a norm and the residual."""

    def __init__(
        self,
        units: int = 512,
        hidden_size: int = 2048,
        activation_dropout: float = 0.0,
        dropout: float = 0.1,
        gated_proj: bool = False,
        activation: str = "relu",
        normalization: str = "layer_norm",
        layer_norm_eps: float = NORM_EPS,
        pre_norm: bool = False,
        linear_init_mode: str = "0",
        norm_init_mode: str = "0",
    ) -> None:
        """Make the layer for tokens of `units` channels; `pre_norm` puts the norm before it, else behind the residual.

        Raises:
            ValueError: unknown activation, norm or initialisation mode.
        """
        super().__init__()
        self.pre_norm = pre_norm
        self.gated_proj = gated_proj
        self.dropout_layer = nn.Dropout(dropout)
        self.activation_dropout_layer = nn.Dropout(activation_dropout)
        self.ffn_1 = nn.Linear(units, hidden_size)
        if gated_proj:
            self.ffn_1_gate = nn.Linear(units, hidden_size)
        self.activation = make_activation(activation)
        self.ffn_2 = nn.Linear(hidden_size, units)
        self.layer_norm = make_norm(normalization, units, eps=layer_norm_eps, mode=norm_init_mode)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                init_linear(layer, linear_init_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (..., C) plus its transformation."""
        u = self.layer_norm(x) if self.pre_norm else x
        out = x + self._plain(u) if self.plain else kernels.add_residual(x, self._fast(u))
        return out if self.pre_norm else self.layer_norm(out)

    def _plain(self, x: Tensor) -> Tensor:
        if self.gated_proj:
            hidden = self.activation(self.ffn_1_gate(x)) * self.ffn_1(x)
        else:
            hidden = self.activation(self.ffn_1(x))
        out: Tensor = self.dropout_layer(self.ffn_2(self.activation_dropout_layer(hidden)))
        return out

    def _fast(self, x: Tensor) -> Tensor:
        first, activation = self.ffn_1, self.activation
        if self.gated_proj:
            gate = kernels.linear(x, self.ffn_1_gate.weight, self.ffn_1_gate.bias, activation)
            hidden = gate * kernels.linear(x, first.weight, first.bias)
        else:
            hidden = kernels.linear(x, first.weight, first.bias, activation)
        hidden = kernels.dropout(hidden, self.activation_dropout_layer.p if self.training else 0.0)
        out = kernels.linear(hidden, self.ffn_2.weight, self.ffn_2.bias)
        return kernels.dropout(out, self.dropout_layer.p if self.training else 0.0)
