"""PreDiff with knowledge alignment: forecasts steered by prior knowledge.

Source: PreDiff, section 3.3; settings as in the authors' released code.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from earthformer.prediff.alignment import NORMS, SCALINGS, Guidance, KnowledgeAlignment, NoisyEncoder
from earthformer.prediff.constraints import Constraint, Control, make_constraint
from earthformer.prediff.diffusion import NoiseSchedule
from earthformer.prediff.model import PreDiff
from earthformer.prediff.noise import RowNoise
from earthformer.prediff.sampling import Guide
from earthformer.prediff.stages import AlignmentStage, Stage


class PreDiffKA(PreDiff):
    """PreDiff with knowledge alignment: members are guided to agree with a constraint."""

    evaluation_only: ClassVar[tuple[str, ...]] = (
        *PreDiff.evaluation_only, "control", "control_as", "guide_scale", "guide_norm", "guide_scaling",
    )  # fmt: skip
    # Literals, because listing commands read them from the source without importing it; "tiny" repeats PreDiff's.
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir_lr": {},
        "nbody_mnist": {"constraint": "energy", "control": None},
        "tiny": {
            "latent_channels": 4,
            "autoencoder_channels": [8, 8, 8],
            "autoencoder_layers": 1,
            "autoencoder_groups": 4,
            "base_units": 8,
            "depth": [1],
            "num_heads": 2,
            "sampler": "dpm_solver++",
            "steps": 2,
            "members": 2,
            "alignment_units": 8,
            "alignment_depth": [1],
            "control": 0.5,
            "control_as": "value",
        },
    }

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        constraint: str = "mean_intensity",
        control: float | Sequence[float] | None = (-2.0, 2.0),
        control_as: str = "sigmas",
        guide_scale: float = 50.0,
        guide_norm: str = "sample",
        guide_scaling: str = "sigma",
        alignment_units: int = 128,
        alignment_depth: Sequence[int] = (1, 1),
        **hyperparameters: Any,
    ) -> None:
        """Makes the networks.

        Args:
            input_shape: T, H, W, C of the context.
            target_shape: T, H, W, C of the target.
            constraint: name of a registered constraint: ``mean_intensity``, ``energy``, or your own.
            control: target of the guidance in `forward` and, by default, in `sample`: a number, or a range from which
                every member draws its own (the paper's row has targets within two standard deviations), or None for a
                constraint that follows the context.
            control_as: meaning of the number: ``sigmas``, ``times`` or ``value``, see `Control`.
            guide_scale: strength of the guidance.
            guide_norm: ``sample`` or, as in the authors' code, ``batch``: one distance for all members of a sequence,
                which then depend on one another.
            guide_scaling: ``sigma`` as in the authors' code, or ``variance`` as in the paper.
            alignment_units: channels of the alignment network's finest level.
            alignment_depth: attention blocks of its levels.
            **hyperparameters: hyperparameters of `PreDiff`.

        Raises:
            ValueError: shapes or hyperparameters do not fit.
        """
        super().__init__(input_shape, target_shape, **hyperparameters)
        if control_as not in ("sigmas", "times", "value"):
            raise ValueError(f"control_as: expected sigmas, times or value, found {control_as!r}")
        for name, given, known in (("guide_norm", guide_norm, NORMS), ("guide_scaling", guide_scaling, SCALINGS)):
            if given not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, found {given!r}")
        ends = (control, control) if isinstance(control, int | float) else control
        if ends is not None and len(ends) != 2:
            raise ValueError(f"control: expected a number, two that span a range, or none, found {control}")
        self.control_range = None if ends is None else (float(ends[0]), float(ends[1]))
        self.control_as = control_as
        self.guidance = {"scale": float(guide_scale), "norm": guide_norm, "scaling": guide_scaling}
        rule = make_constraint(constraint)
        if ends is None and not rule.follows_context:
            raise ValueError(f"control: the constraint {constraint!r} expects a number or a range, found none")
        network = {**self._levels, "base_units": alignment_units, "depth": list(alignment_depth)}
        self.alignment = KnowledgeAlignment(NoisyEncoder(self.latent_shape, out_channels=rule.values, **network), rule)
        noise = {key: self._depends_on["denoiser"][key] for key in ("beta_schedule", "timesteps", "linear")}
        scale: dict[str, Any] = {"scale_factor": self.diffusion.scale_factor, "augment": self.augment}
        self._depends_on["alignment"] = {**network, **noise, "constraint": constraint, **scale, **_source_of(rule)}

    def stages(self) -> tuple[Stage, ...]:
        """Returns the trainings of the model, in their order; see `Stage`."""
        depends_on = self._depends_on["alignment"]
        options: dict[str, Any] = {"scale_factor": self.diffusion.scale_factor, "augment": self.augment}
        module = AlignmentStage(self.alignment, self.schedule, self._encoder(), **options)
        return (*super().stages(), Stage("alignment", module, self.alignment.network, depends_on, module.prepare))

    @property
    def _couples_members(self) -> bool:
        return self.guidance["norm"] == "batch"

    def _targets(self, cond: Tensor, noise: RowNoise, control: Control | None) -> Tensor | None:
        members = len(noise) // len(cond)
        if control is None and self.control_range is not None:  # each member has its own
            low, high = self.control_range
            own = Control(**{self.control_as: low + (high - low) * noise.uniform()})
            return self.alignment.target(own, cond.repeat_interleave(members, dim=0))
        return self.alignment.target(control, cond).repeat_interleave(members, dim=0)

    def _guide(self, targets: Tensor | None) -> Guide:
        if targets is None:  # for counters
            return _CountedGuide(self.alignment.network)
        return Guidance(self.alignment, targets, **self.guidance)  # type: ignore[arg-type]


def _source_of(rule: Constraint) -> dict[str, str]:
    """Returns a digest of the source of a constraint from outside this library, as its weights depend on it."""
    if type(rule).__module__.partition(".")[0] == __name__.partition(".")[0]:
        return {}
    try:
        source = inspect.getsource(type(rule))
    except OSError:  # defined in an interactive session
        source = f"{type(rule).__module__}:{type(rule).__qualname__}"
    return {"constraint_source": hashlib.sha256(source.encode()).hexdigest()}


class _CountedGuide:
    """Has the cost of guidance, for counters that cannot trace a backward pass.

    The backward pass to the input is counted as another forward pass, which is accurate to one percent.
    """

    def __init__(self, network: NoisyEncoder) -> None:
        self.network = network

    def noise_shift(self, noised: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Returns zeros."""
        return torch.zeros_like(noised) * (self.network(noised, t) + self.network(noised, t)).sum()
