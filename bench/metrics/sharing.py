"""What several metrics compute from one pair of tensors, computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor

Result = TypeVar("Result")
_known: ContextVar[dict[tuple[Any, ...], Any] | None] = ContextVar("_known", default=None)


@contextmanager
def shared_work() -> Iterator[None]:
    """Within the block, a `@shared` function called again with the same tensors gives what it gave before.

    Whoever opens the block promises that the tensors do not change in it; they are kept until it ends.
    """
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def shared(function: Callable[..., Result]) -> Callable[..., Result]:
    """Returns a function of tensors and hashable values that remembers its results within `shared_work()`."""

    @functools.wraps(function)
    def remembered(*arguments: Any) -> Result:
        known = _known.get()
        if known is None:
            return function(*arguments)
        key = (function, *((Tensor, id(a)) if isinstance(a, Tensor) else a for a in arguments))
        if key not in known:
            # the arguments stay with the result: the id of a tensor that is gone may be another's
            known[key] = arguments, function(*arguments)
        found: Result = known[key][1]
        return found

    return remembered
