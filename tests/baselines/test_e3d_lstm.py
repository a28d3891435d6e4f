"""E3D-LSTM against its equations, with attention query by query and convolutions tap by tap in time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.e3d_lstm import E3DLSTM, TwoFrameConv, _kernels, _recall, _recall_plain

B, T_IN, T_OUT, HEIGHT, WIDTH, PATCH, N = 2, 3, 3, 6, 8, 2, 3


def two_frame_conv(conv: TwoFrameConv, volume: Tensor) -> Tensor:
    """Convolves the two frames (B, C, 2, h, w): the first one sees both, the second one only itself."""
    first_tap, second_tap = conv.weight.unbind(2)
    padding = first_tap.shape[-1] // 2
    first = F.conv2d(volume[:, :, 0], first_tap, padding=padding) + F.conv2d(
        volume[:, :, 1], second_tap, padding=padding
    )
    second = F.conv2d(volume[:, :, 1], first_tap, padding=padding)
    volume = torch.stack((first, second), dim=2)
    return volume if conv.bias is None else volume + conv.bias.view(1, -1, 1, 1, 1)


def norm(layer: torch.nn.GroupNorm, volume: Tensor) -> Tensor:
    """Normalises over all axes except the batch."""
    axes = (1, 2, 3, 4)
    centred = volume - volume.mean(axes, keepdim=True)
    scaled = centred / (centred.square().mean(axes, keepdim=True) + 1e-12).sqrt()
    return scaled * layer.weight.view(1, -1, 1, 1, 1) + layer.bias.view(1, -1, 1, 1, 1)


def attend(queries: Tensor, states: list[Tensor]) -> Tensor:
    """Recalls, for each position of the queries (B, n, 2, h, w), from all positions of earlier states."""
    out = torch.zeros_like(queries)
    frames = torch.cat(states, dim=2)
    for b in range(len(queries)):
        keys = [
            frames[b, :, t, y, x]
            for t in range(frames.shape[2])
            for y in range(frames.shape[3])
            for x in range(frames.shape[4])
        ]
        table = torch.stack(keys)
        for t in range(2):
            for y in range(queries.shape[3]):
                for x in range(queries.shape[4]):
                    weights = torch.exp(table @ queries[b, :, t, y, x])
                    out[b, :, t, y, x] = (weights[:, None] * table).sum(0) / weights.sum()
    return out


def brute_force(model: E3DLSTM, clip: Tensor, truth: list[list[float]]) -> Tensor:
    """Returns the frames of all steps (B, T, H, W, 1); `truth[b][t]` says whether sample b reads the truth."""
    empty = clip.new_zeros(B, N, 2, HEIGHT // PATCH, WIDTH // PATCH)
    layers = len(model.cells)
    h, c, m = [empty] * layers, [empty] * layers, empty
    states: list[list[Tensor]] = [[empty] for _ in range(layers)]
    before = clip.new_zeros(B, PATCH**2, HEIGHT // PATCH, WIDTH // PATCH)
    predictions: list[Tensor] = []
    for t in range(T_IN + T_OUT - 1):
        share = clip.new_tensor([row[t] for row in truth]).view(B, 1, 1, 1)
        real = F.pixel_unshuffle(clip[:, t].permute(0, 3, 1, 2), PATCH)
        frame = share * real + (1 - share) * (predictions[-1] if predictions else real)
        x = torch.stack((before, frame), dim=2)
        before = frame
        for k, cell in enumerate(model.cells):
            if t:
                states[k].append(c[k])
            ix, gx, rx, ox, ix2, gx2, fx2 = norm(cell.norm_x, two_frame_conv(cell.conv_x, x)).chunk(7, dim=1)
            ih, gh, rh, oh = norm(cell.norm_h, two_frame_conv(cell.conv_h, h[k])).chunk(4, dim=1)
            im, fm, gm, mm = norm(cell.norm_m, two_frame_conv(cell.conv_m, m)).chunk(4, dim=1)
            recalled = attend((rx + rh).sigmoid(), states[k])
            c[k] = norm(cell.norm_cell, c[k] + recalled) + (ix + ih).sigmoid() * (gx + gh).tanh()
            new_m = (fx2 + fm + 1).sigmoid() * mm.tanh() + (ix2 + im).sigmoid() * (gx2 + gm).tanh()
            o = (ox + oh + two_frame_conv(cell.conv_cell, c[k]) + two_frame_conv(cell.conv_memory, new_m)).tanh()
            weight = cell.conv_last.weight.flatten(1)
            mixed = torch.einsum("oc,bcthw->bothw", weight, torch.cat((c[k], new_m), dim=1))
            h[k] = (mixed + cell.conv_last.bias.view(1, -1, 1, 1, 1)).tanh() * o.sigmoid()
            x = h[k]
            m = empty if model.drops_memory else new_m
        head = model.head.weight[..., 0, 0]
        emitted = torch.einsum("oct,bcthw->bohw", head, x) + model.head.bias.view(1, -1, 1, 1)
        predictions.append(emitted)
    frames = F.pixel_shuffle(torch.stack(predictions, dim=1).flatten(0, 1), PATCH)
    return frames.unflatten(0, (B, -1)).permute(0, 1, 3, 4, 2)


def build(*, drops_memory: bool) -> E3DLSTM:
    torch.manual_seed(0)
    model = E3DLSTM(
        (T_IN, HEIGHT, WIDTH, 1),
        (T_OUT, HEIGHT, WIDTH, 1),
        hidden=(N, N),
        kernel_size=3,
        patch_size=PATCH,
        drops_memory=drops_memory,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            # Zero biases would leave the norm of a convolved zero memory at zero.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("drops_memory", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_frames_and_losses_follow_the_equations(drops_memory: bool, masked: bool) -> None:
    # In float64, so that only mistakes make a difference.
    model = build(drops_memory=drops_memory).double()
    clip = torch.rand(B, T_IN + T_OUT, HEIGHT, WIDTH, 1, generator=torch.Generator().manual_seed(1)).double()
    context, target = clip[:, :T_IN], clip[:, T_IN:]
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]]) if masked else None
    flags = mask.tolist() if mask is not None else [[0.0] * (T_OUT - 1)] * B
    with torch.no_grad():
        expected = brute_force(model, clip, [[1.0] * T_IN + row for row in flags])
        error = expected - clip[:, 1:]
        for form in (False, True):
            model.plain = form
            torch.testing.assert_close(model.step_outputs(context, target, mask), expected, rtol=1e-9, atol=1e-9)
            losses = model.losses(context, target, mask)
            assert losses["l2"].item() == pytest.approx(error.square().sum().item() / 2, rel=1e-9)
            assert losses["l1"].item() == pytest.approx(error.abs().sum().item(), rel=1e-9)
            model.l1_weight = 0.25
            assert model.losses(context, target, mask)["l1"].item() == pytest.approx(losses["l1"].item() / 4, rel=1e-9)
            model.l1_weight = 1.0
            if not masked:
                torch.testing.assert_close(model(context), expected[:, T_IN - 1 :], rtol=1e-9, atol=1e-9)


def test_the_memory_convolution_is_unused_only_if_memory_is_dropped() -> None:
    assert build(drops_memory=True).parameters_without_gradient == (
        "cells.*.conv_m.weight",
        "cells.*.norm_m.weight",
    )
    assert build(drops_memory=False).parameters_without_gradient == ()


def test_framewise_convolution_equals_a_padded_3d_convolution() -> None:
    one, other = TwoFrameConv(3, 5, 3), TwoFrameConv(2, 5, 3)
    for conv in (one, other):
        torch.nn.init.normal_(conv.bias)
    x, y = torch.rand(2, 3, 2, 6, 7), torch.rand(2, 2, 2, 6, 7)
    assert one(x).shape == (2, 5, 2, 6, 7)
    torch.testing.assert_close(one(x), two_frame_conv(one, x))
    torch.testing.assert_close(_kernels(one).convolve(x), one(x))
    joined = _kernels(one, other).convolve(torch.cat((x, y), dim=1))
    torch.testing.assert_close(joined, one(x) + other(y))


def test_recall_is_unscaled_attention() -> None:
    history = torch.randn(2, 7, 4)
    mean = history.mean(1, keepdim=True).expand(2, 3, 4)
    for recall in (_recall, _recall_plain):
        torch.testing.assert_close(recall(torch.zeros(2, 3, 4), history), mean)
        queries = torch.randn(2, 3, 4)
        weights = torch.exp(torch.einsum("bqn,bkn->bqk", queries, history))
        expected = weights @ history / weights.sum(-1, keepdim=True)
        torch.testing.assert_close(recall(queries, history), expected)


def test_weights_are_initialised_as_in_tensorflow() -> None:
    model = E3DLSTM((2, 8, 8, 1), (2, 8, 8, 1), hidden=(8,))
    conv = model.cells[0].conv_h
    bound = (6 / ((8 + 32) * 50)) ** 0.5
    assert conv.weight.abs().max() <= bound
    assert conv.weight.abs().max() > 0.98 * bound
    assert model.cells[0].conv_cell.bias.abs().max() == 0
    assert model.cells[0].norm_h.eps == 1e-12


@pytest.mark.parametrize("drops_memory", [True, False])
def test_forecasts_still_differ_after_steps_on_noise(drops_memory: bool) -> None:
    """With biases before the norms, forecasts of this stack differ by only 0.001 after six steps."""
    torch.manual_seed(0)
    shapes = (3, 16, 16, 1), (2, 16, 16, 1)
    model = E3DLSTM(*shapes, hidden=(16, 16, 16, 16), drops_memory=drops_memory)
    context, target = (torch.randn(3, *shape) for shape in shapes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(6):
        optimizer.zero_grad()
        sum(model.training_loss(context, target, step=step, total_steps=10**9).values()).backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), 1.0) < 1e7  # for a loss of some thousand
        optimizer.step()
    with torch.no_grad():
        assert model(context).std(0).mean() > 1e-1


def test_the_kernel_of_dropped_memory_has_no_effect() -> None:
    context = torch.rand(1, T_IN, HEIGHT, WIDTH, 1)
    for drops_memory in (True, False):
        model = build(drops_memory=drops_memory)
        with torch.no_grad():
            before = model(context)
            for cell in model.cells:
                cell.conv_m.weight.add_(1)
            assert torch.equal(before, model(context)) == drops_memory
