"""Constraints of knowledge alignment: their measures, their targets, and user-defined constraints."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from prediff_models import SHAPE, small_alignment
from torch import Tensor

from bench.data.nbody_mnist.simulation import simulate
from earthformer.prediff.alignment import Guidance
from earthformer.prediff.constraints import Constraint, Control, make_constraint, register_constraint, total_energy


def test_mean_intensity_and_its_targets() -> None:
    alignment = small_alignment()
    frames = torch.rand(3, 2, 8, 8, 1)
    measured = alignment.constraint.measure(frames)
    assert measured.shape == (3, 2, 1)
    torch.testing.assert_close(measured[1, 0, 0], frames[1, 0].mean())
    cond = torch.zeros(3, 3, *SHAPE[1:])
    with pytest.raises(ValueError, match="train the alignment stage"):
        alignment.target(Control(sigmas=1.0), cond)
    alignment.fit([measured[:2], measured[2:]])  # however the sequences are batched
    means = measured.mean(dim=(1, 2)).double()
    mu, sigma = float(means.mean()), float(means.std(correction=0))
    torch.testing.assert_close(alignment.target(Control(sigmas=-2.0), cond), torch.full((3, 1), mu - 2 * sigma))
    torch.testing.assert_close(alignment.target(Control(times=2.0), cond), torch.full((3, 1), 2 * mu))
    torch.testing.assert_close(alignment.target(Control(value=0.25), cond), torch.full((3, 1), 0.25))
    own = torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(alignment.target(Control(value=own), cond), own[:, None])
    with pytest.raises(ValueError, match=r"found \(2,\)"):
        alignment.target(Control(value=own[:2]), cond)
    with pytest.raises(ValueError, match="expected a control, found none"):
        alignment.target(None, cond)
    with pytest.raises(ValueError, match="at least one training sequence"):
        alignment.fit([])


def test_a_target_of_the_wrong_shape_is_refused() -> None:
    guidance = Guidance(small_alignment(), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"expected a target \(3, 1\), found \(3, 2\)"):
        guidance.gradient(torch.zeros(3, *SHAPE), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"expected measures .* \(1, 2, 1\), found \(1, 2, 3\)"):
        small_alignment().loss(torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.long), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match=r"expected measures .* \(4, 2, 1\), found \(4, 2\)"):
        small_alignment().fit([torch.zeros(4, 2)])


def test_energy_is_taken_from_the_last_context_frame(randomise) -> None:
    alignment = small_alignment("energy")
    randomise(alignment)
    cond = torch.randn(2, 3, *SHAPE[1:])
    with torch.no_grad():
        last = alignment.network(cond[:, -2:], torch.zeros(2, dtype=torch.long))[:, -1]
    torch.testing.assert_close(alignment.target(None, cond), last.expand(2, 2))
    with pytest.raises(ValueError, match="at least 2 frames"):
        alignment.target(None, cond[:, :1])
    frames, energy = torch.rand(2, 2, 8, 8, 1), torch.rand(2, 2)
    torch.testing.assert_close(alignment.constraint.measure(frames, [torch.rand(2, 5), energy])[..., 0], energy)
    for labels in ([], [torch.rand(2, 3)]):
        with pytest.raises(ValueError, match="the energy of every frame as a label"):
            alignment.constraint.measure(frames, labels)


@pytest.mark.parametrize("exponent", [0, 1, 2])
def test_the_force_conserves_the_energy(exponent: int) -> None:
    """Small symplectic steps under the generator's acceleration keep the energy; without the potential it drifts."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 2, generator=generator, dtype=torch.float64) * 40
    v = torch.randn(3, 2, generator=generator, dtype=torch.float64) * 0.3
    options = {"gravity": 0.05, "softening": 10.0, "exponent": exponent}
    start, kinetic = float(total_energy(x, v, **options)), float(v.square().sum() / 2)
    step = 0.05
    for _ in range(400):
        apart = x[None] - x[:, None]
        force = (0.05 * apart * (apart.square().sum(-1, keepdim=True) + 100) ** (-(exponent + 1) / 2)).sum(dim=1)
        v = v + step * force
        x = x + step * v
    drift = abs(float(total_energy(x, v, **options)) - start)
    assert drift < 0.02 * abs(float(v.square().sum() / 2) - kinetic) + 1e-9


def test_energy_equals_that_of_the_simulated_system() -> None:
    """The energy labels of the data equal the constraint's function of the same states."""
    draw = np.random.default_rng(0)
    sizes = np.full((4, 3, 2), 20.0)
    motion = simulate(draw.uniform(20, 80, (4, 3, 2)), draw.uniform(-1, 1, (4, 3, 2)), sizes)
    found = total_energy(torch.from_numpy(motion.corners), torch.from_numpy(motion.velocities))
    torch.testing.assert_close(found, torch.from_numpy(motion.energy()), rtol=1e-12, atol=0.0)


def test_energy_of_two_bodies_matches_the_closed_form() -> None:
    x, v = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    energy = total_energy(x, v, mass=torch.tensor([2.0, 3.0]), gravity=0.5, softening=12.0)
    assert float(energy) == pytest.approx(0.5 * 2 * 1 + 0.5 * 3 * 4 + 0.5 * 2 * 3 * 13.0)
    with pytest.raises(ValueError, match="expected 0, 1 or 2"):
        total_energy(x, v, exponent=3)
    with pytest.raises(ValueError, match="bodies, axes"):
        total_energy(x, v[0])


def test_a_user_defined_constraint() -> None:
    class Peak(Constraint):
        name = "test_peak"

        def measure(self, frames: Tensor, labels: Sequence[Tensor] = ()) -> Tensor:
            return frames.amax(dim=(2, 3, 4))[..., None]

    register_constraint(Peak)
    assert isinstance(make_constraint("test_peak"), Peak)

    class Other(Peak):
        pass

    with pytest.raises(ValueError, match="registered already"):
        register_constraint(Other)


def test_mean_intensity_and_fit_use_known_pixels_only() -> None:
    frames = torch.rand((3, 2, 4, 4, 1), generator=torch.Generator().manual_seed(0))
    frames[0, 0, :2], frames[1, 1], frames[2] = torch.nan, torch.nan, torch.nan
    measured = make_constraint("mean_intensity").measure(frames)
    assert measured[0, 0, 0] == pytest.approx(float(frames[0, 0, 2:].mean()))
    assert torch.isnan(measured[1, 1, 0]) and torch.isnan(measured[2]).all()
    alignment = small_alignment()
    alignment.fit([measured])
    means = torch.stack((measured[0, :, 0].mean(), measured[1, 0, 0]))
    assert float(alignment.mean) == pytest.approx(float(means.mean()))
    assert float(alignment.std) == pytest.approx(float(means.std(correction=0)))
    with pytest.raises(ValueError, match="at least one training sequence"):
        alignment.fit([measured[2:]])
