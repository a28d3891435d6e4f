"""Roll-outs of the recurrent models: two formulations, and the code around a recurrent core."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from baselines.masking import filled, joined_truth
from baselines.patches import STEM_STRIDE, PatchCodec
from baselines.sampling import SamplingSchedule
from baselines.shapes import checked_shapes

# On a CPU, tensors that exceed the cache (and, from 32 MiB on, are newly allocated each time) cost more than a
# larger batch saves: without this limit, ConvLSTM's forecasts on SEVIR grids took 1.3 times as long as step by
# step. On N-body MNIST grids, limits from 8 to 32 MiB give the same gain.
CPU_TENSOR_BYTES = 16 * 2**20


class HasReference(nn.Module):
    """A model whose roll-out exists twice, with the same weights: fast, and plain step by step.

    The plain form computes at every step everything in the paper's equations, and nothing ahead of time.
    Published operation counts refer to it, and tests compare the fast form with it.
    """

    def __init__(self) -> None:
        """Starts with the fast formulation."""
        super().__init__()
        self.plain = False

    @contextmanager
    def reference(self) -> Iterator[Self]:
        """Returns a context in which the model runs its plain formulation."""
        before, self.plain = self.plain, True
        try:
            yield self
        finally:
            self.plain = before


class NextFrameModel(HasReference):
    """A model that predicts the next frame at each of T_in + T_out - 1 steps, from the truth or from itself.

    A family supplies the two formulations of its roll-out, `_roll` and `_roll_plain`, and its `losses`.
    """

    # The steps within the context have a loss, too: `training_loss` takes `context_known`.
    verifies_context = True

    @staticmethod
    def size_multiple(hyperparameters: Mapping[str, Any]) -> int:
        """Returns what height and width must be divisible by."""
        return hyperparameters["patch_size"] * (STEM_STRIDE if hyperparameters["stem_channels"] else 1)

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        patch_size: int,
        stem_channels: int,
        schedule: SamplingSchedule,
        time_reversed: bool,
    ) -> None:
        """Builds everything but the recurrent core; for the arguments see the families.

        Raises:
            ValueError: The shapes do not fit together, or a grid size is not divisible by the patch.
        """
        super().__init__()
        name = type(self).__name__
        source, target = checked_shapes(name, input_shape, target_shape, feeds_back=True)
        self.t_in, self.t_out = source[0], target[0]
        self.schedule = schedule
        self.time_reversed = time_reversed
        self.codec = PatchCodec(name, source[1:], patch_size=patch_size, stem_channels=stem_channels)

    @abstractmethod
    def losses(
        self, context: Tensor, target: Tensor, mask: Tensor | None = None, truth: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the terms of one roll-out's loss; shapes and errors are those of `step_outputs`.

        Args:
            context: See `step_outputs`.
            target: See `step_outputs`; missing pixels (NaN) are read as 0.
            mask: See `step_outputs`.
            truth: Frames that all steps are compared with (B, T_in + T_out, H, W, C), NaN has no loss; None for
                context and target.
        """

    @abstractmethod
    def _roll(self, clip: Tensor, mask: Tensor | None, *, first_output: int = 0) -> Tensor:
        """Returns the predictions of an opened clip, time first, from step `first_output` < T_in on."""

    @abstractmethod
    def _roll_plain(self, clip: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the predictions of all steps, time first, one frame through all layers at a time."""

    def forward(self, context: Tensor) -> Tensor:
        """Returns the forecast (B, T_out, H, W, C) of a context (B, T_in, H, W, C), by free roll-out."""
        clip = self.codec.open(context)
        if self.plain:
            return self.codec.close(self._roll_plain(clip, None)[self.t_in - 1 :])
        return self.codec.close(self._roll(clip, None, first_output=self.t_in - 1))

    def step_outputs(self, context: Tensor, target: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Returns the predictions (B, T_in + T_out - 1, H, W, C) of all steps; step t predicts frame t + 1.

        Args:
            context: Context (B, T_in, H, W, C).
            target: Target (B, T_out, H, W, C); needed with a mask. Missing pixels (NaN) are read as 0.
            mask: Flags, 1 where the truth is read: (B, T_out - 1) for the steps t >= T_in (scheduled
                sampling) or (B, T_in + T_out - 2) for the steps t >= 1 (reverse scheduled sampling).
                None: a free roll-out.

        Raises:
            ValueError: A mask without a target, or with neither number of flags.
        """
        if mask is not None and target is None:
            raise ValueError(f"{type(self).__name__}: a mask needs a target to read the truth from")
        clip = self.codec.open(filled(context if target is None else torch.cat((context, target), dim=1)))
        return self.codec.close((self._roll_plain if self.plain else self._roll)(clip, mask))

    def training_loss(
        self, context: Tensor, target: Tensor, *, step: int, total_steps: int, context_known: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the loss terms over known pixels; the schedule decides what this step (from 0) reads.

        Source: `reverse_input` in the trainers of github.com/thuml/predrnn-pytorch and
        github.com/google/e3d_lstm gives the time-reversed clip its own optimiser step after that of the clip.
        With our `time_reversed` every second step is on reversed clips. These are of the next batch, since a batch
        is seen once, so a run needs twice the steps to see as many clips.
        """
        mask = self.schedule.draw(len(context), self.t_in, self.t_out, step=step, total_steps=total_steps)
        truth = joined_truth(context, target, context_known)
        if self.time_reversed and step % 2:
            backwards, truth = torch.cat((context, target), dim=1).flip(1), truth.flip(1)
            context, target = backwards[:, : self.t_in], backwards[:, self.t_in :]
        return self.losses(context, target, None if mask is None else mask.to(context.device, non_blocking=True), truth)


def each_frame(layer: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
    """Returns a layer's outputs (T, B, ...) for frames (T, B, C, H, W), processed as one batch of T x B."""
    outputs = layer(frames.flatten(0, 1))
    return outputs.reshape(*frames.shape[:2], *outputs.shape[1:])


def frames_at_once(frames: Tensor, elements: int) -> int:
    """Returns how many of the frames (T, B, ...) to process at once; limited on a CPU, to keep tensors small.

    Args:
        frames: Frames that are all known.
        elements: Elements of the largest tensor that one frame of one sample becomes.
    """
    if frames.device.type != "cpu":
        return len(frames)
    return max(1, CPU_TENSOR_BYTES // (elements * int(frames.shape[1]) * frames.element_size()))
