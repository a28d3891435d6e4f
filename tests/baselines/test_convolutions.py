"""Convolutions with reordered weights give the same results as plain ones, which they call if they must."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from baselines.convolutions import RepeatedConv


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "grid"), [(1, (4, 6)), (3, (1, 1)), (5, (6, 12)), (7, (5, 3))])
def test_repeated_conv_equals_a_same_padded_convolution(kernel: int, grid: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 5, kernel, kernel)
    shift = torch.randn(7) if bias else None
    conv = RepeatedConv(weight, shift)
    with torch.no_grad():
        for batch in (2, 2, 3):
            wide = torch.randn(batch, 9, *grid)
            for x in (wide[:, :5], wide[:, 2:7], wide[:, :5].contiguous(memory_format=torch.channels_last)):
                expected = F.conv2d(x, weight, shift, padding=kernel // 2)
                torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


def test_a_slice_of_larger_weights_works() -> None:
    weight, x = torch.randn(8, 6, 3, 3), torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(
            RepeatedConv(weight[:, 3:])(x), F.conv2d(x, weight[:, 3:], padding=1), rtol=1e-4, atol=1e-4
        )


def test_gradients_flow_and_float64_is_preserved() -> None:
    weight, x = torch.randn(4, 3, 3, 3, requires_grad=True), torch.randn(1, 3, 4, 4)
    conv = RepeatedConv(weight)
    with torch.no_grad():
        conv(x)
    conv(x).sum().backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0
    with torch.no_grad():
        assert RepeatedConv(weight.double())(x.double()).dtype == torch.float64


def test_flop_counter_tracer_and_autocast_see_a_plain_convolution() -> None:
    conv = RepeatedConv(torch.randn(4, 3, 3, 3))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            conv(x)
        assert counter.get_total_flops() == 2 * 8 * 8 * 4 * 3 * 9
        assert "aten::_convolution" in str(torch.jit.trace(conv.__call__, x).graph)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
