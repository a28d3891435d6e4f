"""How weights start: the modes of the authors' configs, and layers that keep torch's defaults.

Source: the authors' released code; modes are named as in their configs ("0" everywhere in the released ones).
"""

from __future__ import annotations

from torch import nn

LINEAR_MODES = ("0", "1")
ONLY_MODE = ("0",)
EMBEDDING_STD = 0.02
# Slope of the leaky rectifier that fan-out initialisation assumes.
LEAKY_SLOPE = 0.1


def check_mode(mode: str | int, known: tuple[str, ...], argument: str) -> str:
    """Return `mode` as a string if it is one of `known`.

    Raises:
        ValueError: it is not; `argument` names it.
    """
    if str(mode) not in known:
        raise ValueError(f"{argument}: expected one of {', '.join(known)}, found {mode!r}")
    return str(mode)


def init_linear(layer: nn.Linear, mode: str = "0") -> None:
    """Draw the weights of a linear layer from N(0, 1/fan_in) (mode "0") or Kaiming fan-out (mode "1"); bias 0.

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
    """Draw the weights of a convolution from the Kaiming normal distribution (fan-out); bias 0.

    Raises:
        ValueError: unknown mode.
    """
    check_mode(mode, ONLY_MODE, "conv_init_mode")
    nn.init.kaiming_normal_(layer.weight, a=LEAKY_SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
