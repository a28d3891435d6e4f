"""The contract that any constraint of knowledge alignment must keep."""

from __future__ import annotations

import re
from typing import Any

import torch

from bench.errors import ContractError, one_message

_SHAPE = (3, 4, 16, 24, 1)  # B, T, H, W, C


def check_constraint(constraint_class: type) -> Any:
    """Returns a constraint that passed every check of the contract, `earthformer.prediff.constraints.Constraint`.

    Checked: its name; measures have the shape `(B, T, values)`, are independent per sequence, finite if all pixels are
    known and not infinite if some or all are missing (NaN); frames are not changed.  For a constraint that takes
    labels, only the name is checked.

    Args:
        constraint_class: Class of the constraint.

    Raises:
        ContractError: checks failed; the message lists all of them.
    """
    missing = [name for name in ("name", "measure", "compared") if not hasattr(constraint_class, name)]
    if missing:
        raise ContractError(f"{constraint_class!r} is not a constraint: it has no {', '.join(missing)}")
    constraint: Any = constraint_class()
    problems: list[str] = []
    if not re.fullmatch(r"[a-z][a-z0-9_]*", str(constraint.name)):
        problems.append(f"name: expected a-z, 0-9 and _, found {constraint.name!r}")
    if not constraint.takes_labels:
        _measures(constraint, problems)
    if problems:
        raise ContractError(
            one_message(f"constraint {constraint_class.__name__} does not keep the contract:", problems)
        )
    return constraint


def _measures(constraint: Any, problems: list[str]) -> None:
    frames = torch.rand(_SHAPE, generator=torch.Generator().manual_seed(0))
    given, expected = frames.clone(), (*_SHAPE[:2], constraint.values)
    measured = constraint.measure(frames)
    if tuple(measured.shape) != expected:
        problems.append(f"measure: expected (B, T, values) = {expected}, found {tuple(measured.shape)}")
        return
    if not torch.equal(frames, given):
        problems.append("measure changed the frames")
    if not torch.isfinite(measured).all():
        problems.append("measure: expected finite values of frames without missing pixels")
    if not torch.allclose(constraint.measure(frames[1:2]), measured[1:2], equal_nan=True):
        problems.append("measure: a sequence's depends on the others of its batch")
    for what, part in (("some", slice(0, 8)), ("all", slice(None))):
        frames = given.clone()
        frames[:, :, part] = torch.nan
        if torch.isinf(constraint.measure(frames)).any():
            problems.append(f"measure: expected a number or NaN of frames where {what} pixels are missing, found inf")
    if constraint.compared(measured).shape[:1] != measured.shape[:1]:
        problems.append("compared: expected a row for each sequence of the batch")
