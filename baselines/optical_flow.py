"""Optical flow: the last field, extrapolated along its own motion; a baseline without training.

Sources: Lucas and Kanade 1981, IJCAI, 674-679 (the motion); Germann and Zawadzki 2002, Mon. Wea. Rev. 130, 2859-2873
(semi-Lagrangian extrapolation); both as in pySTEPS (Pulkkinen et al. 2019, Geosci. Model Dev. 12, 4185-4219).
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from threading import Lock
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from baselines.blurred import Blurred
from baselines.shapes import checked_shapes

_ALONE = Lock()


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the side effects of pySTEPS: its output, its warnings and its use of global random state.

    All of these are global to the process, so only one thread at a time may enter.
    """
    with _ALONE, redirect_stdout(StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        states = random.getstate(), np.random.get_state()
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


try:
    with quiet():
        from pysteps.extrapolation.semilagrangian import extrapolate
        from pysteps.motion.lucaskanade import dense_lucaskanade
        from pysteps.nowcasts import steps as steps
except ImportError as error:
    raise ImportError("optical_flow and steps need pysteps: pip install 'earthbench[pysteps]'") from error


class OpticalFlow(nn.Module):
    """Estimates motion from the last frames by Lucas-Kanade and extrapolates semi-Lagrangian; runs on the CPU.

    It has nothing to train. Each channel has its own motion.  The least value of the last frame (no rain) flows in
    over the border and replaces missing pixels (NaN) of the context.  If nothing can be tracked, the field stays as it
    is.

    Args:
        input_shape: `(T_in, H, W, C)`, at least two frames.
        target_shape: `(T_out, H, W, C)`, with the same H, W and C.
        frames: Number of last context frames from which the motion is estimated; fewer if the context has fewer.

    Raises:
        ValueError: frames of context and target differ in shape, or the motion is estimated from one frame.
    """

    uncountable: ClassVar[str] = "OpenCV and NumPy do the work, where a trace of torch's operations sees none of it"

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        target_shape: tuple[int, int, int, int],
        frames: int = 3,
    ) -> None:
        super().__init__()
        context, target = checked_shapes("optical_flow", input_shape, target_shape, feeds_back=True)
        self.t_out = target[0]
        self.frames = min(frames, context[0])
        if self.frames < 2:
            raise ValueError(f"optical_flow: motion takes two frames or more, got frames={frames}, t_in={context[0]}")

    @torch.no_grad()
    def forward(self, context: Tensor) -> Tensor:
        """Returns `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`."""
        fields = context[:, -self.frames :].permute(0, 4, 1, 2, 3).double().cpu().numpy()
        moved = np.stack([[extrapolated(channel, self.t_out) for channel in sequence] for sequence in fields])
        return torch.from_numpy(moved).permute(0, 2, 3, 4, 1).to(context)


class OpticalFlowBlurred(Blurred):
    """Optical flow, blurred by a Gaussian with one width per lead time; the widths are fitted in one pass.

    Args:
        input_shape: `(T_in, H, W, C)`, at least two frames.
        target_shape: `(T_out, H, W, C)`, with the same H, W and C.
        frames: Number of last context frames from which the motion is estimated; fewer if the context has fewer.

    Raises:
        ValueError: frames of context and target differ in shape, or the motion is estimated from one frame.
    """

    uncountable: ClassVar[str] = OpticalFlow.uncountable

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        target_shape: tuple[int, int, int, int],
        frames: int = 3,
    ) -> None:
        super().__init__(OpticalFlow(input_shape, target_shape, frames), target_shape[0])


def extrapolated(frames: np.ndarray, t_out: int) -> np.ndarray:
    """Returns forecasts `(T_out, H, W)`: the last of the frames `(T, H, W)`, extrapolated along their motion."""
    least = np.nanmin(frames[-1]) if np.isfinite(frames[-1]).any() else 0.0
    frames = np.where(np.isfinite(frames), frames, least)
    with quiet():
        return extrapolate(frames[-1], dense_lucaskanade(frames), t_out, outval=least)
