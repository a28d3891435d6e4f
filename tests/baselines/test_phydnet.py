"""PhyDNet against its equations, its moments against finite differences, and its losses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from baselines.moments import k2m
from baselines.phydnet import PhyDNet, load_upstream

B, T_IN, T_OUT, HEIGHT, WIDTH, CHANNELS = 2, 3, 4, 16, 24, 2


@given(seed=st.integers(0, 100))
@settings(deadline=None, max_examples=5)
def test_moments_are_their_defining_sums(seed: int) -> None:
    kernel = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = torch.zeros_like(kernel)
    for i in range(7):
        for j in range(7):
            for u in range(-3, 4):
                for v in range(-3, 4):
                    factor = u**i / math.factorial(i) * v**j / math.factorial(j)
                    expected[:, i, j] += factor * kernel[:, u + 3, v + 3]
    torch.testing.assert_close(k2m(kernel), expected, rtol=1e-12, atol=1e-12)


def test_moments_of_finite_differences_are_their_derivatives() -> None:
    kernel = torch.zeros(3, 7, 7)
    kernel[0, 3, 3] = 1
    kernel[1, 3, 2], kernel[1, 3, 4] = -0.5, 0.5
    kernel[2, 2, 3], kernel[2, 3, 3], kernel[2, 4, 3] = 1, -2, 1
    moments = k2m(kernel)
    for index, (i, j) in enumerate([(0, 0), (0, 1), (2, 0)]):
        low_orders = torch.zeros(3, 3)
        low_orders[i, j] = 1
        torch.testing.assert_close(moments[index, :3, :3], low_orders)


def test_moment_loss_is_the_sum_over_input_channels_of_mean_squares() -> None:
    model = PhyDNet((2, 8, 8, 1), (1, 8, 8, 1), conv_hidden=(64,))
    weight = model.phycell.cell_list[0].F.conv1.weight.detach()
    expected = 0.0
    for channel in range(64):
        total = 0.0
        for k in range(49):
            wanted = torch.zeros(7, 7)
            wanted[k // 7, k % 7] = 1
            total += (k2m(weight[k, channel]) - wanted).square().sum().item()
        expected += total / 49**2
    assert model.moment_loss().item() == pytest.approx(expected, rel=1e-5)


def test_moment_loss_vanishes_for_filters_with_one_moment_each() -> None:
    model = PhyDNet((2, 8, 8, 1), (1, 8, 8, 1), conv_hidden=(64,)).double()
    offsets = torch.arange(-3, 4, dtype=torch.float64)
    powers = torch.stack([offsets**order / math.factorial(order) for order in range(7)])
    inverse = torch.linalg.inv(powers)
    filters = torch.stack([torch.outer(inverse[:, k // 7], inverse[:, k % 7]) for k in range(49)])
    with torch.no_grad():
        model.phycell.cell_list[0].F.conv1.weight.copy_(filters[:, None])
    assert model.moment_loss().item() < 1e-18


def brute_force(model: PhyDNet, clip: Tensor, strides: tuple[int, int, int], *, forced: bool) -> Tensor:
    """Returns the images of all steps (B, T, H, W, C), from the weights by name, operation by operation."""
    w = model.state_dict()
    first, second, third = strides

    def norm(x: Tensor, name: str, groups: int) -> Tensor:
        split = x.reshape(len(x), groups, -1)
        split = (split - split.mean(2, keepdim=True)) / (split.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return split.reshape(x.shape) * w[f"{name}.weight"].view(-1, 1, 1) + w[f"{name}.bias"].view(-1, 1, 1)

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        weight, bias = w[f"{name}.main.0.weight"], w[f"{name}.main.0.bias"]
        if "upc" in name:
            x = F.conv_transpose2d(x, weight, bias, stride, padding=1, output_padding=stride - 1)
        else:
            x = F.conv2d(x, weight, bias, stride, padding=1)
        return F.leaky_relu(norm(x, f"{name}.main.1", 16), 0.2)

    def conv(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=w[f"{name}.weight"].shape[-1] // 2)

    grid = (HEIGHT // math.prod(strides), WIDTH // math.prod(strides))
    widths = [len(w[f"convcell.cell_list.{layer}.conv.bias"]) // 4 for layer in range(2)]
    phy = [clip.new_zeros(B, 64, *grid) for _ in range(2)]
    h = [clip.new_zeros(B, n, *grid) for n in widths]
    c = [clip.new_zeros(B, n, *grid) for n in widths]
    images: list[Tensor] = []
    for t in range(T_IN + T_OUT - 1):
        frame = clip[:, t].permute(0, 3, 1, 2) if t < T_IN or forced else images[-1]
        code = block(block(block(frame, "encoder_E.c1", first), "encoder_E.c2", second), "encoder_E.c3", third)
        x = block(block(code, "encoder_Ep.c1", 1), "encoder_Ep.c2", 1)
        for layer in range(len(phy)):
            name = f"phycell.cell_list.{layer}"
            derivative = conv(norm(conv(phy[layer], f"{name}.F.conv1"), f"{name}.F.bn1", 7), f"{name}.F.conv2")
            gain = conv(torch.cat((x, phy[layer]), dim=1), f"{name}.convgate").sigmoid()
            x = phy[layer] = (1 - gain) * (phy[layer] + derivative) + gain * x
        y = block(block(code, "encoder_Er.c1", 1), "encoder_Er.c2", 1)
        for layer in range(len(widths)):
            i, f, o, g = conv(torch.cat((y, h[layer]), dim=1), f"convcell.cell_list.{layer}.conv").chunk(4, dim=1)
            c[layer] = f.sigmoid() * c[layer] + i.sigmoid() * g.tanh()
            y = h[layer] = o.sigmoid() * c[layer].tanh()
        code = block(block(x, "decoder_Dp.upc1", 1), "decoder_Dp.upc2", 1)
        code = code + block(block(y, "decoder_Dr.upc1", 1), "decoder_Dr.upc2", 1)
        out = block(block(code, "decoder_D.upc1", third), "decoder_D.upc2", second)
        out = F.conv_transpose2d(
            out, w["decoder_D.upc3.weight"], w["decoder_D.upc3.bias"], first, padding=1, output_padding=first - 1
        )
        images.append(out.sigmoid())
    return torch.stack(images, dim=1).permute(0, 1, 3, 4, 2)


SHAPES = {"input_shape": (T_IN, HEIGHT, WIDTH, CHANNELS), "target_shape": (T_OUT, HEIGHT, WIDTH, CHANNELS)}


def build(strides: tuple[int, int, int]) -> PhyDNet:
    torch.manual_seed(0)
    model = PhyDNet(**SHAPES, strides=strides, phy_hidden=(14, 7), conv_hidden=(8, 64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def model() -> PhyDNet:
    return build((2, 1, 2))


@pytest.fixture
def clip() -> Tensor:
    return torch.rand(B, T_IN + T_OUT, HEIGHT, WIDTH, CHANNELS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("strides", [(2, 1, 2), (2, 2, 2), (1, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_and_losses_follow_the_equations(
    clip: Tensor, forced: bool, strides: tuple[int, int, int], dtype: torch.dtype
) -> None:
    model, clip = build(strides).to(dtype), clip.to(dtype)
    context, target = clip[:, :T_IN], clip[:, T_IN:]
    exactness = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    with torch.no_grad():
        expected = brute_force(model, clip, strides, forced=forced)
        mse = sum((expected[:, t] - clip[:, t + 1]).square().mean() for t in range(T_IN + T_OUT - 1))
        for form in (False, True):
            model.plain = form
            images = model.step_outputs(context, target, teacher_forcing=forced)
            torch.testing.assert_close(images, expected, **exactness)
            losses = model.losses(context, target, teacher_forcing=forced)
            torch.testing.assert_close(losses["mse"], mse, **exactness)
            torch.testing.assert_close(losses["moments"], model.moment_loss())
            if not forced:
                torch.testing.assert_close(model(context), expected[:, T_IN - 1 :], **exactness)


def test_the_gradient_flows_through_the_fed_back_image(model: PhyDNet, clip: Tensor) -> None:
    context = clip[:, :T_IN].clone().requires_grad_()
    last_only = model.step_outputs(context)[:, -1].sum()
    (gradient,) = torch.autograd.grad(last_only, context)
    assert gradient.abs().max() > 0
    with pytest.raises(ValueError, match="teacher_forcing needs a target"):
        model.step_outputs(context, teacher_forcing=True)


def test_teacher_forcing_is_drawn_per_batch_and_decays_to_zero(model: PhyDNet, clip: Tensor) -> None:
    context, target = clip[:, :T_IN], clip[:, T_IN:]
    # After 333 of the 1001 epochs that the authors' schedule was written for, its probability is 0.001.
    assert model.teacher_forcing_probability(0, 1001) == 1
    assert model.teacher_forcing_probability(100, 1001) == pytest.approx(0.7)
    assert model.teacher_forcing_probability(333, 1001) == pytest.approx(0.001)
    assert model.teacher_forcing_probability(334, 1001) == 0
    with torch.no_grad():
        forced, free = (model.losses(context, target, teacher_forcing=forced) for forced in (True, False))
        torch.testing.assert_close(model.training_loss(context, target, step=0, total_steps=10), forced)
        torch.testing.assert_close(model.training_loss(context, target, step=9, total_steps=10), free)
        drawn = set()
        for seed in range(12):
            torch.manual_seed(seed)
            drawn.add(round(model.training_loss(context, target, step=167, total_steps=1001)["mse"].item(), 5))
    assert drawn == {round(losses["mse"].item(), 5) for losses in (forced, free)}


@pytest.mark.parametrize(("grid", "filters"), [((4, 4), 14), ((4, 8), 7)])
def test_the_smallest_codes_train_with_one_sample(grid: tuple[int, int], filters: int) -> None:
    # One pixel with 7 filters is refused (see test_families.py): its group norm would see groups of one value.
    model = PhyDNet((2, *grid, 1), (2, *grid, 1), phy_hidden=(filters,), conv_hidden=(8, 64))
    clip = torch.rand(1, 4, *grid, 1)
    sum(model.training_loss(clip[:, :2], clip[:, 2:], step=0, total_steps=1).values()).backward()
    assert model.phycell.cell_list[0].F.conv1.weight.grad.abs().max() > 0


def test_upstream_grid_sets_the_downsampling(model: PhyDNet) -> None:
    config = {
        "input_shape": (4, 6),
        "phy_input_dim": 64,
        "F_hidden": [14, 7],
        "phy_kernel": 7,
        "conv_hidden": [8, 64],
    }
    loaded = load_upstream(config, model.state_dict(), **SHAPES).eval()
    context = torch.rand(1, *SHAPES["input_shape"])
    assert torch.equal(loaded(context), model(context))
    coarser = load_upstream({**config, "input_shape": (2, 3)}, model.state_dict(), **SHAPES)
    assert coarser(context).shape == (1, *SHAPES["target_shape"])
    with pytest.raises(ValueError, match=r"input_shape is \(3, 3\), expected \(16, 24\) divided by one of 4, 8, 12"):
        load_upstream({**config, "input_shape": (3, 3)}, model.state_dict(), **SHAPES)
    with pytest.raises(ValueError, match="tin is 9, expected 3"):
        load_upstream({**config, "tin": 9}, model.state_dict(), **SHAPES)
