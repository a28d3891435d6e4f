"""Blurred and blank forecasts against numpy, scipy and fields whose blur is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

import bench
from baselines.blank import Blank
from baselines.blurred import BlurredPersistence, blurred
from baselines.optical_flow import OpticalFlow, OpticalFlowBlurred
from bench import registry

SHAPES = (3, 48, 40, 2), (4, 48, 40, 2)


def _diffused(rows: int = 6, *, widths: tuple[float, ...] = (1, 2, 4, 8)) -> tuple[Tensor, Tensor]:
    """Returns white noise `(rows, 3, 48, 40, 2)`, and the noise diffused by the width of each lead time."""
    random = np.random.default_rng(0)
    last = random.normal(size=(rows, 48, 40, 2))
    spread = [gaussian_filter(last, (0, width, width, 0), mode="constant", truncate=8) for width in widths]
    ones = [gaussian_filter(np.ones((48, 40)), width, mode="constant", truncate=8)[..., None] for width in widths]
    target = np.stack([part / weight for part, weight in zip(spread, ones, strict=True)], 1)
    context = np.concatenate([random.normal(size=(rows, 2, 48, 40, 2)), last[:, None]], 1)
    return torch.from_numpy(context).float(), torch.from_numpy(target).float()


def test_an_unfitted_model_is_exactly_persistence() -> None:
    context, _ = _diffused()
    assert torch.equal(BlurredPersistence(*SHAPES)(context), context[:, -1:].expand(-1, 4, -1, -1, -1))


def test_the_blur_is_a_gaussian_over_pixels_inside_the_frame() -> None:
    context, target = _diffused()
    found = blurred(context[:, -1:].expand(-1, 4, -1, -1, -1), torch.tensor([1.0, 2, 4, 8]))
    torch.testing.assert_close(found, target, atol=1e-5, rtol=1e-4)
    constant = torch.full((1, 2, 5, 7, 1), 0.3)
    torch.testing.assert_close(blurred(constant, torch.tensor([0.5, 30])), constant)


@pytest.mark.parametrize("parts", [1, 3])
def test_fit_recovers_the_widths_of_diffused_data(parts: int) -> None:
    context, target = _diffused()
    model = BlurredPersistence(*SHAPES)
    model.fit(zip(context.chunk(parts), target.chunk(parts), strict=True))
    torch.testing.assert_close(model.width, torch.tensor([1.0, 2, 4, 8]))
    torch.testing.assert_close(model(context), target, atol=1e-5, rtol=1e-4)


def test_one_width_for_all_leads_minimises_the_error() -> None:
    context, target = _diffused()
    model = BlurredPersistence(*SHAPES, width_per_lead=False)
    model.fit([(context, target)])
    assert model.width.unique().numel() == 1
    chosen = float((model(context) - target).square().mean())
    for width in (1.0, 2.0, 4.0, 8.0):
        model.width.fill_(width)
        assert chosen <= float((model(context) - target).square().mean())


def test_large_frames_are_fitted_on_a_lattice_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    context, target = _diffused()
    widths = torch.tensor([1.0, 2, 4, 8])
    part = blurred(context[:, -1:], widths, every=3)
    torch.testing.assert_close(part, blurred(context[:, -1:], widths)[:, :, ::3, ::3])
    monkeypatch.setattr("baselines.blurred._LATTICE", 16)
    off_the_lattice = torch.arange(48) % 3 != 0
    target[:, :, off_the_lattice] = 1e3  # which is not read
    model = BlurredPersistence(*SHAPES)
    model.fit([(context, target)])
    torch.testing.assert_close(model.width, widths)


def test_constant_frames_are_not_blurred() -> None:
    context, _ = _diffused()
    model = BlurredPersistence(*SHAPES)
    model.fit([(context, context[:, -1:].expand(-1, 4, -1, -1, -1))])
    assert not model.width.any()


def test_missing_pixels_neither_affect_the_width_nor_spread() -> None:
    context, target = _diffused()
    clean = BlurredPersistence(*SHAPES)
    clean.fit([(context, target)])
    spoiled = context.clone(), target.clone()
    spoiled[0][:, :, :, :1], spoiled[1][:, :, 10:12] = torch.nan, torch.nan
    model = BlurredPersistence(*SHAPES)
    model.fit([spoiled, (context * torch.nan, target), (context, target * torch.nan)])
    torch.testing.assert_close(model.width, clean.width)
    hole = torch.full((1, 1, 9, 9, 1), 2.0)
    hole[:, :, 4, 4] = torch.nan
    torch.testing.assert_close(blurred(hole, torch.ones(1)), torch.full_like(hole, 2.0))
    hole[:, :, :] = torch.nan
    assert torch.equal(blurred(hole, torch.ones(1)), torch.zeros_like(hole))


def test_flow_and_persistence_are_blurred_alike() -> None:
    rows, columns = np.mgrid[:48, :40]
    cells = sum(np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 12) for y, x in ((12, 10), (30, 18), (22, 30)))
    frames = torch.from_numpy(np.stack([np.roll(cells, t, 1) for t in range(5)])[None, ..., None]).float()
    context, flow = frames[:, :3], OpticalFlow((3, 48, 40, 1), (2, 48, 40, 1))(frames[:, :3])
    model = OpticalFlowBlurred((3, 48, 40, 1), (2, 48, 40, 1))
    torch.testing.assert_close(model(context), flow)
    widths = torch.tensor([1.0, 2 * 2**0.5])
    model.fit([(context, blurred(flow, widths))])
    torch.testing.assert_close(model.width, widths)


def test_blank_is_zero_in_physical_units() -> None:
    for name in registry.names("task"):
        task = bench.load_task(name)
        forecast = task.denormalise(bench.load_model("blank", task)(torch.rand(2, *task.input_shape)))
        assert forecast.shape == (2, *task.target_shape)
        torch.testing.assert_close(forecast, torch.zeros_like(forecast), atol=1e-5, rtol=0)
    kelvin = bench.load_task("enso_ersst", scale="kelvin")
    assert not bench.load_model("blank", kelvin)(torch.rand(2, *kelvin.input_shape)).any()
    assert Blank(*SHAPES, zero=0.25)(torch.rand(1, *SHAPES[0])).eq(0.25).all()


def test_trivial_references() -> None:
    """This is known without an import, so that tables do not need torch."""
    trivial = {name for name in registry.names("model") if registry.find("model", name).card().trivial}
    assert trivial == {"blank", "blurred_persistence", "climatology", "damped_persistence", "persistence"}
