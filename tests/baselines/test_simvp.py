"""SimVP and TAU against their equations, the counts of OpenSTL's table, and the divergence against NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from official import SHAPES
from timm.layers import DropPath
from torch import Tensor
from torch.nn import functional as F
from without_values import on_meta, uninitialised

from baselines.simvp import TAU, SimVP, difference_divergence
from bench.cost import count_model

SMALL = {"hid_s": 16, "hid_t": 256, "n_t": 4}
# Parameters and GMACs of SimVP and TAU by shapes and settings; the name of a task stands for its shapes and preset.
COUNTS = {
    "moving_mnist": ("moving_mnist", None, (46_769_665, 16.526), (44_656_001, 15.953)),
    "nbody_mnist": ("nbody_mnist", None, (46_769_665, 16.526), (44_656_001, 15.953)),
    "sevir_lr": ("sevir_lr", None, (42_361_345, 55.951), (40_450_625, 53.870)),
    "sevir_lr, light": ("sevir_lr", {"hid_t": 256}, (14_292_993, 27.255), None),
    "sevir_lr, small": ("sevir_lr", SMALL, (4_425_345, 5.342), (4_243_473, 5.129)),
    "sevir": ("sevir", None, (52_911_553, 354.6), (50_521_217, 348.7)),
    "sevir, four layers": ("sevir", {"n_s": 4}, (52_652_545, 699.9), (50_262_209, 676.7)),
    "sevir, eight layers": ("sevir", {"n_s": 8}, (53_170_561, 268.2), (50_780_225, 266.8)),
    "icar_enso": ("icar_enso", None, (12_758_305, 2 * 3.941), (12_219_553, 2 * 3.767)),
    "tiny": ((3, 16, 16, 1), SimVP.presets["tiny"], (14_277, 0.0011), (14_049, 0.0011)),
}


def counted(case: str, cls: type[SimVP]) -> tuple[Any, dict[str, Any], tuple[int, float] | None]:
    where, options, *expected = COUNTS[case]
    shapes = SHAPES[where] if isinstance(where, str) else (where, where)
    return shapes, cls.presets[where] if options is None else options, expected[cls is TAU]


@pytest.mark.parametrize("cls", [SimVP, TAU])
@pytest.mark.parametrize("case", COUNTS)
def test_sizes_are_those_of_the_authors_code(cls: type[SimVP], case: str) -> None:
    shapes, options, expected = counted(case, cls)
    if expected is not None:
        with on_meta():
            assert sum(p.numel() for p in cls(*shapes, **options).parameters()) == expected[0]


@pytest.mark.parametrize("cls", [SimVP, TAU])
@pytest.mark.parametrize("case", [case for case in COUNTS if case != "nbody_mnist"])
def test_operations_are_those_of_the_authors_code(cls: type[SimVP], case: str) -> None:
    shapes, options, expected = counted(case, cls)
    if expected is None:
        return
    # On frames of 96 x 96 pixels, layers do a sixteenth of their work on SEVIR's frames of 384 x 384.
    share = 16 if shapes == SHAPES["sevir"] else 1
    small = [(t, height // 4, width // 4, c) if share > 1 else (t, height, width, c) for t, height, width, c in shapes]
    found = count_model(uninitialised(cls, *small, **options), small[0]).gmacs * share
    # As many digits as the table has; ENSO's 14 months take two passes.
    digits = 4 if case == "tiny" else 1 if share > 1 else 3
    assert found == pytest.approx(expected[1], abs=(2 if case == "icar_enso" else 1) * 0.51 * 10**-digits)


def conv(weights: dict[str, Tensor], key: str, x: Tensor, **how: int) -> Tensor:
    return F.conv2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], **how)


def batch_norm(weights: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    mean, variance, gain, shift = (
        weights[f"{key}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * gain + shift


def group_norm_silu(weights: dict[str, Tensor], key: str, x: Tensor) -> Tensor:
    halves = x.unflatten(1, (2, -1))
    centred = halves - halves.mean((2, 3, 4), keepdim=True)
    x = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-5).sqrt()).flatten(1, 2)
    x = x * weights[f"{key}.weight"][:, None, None] + weights[f"{key}.bias"][:, None, None]
    return x / (1 + torch.exp(-x))


def attention(weights: dict[str, Tensor], key: str, x: Tensor, *, temporal: bool) -> Tensor:
    y = F.gelu(conv(weights, f"{key}.0", x))
    dim = y.shape[1]
    large = f"{key}.2.large_kernel"
    z = conv(weights, f"{large}.0", y, padding=2, groups=dim)
    z = conv(weights, f"{large}.1", z, padding=9, dilation=3, groups=dim)
    z = conv(weights, f"{large}.2", z)
    if temporal:
        inner = torch.relu(y.mean((2, 3)) @ weights[f"{key}.2.gate.2.weight"].T)
        gated = torch.sigmoid(inner @ weights[f"{key}.2.gate.4.weight"].T)[:, :, None, None] * z * y
    else:
        gated = z[:, :dim] * torch.sigmoid(z[:, dim:])
    return conv(weights, f"{key}.3", gated) + x


def by_equations(model: SimVP, context: Tensor) -> Tensor:
    """One pass of a model of four layers and three blocks: T_in frames from T_in frames."""
    weights = model.state_dict()
    batch, t_in, height, width, _ = context.shape
    x = context.permute(0, 1, 4, 2, 3).reshape(batch * t_in, -1, height, width)
    for k, stride in enumerate((1, 2, 1, 2)):
        x = group_norm_silu(weights, f"encoder.{k}.1", conv(weights, f"encoder.{k}.0", x, padding=1, stride=stride))
        skip = x if k == 0 else skip  # noqa: F821
    x = x.reshape(batch, -1, *x.shape[2:])
    for k in range(3):
        block = f"translator.{k}"
        normed = batch_norm(weights, f"{block}.norm_1", x)
        attended = attention(weights, f"{block}.attention", normed, temporal=isinstance(model, TAU))
        x = x + weights[f"{block}.scale_1"].view(-1, 1, 1) * attended
        y = conv(weights, f"{block}.mlp.0", batch_norm(weights, f"{block}.norm_2", x))
        assert y.shape[1] == 8 * x.shape[1]
        y = conv(weights, f"{block}.mlp.3", F.gelu(conv(weights, f"{block}.mlp.1", y, padding=1, groups=y.shape[1])))
        x = x + weights[f"{block}.scale_2"].view(-1, 1, 1) * y
        if k != 1:
            x = conv(weights, f"{block}.project", x)
    x = x.reshape(batch * t_in, -1, *x.shape[2:])
    for k, factor in enumerate((2, 1, 2, 1)):
        x = conv(weights, f"decoder.{k}.0", x + skip if k == 3 else x, padding=1)
        x = F.pixel_shuffle(x, 2) if factor == 2 else x
        x = group_norm_silu(weights, f"decoder.{k}.{2 if factor == 2 else 1}", x)
    x = conv(weights, "readout", x)
    return x.reshape(batch, t_in, -1, height, width).permute(0, 1, 3, 4, 2)


def build(cls: type[SimVP], t_out: int, **options: float) -> SimVP:
    torch.manual_seed(0)
    model = cls((3, 8, 12, 2), (t_out, 8, 12, 2), hid_s=4, hid_t=6, n_t=3, **options).double().eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.3 * torch.rand_like(value))
    return model


@pytest.mark.parametrize("cls", [SimVP, TAU])
@pytest.mark.parametrize("t_out", [1, 3, 4, 7])
def test_longer_forecasts_are_fed_back_and_follow_the_equations(cls: type[SimVP], t_out: int) -> None:
    model = build(cls, t_out)
    context = torch.rand(2, 3, 8, 12, 2, dtype=torch.float64)
    with torch.no_grad():
        made = [context]
        for _ in range(3):
            made.append(by_equations(model, made[-1]))
        expected = torch.cat(made[1:], dim=1)[:, :t_out]
        torch.testing.assert_close(model(context), expected, rtol=1e-9, atol=1e-9)


def test_a_longer_forecast_has_a_gradient_through_both_passes() -> None:
    model = build(SimVP, 6)
    context = torch.rand(1, 3, 8, 12, 2, dtype=torch.float64, requires_grad=True)
    model(context)[:, 3:].sum().backward()
    assert context.grad.abs().max() > 0


def test_output_channels_may_differ_only_without_feedback() -> None:
    assert SimVP((3, 8, 8, 2), (3, 8, 8, 1), **SMALL)(torch.rand(1, 3, 8, 8, 2)).shape == (1, 3, 8, 8, 1)
    with pytest.raises(ValueError, match="same channels, got 2 and 1"):
        SimVP((3, 8, 8, 2), (4, 8, 8, 1), **SMALL)


@pytest.mark.parametrize(("drop_path", "expected"), [(0.0, []), (0.1, [0.01, 0.055, 0.1]), (0.004, [0.004] * 3)])
def test_drop_path_starts_at_one_per_cent_or_is_off(drop_path: float, expected: list[float]) -> None:
    model = build(SimVP, 3, drop_path=drop_path)
    assert [m.drop_prob for m in model.modules() if isinstance(m, DropPath)] == pytest.approx(expected)


def test_weights_are_initialised_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    model = TAU(*SHAPES["icar_enso"], **TAU.presets["icar_enso"])
    block = model.translator[0]
    dim = 12 * 32
    for layer, std in (
        (block.attention[0], (2 / dim) ** 0.5),
        (block.attention[2].large_kernel[0], (2 / 25) ** 0.5),
        (block.attention[2].large_kernel[1], (2 / 49) ** 0.5),
        (block.mlp[1], (2 / 9) ** 0.5),
        (block.mlp[3], (2 / dim) ** 0.5),
        (block.attention[2].gate[2], 0.02),
        (model.encoder[1][0], 0.02),
        (model.decoder[0][0], 0.02),
    ):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.03)
        assert layer.bias is None or not layer.bias.any()
    assert block.attention[2].gate[2].out_features == 16
    assert torch.equal(block.scale_1, torch.full_like(block.scale_1, 1e-2))


def divergence_by_numpy(forecast: np.ndarray, target: np.ndarray) -> float:
    """Pair by pair, over the pixels that are known in both frames of the target."""
    summed, known = 0.0, np.isfinite(target).sum()
    for row in range(len(target)):
        for t in range(target.shape[1] - 1):
            both = np.isfinite(target[row, t]) & np.isfinite(target[row, t + 1])
            if not both.any():
                continue
            p, q = (np.exp((x[row, t + 1] - x[row, t])[both] / 0.1) for x in (forecast, target))
            p, q = p / p.sum(), q / q.sum()
            summed += (p * np.log(p / q)).sum()
    return summed / (known * (target.shape[1] - 1) / target.shape[1])


def test_the_divergence_equals_that_of_the_authors_code() -> None:
    random = torch.Generator().manual_seed(0)
    forecast, target = (torch.rand(2, 4, 1, 8, 8, generator=random).permute(0, 1, 3, 4, 2) for _ in range(2))
    assert difference_divergence(forecast, target).item() == pytest.approx(0.1067170, abs=2e-7)
    assert difference_divergence(forecast, target).item() * 64 == pytest.approx(6.8299, abs=5e-5)
    assert difference_divergence(target, target).item() == 0
    assert difference_divergence(forecast + 3, target).item() == pytest.approx(0.1067170, rel=1e-4)
    assert difference_divergence(forecast[:, :2], target[:, :2]).item() == 0
    expected = divergence_by_numpy(forecast.double().numpy(), target.double().numpy())
    assert difference_divergence(forecast.double(), target.double()).item() == pytest.approx(expected, rel=1e-12)


def test_missing_pixels_are_left_out_of_the_divergence() -> None:
    random = torch.Generator().manual_seed(1)
    forecast, target = (torch.rand(3, 4, 5, 6, 1, generator=random, dtype=torch.float64) for _ in range(2))
    target[torch.rand(target.shape, generator=random) < 0.3] = torch.nan
    target[0] = torch.nan
    forecast.requires_grad_()
    found = difference_divergence(forecast, target)
    assert found.item() == pytest.approx(divergence_by_numpy(forecast.detach().numpy(), target.numpy()), rel=1e-12)
    found.backward()
    assert forecast.grad.isfinite().all()
    assert not forecast.grad[0].any()


def test_the_tau_loss_is_mse_plus_a_tenth_of_the_divergence() -> None:
    model = build(TAU, 3).float()
    context, target = torch.rand(2, 3, 8, 12, 2), torch.rand(2, 3, 8, 12, 2)
    with torch.no_grad():
        losses = model.training_loss(context, target, step=0, total_steps=1)
        forecast = model(context)
    assert losses["mse"].item() == pytest.approx(F.mse_loss(forecast, target).item(), rel=1e-5)
    divergence = divergence_by_numpy(forecast.double().numpy(), target.double().numpy())
    assert losses["divergence"].item() == pytest.approx(divergence / 10, rel=1e-4)
    assert not hasattr(SimVP, "training_loss")


def test_a_batch_of_one_trains() -> None:
    model = SimVP((2, 8, 8, 1), (2, 8, 8, 1), **SimVP.presets["tiny"]).train()
    assert model(torch.rand(1, 2, 8, 8, 1)).isfinite().all()
