"""Models that need sizes divisible by a number, on frames of any size: padded before the model, cropped after it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.api import Shape, Stage


def size_multiple(model_class: type, hyperparameters: Mapping[str, Any]) -> int:
    """Returns the divisor that a model declares for the height and width of frames; 1 if it declares none.

    Args:
        model_class: May have `size_multiple`, a number or a static method of the hyperparameters.
        hyperparameters: All of them, defaults included; 1 is returned for invalid ones, which the constructor reports.
    """
    found = getattr(model_class, "size_multiple", 1)
    try:
        multiple = found(hyperparameters) if callable(found) else found
        return multiple if isinstance(multiple, int) and multiple > 0 else 1
    except (TypeError, ValueError, KeyError, IndexError):
        return 1


def padded_shape(shape: Shape, multiple: int) -> Shape:
    """Returns `(T, H, W, C)` with height and width rounded up to multiples."""
    frames, height, width, channels = shape
    return frames, math.ceil(height / multiple) * multiple, math.ceil(width / multiple) * multiple, channels


@dataclass(frozen=True)
class PaddedStage:
    """A stage of a padded model: a `bench.api.Stage` on padded frames."""

    name: str
    module: nn.Module
    depends_on: Mapping[str, Any]
    prepare: Callable[[Iterable[Sequence[Tensor]]], None] | None
    load: Callable[[str | Path], None]


def pad_frames(model: Any, frame_size: Sequence[int], padded_size: Sequence[int]) -> None:
    """Makes a model, or the module of a stage, that was built for `padded_size` take frames of `frame_size`."""
    made: Any = type(model)
    model.__class__ = padding_class(made)
    model.frame_size, model.padded_size = tuple(frame_size), tuple(padded_size)


@functools.cache
def padding_class(model_class: Any) -> type[nn.Module]:
    """Returns a subclass of a model whose instances pad their input to `padded_size` and crop their output.

    Contexts repeat their edges.  Padded pixels of a target are NaN, so no loss has them, and those of a context count
    as unknown.  Frames that are padded already, by a call from the model's own methods, are passed on.  The modules of
    a model's stages are padded likewise, and their weights depend on the padded size.
    """

    def original_of(name: str) -> Any:
        return getattr(model_class, name)

    def outside(model: Any, frames: Tensor) -> bool:
        return tuple(frames.shape[-3:-1]) == model.frame_size

    def continued(model: Any, frames: Tensor) -> Tensor:
        import torch

        if not outside(model, frames):
            return frames
        (height, width), (rows, columns) = model.frame_size, model.padded_size
        down = torch.arange(rows, device=frames.device).clamp(max=height - 1)
        across = torch.arange(columns, device=frames.device).clamp(max=width - 1)
        return frames.index_select(-3, down).index_select(-2, across)

    def filled(model: Any, frames: Tensor, value: float | bool) -> Tensor:
        if not outside(model, frames):
            return frames
        (height, width), (rows, columns) = model.frame_size, model.padded_size
        whole = frames.new_full((*frames.shape[:-3], rows, columns, frames.shape[-1]), value)
        whole[..., :height, :width, :] = frames
        return whole

    def cropped(model: Any, frames: Any) -> Any:
        height, width = model.frame_size
        return frames[..., :height, :width, :]

    def forward(self: Any, context: Tensor, *rest: Any, **options: Any) -> Any:
        found = model_class.forward(self, continued(self, context), *rest, **options)
        return cropped(self, found) if outside(self, context) else found

    def loss(name: str) -> Any:
        original = original_of(name)

        @functools.wraps(original)
        def of_padded(self: Any, context: Tensor, target: Tensor, **options: Any) -> Any:
            if "context_known" in options:
                options["context_known"] = filled(self, options["context_known"], False)
            return original(self, continued(self, context), filled(self, target, math.nan), **options)

        return of_padded

    def sample(self: Any, context: Tensor, **options: Any) -> Any:
        return cropped(self, original_of("sample")(self, continued(self, context), **options))

    def padded(model: Any, batches: Iterable[Sequence[Tensor]]) -> Iterator[Sequence[Tensor]]:
        for context, target, *labels in batches:
            yield continued(model, context), filled(model, target, math.nan), *labels

    def fit(self: Any, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        original_of("fit")(self, padded(self, batches))

    def stages(self: Any) -> tuple[PaddedStage, ...]:
        return tuple(padded_stage(self, stage) for stage in original_of("stages")(self))

    def padded_stage(model: Any, stage: Stage) -> PaddedStage:
        pad_frames(stage.module, model.frame_size, model.padded_size)
        prepare = stage.prepare
        return PaddedStage(
            name=stage.name,
            module=stage.module,
            depends_on={**stage.depends_on, "padded_size": list(model.padded_size)},
            prepare=None if prepare is None else lambda batches: prepare(padded(model, batches)),
            load=stage.load,
        )

    methods: dict[str, Any] = {"forward": functools.wraps(model_class.forward)(forward)}
    for name in ("training_loss", "validation_loss"):
        if callable(getattr(model_class, name, None)):
            methods[name] = loss(name)
    for name, method in (("sample", sample), ("fit", fit), ("stages", stages)):
        if callable(getattr(model_class, name, None)):
            methods[name] = functools.wraps(getattr(model_class, name))(method)
    found = type(model_class.__name__, (model_class,), methods)
    # its name and source are those of the original
    found.__module__, found.__qualname__ = model_class.__module__, model_class.__qualname__
    found.__doc__ = model_class.__doc__
    return found
