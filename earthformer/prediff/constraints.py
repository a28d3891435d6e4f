"""Constraints from prior knowledge: a measure of a forecast's frames, and its target value.

Your own constraint is a subclass of `Constraint` with a `name`, passed to `register_constraint` or declared as an entry
point of that name in the group `earthbench.constraints`. It can then be used by name like the built-in ones.

Source: PreDiff, section 3.3 (knowledge alignment) and the constraints of its two experiments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

_FRAME_AXES = (2, 3, 4)
_GROUP = "earthbench.constraints"


@dataclass(frozen=True)
class Control:
    """Target of the measure; exactly one of the three is given.

    Attributes:
        sigmas: n in mean + n * standard deviation of the measure over the training sequences; a number, or a tensor
            with one per sequence of the batch (B,).
        times: k in k * that mean; likewise.
        value: the value itself, a number or a tensor with one row per sequence of the batch.
    """

    sigmas: float | Tensor | None = None
    times: float | Tensor | None = None
    value: float | Tensor | None = None

    def __post_init__(self) -> None:
        """Checks that exactly one is given.

        Raises:
            ValueError: none or several are given.
        """
        given = [name for name in ("sigmas", "times", "value") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"control: expected one of sigmas, times and value, found {', '.join(given) or 'none'}")


class Constraint(ABC):
    """A measure of frames, and how it is compared with its target.

    Attributes:
        name: name under which it is registered.
        values: number of values per frame.
        averaged: whether the mean over the frames is compared, rather than every frame.
        takes_labels: whether it needs labels of the frames beyond their pixels.
        follows_context: whether, without a control, the target is the measure of the context's last frame.
    """

    name: ClassVar[str]
    values: ClassVar[int] = 1
    averaged: ClassVar[bool] = True
    takes_labels: ClassVar[bool] = False
    follows_context: ClassVar[bool] = False

    @abstractmethod
    def measure(self, frames: Tensor, labels: Sequence[Tensor] = ()) -> Tensor:
        """Returns the measure (B, T, values) of frames (B, T, H, W, C) on the model's scale.

        Args:
            frames: the true future; missing pixels are NaN, and so is an unknown measure.
            labels: labels of these frames from the data set, (B, ...) each.

        Raises:
            ValueError: the measure needs labels and none are given.
        """

    def compared(self, measured: Tensor) -> Tensor:
        """Returns the values (B, K) to compare with a target, for measures or estimates (B, T, values)."""
        return measured.mean(dim=1) if self.averaged else measured.flatten(1)


ConstraintT = TypeVar("ConstraintT", bound=type[Constraint])
_REGISTERED: dict[str, type[Constraint]] = {}


def register_constraint(constraint: ConstraintT) -> ConstraintT:
    """Registers a constraint class under its ``name`` and returns it; usable as a decorator.

    Raises:
        ValueError: another class has this name.
    """
    known = _REGISTERED.setdefault(constraint.name, constraint)
    if known is not constraint:
        raise ValueError(f"constraint {constraint.name!r} is registered already, by {known.__qualname__}")
    return constraint


def constraint_names() -> list[str]:
    """Returns the names of all registered constraints."""
    return sorted({*_REGISTERED, *(point.name for point in entry_points(group=_GROUP))})


def make_constraint(name: str) -> Constraint:
    """Returns a registered constraint.

    Raises:
        ValueError: no constraint has this name.
    """
    for point in entry_points(group=_GROUP, name=name) if name not in _REGISTERED else ():
        _REGISTERED[name] = point.load()
    if name not in _REGISTERED:
        raise ValueError(f"constraint: expected one of {', '.join(constraint_names())}, found {name!r}")
    return _REGISTERED[name]()


@register_constraint
class MeanIntensity(Constraint):
    """The mean over all pixels, averaged over the forecast's frames: how much rain there is."""

    name = "mean_intensity"

    def measure(self, frames: Tensor, labels: Sequence[Tensor] = ()) -> Tensor:
        """Returns the mean over the known pixels of every frame (B, T, 1); NaN for a frame without any."""
        return frames.nanmean(dim=_FRAME_AXES).unsqueeze(-1)


@register_constraint
class Energy(Constraint):
    """The energy of a system of bodies, which every forecast frame should conserve from the context's last frame.

    Pixels do not show velocities, so the training data must have the energy of each target frame as a label; for a
    context the trained network estimates it.
    """

    name = "energy"
    averaged = False
    takes_labels = True
    follows_context = True

    def measure(self, frames: Tensor, labels: Sequence[Tensor] = ()) -> Tensor:
        """Returns the last label of shape (B, T) or (B, T, 1) as (B, T, 1)."""
        shape = tuple(frames.shape[:2])
        for label in reversed(labels):
            if tuple(label.shape) in (shape, (*shape, 1)):
                return label.reshape(*shape, 1).to(frames)
        found = ", ".join(str(tuple(label.shape)) for label in labels) or "none"
        raise ValueError(f"constraint 'energy': expected the energy of every frame as a label {shape}, found {found}")


def total_energy(
    position: Tensor,
    velocity: Tensor,
    *,
    mass: Tensor | float = 1.0,
    gravity: float = 0.05,
    softening: float = 10.0,
    exponent: int = 0,
) -> Tensor:
    """Returns the kinetic and potential energy (...) of bodies; the defaults are N-body MNIST's.

    The potential is that of the generator's acceleration G m (x_j - x_i) (r^2 + d^2)^(-(exponent + 1) / 2).

    Args:
        position: (..., N, D).
        velocity: (..., N, D), per unit of the time in which `gravity` is given.
        mass: masses of the bodies, (N,), or one for all.
        gravity: gravitational constant G.
        softening: softening length d.
        exponent: exponent of the force, 0, 1 or 2.

    Raises:
        ValueError: another exponent, or positions and velocities of different shapes.
    """
    if position.shape != velocity.shape or position.dim() < 2:
        raise ValueError(
            f"energy: expected positions and velocities (..., bodies, axes), found {tuple(position.shape)} and "
            f"{tuple(velocity.shape)}"
        )
    bodies = position.shape[-2]
    masses = torch.as_tensor(mass, dtype=position.dtype, device=position.device).expand(bodies)
    kinetic = 0.5 * (masses * velocity.square().sum(dim=-1)).sum(dim=-1)
    first, second = torch.triu_indices(bodies, bodies, offset=1, device=position.device)
    softened = (position[..., first, :] - position[..., second, :]).square().sum(dim=-1) + softening**2
    if exponent == 0:
        potential = softened.sqrt()
    elif exponent == 1:
        potential = 0.5 * softened.log()
    elif exponent == 2:
        potential = -softened.rsqrt()
    else:
        raise ValueError(f"exponent: expected 0, 1 or 2, found {exponent}")
    return kinetic + gravity * (masses[first] * masses[second] * potential).sum(dim=-1)
