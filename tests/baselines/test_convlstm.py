"""The ConvLSTM encoder-forecaster against its equations, and the output sizes of its deconvolutions."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.convlstm import ConvLSTM, ConvLSTMCell


def cell_step(cell: ConvLSTMCell, x: Tensor | None, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the states after one step, computed gate by gate."""
    seen = h if x is None else torch.cat((x, h), dim=1)
    i, f, o, g = (
        F.conv2d(seen, weight, bias, padding=1)
        for weight, bias in zip(cell.conv.weight.chunk(4), cell.conv.bias.chunk(4), strict=True)
    )
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def test_forecast_follows_the_equations() -> None:
    torch.manual_seed(0)
    model = ConvLSTM((3, 12, 24, 2), (4, 12, 24, 1), hidden=(4, 5, 6), strides=(3, 1, 2), deconv_kernels=(6, 3, 4))
    context = torch.rand(2, 3, 12, 24, 2)
    grids, widths = [(4, 8), (4, 8), (2, 4)], (4, 5, 6)
    states = [(torch.zeros(2, n, *grid), torch.zeros(2, n, *grid)) for n, grid in zip(widths, grids, strict=True)]
    with torch.no_grad():
        for t in range(3):
            x = context[:, t].permute(0, 3, 1, 2)
            for level in range(3):
                conv = model.downsampling[level][0]
                x = F.leaky_relu(F.conv2d(x, conv.weight, conv.bias, (3, 1, 2)[level], padding=2), 0.2)
                assert x.shape[2:] == grids[level]
                states[level] = cell_step(model.encoder[level], x, *states[level])
                x = states[level][0]
        frames = []
        for _ in range(4):
            y = None
            for level in (2, 1, 0):
                states[level] = cell_step(model.forecaster[level], y, *states[level])
                y = F.leaky_relu(model.upsampling[level][0](states[level][0]), 0.2)
            first, last = model.head[0], model.head[2]
            y = F.leaky_relu(F.conv2d(y, first.weight, first.bias, padding=1), 0.2)
            frames.append(F.conv2d(y, last.weight, last.bias).permute(0, 2, 3, 1))
        expected = torch.stack(frames, dim=1)
        torch.testing.assert_close(model(context), expected, rtol=1e-5, atol=1e-6)
        with model.reference():
            torch.testing.assert_close(model(context), expected, rtol=1e-5, atol=1e-6)


def test_only_the_top_forecaster_cell_has_no_input() -> None:
    model = ConvLSTM((3, 16, 16, 1), (4, 16, 16, 1), hidden=(4, 5, 6))
    assert [cell.in_channels for cell in model.forecaster] == [5, 6, 0]
    assert [cell.in_channels for cell in model.encoder] == [4, 5, 6]


@pytest.mark.parametrize(("kernel", "stride"), [(6, 2), (6, 3), (4, 2), (4, 4), (5, 2), (5, 3), (3, 1), (7, 4)])
def test_deconvolutions_scale_the_grid_by_their_stride(kernel: int, stride: int) -> None:
    size = 4 * stride
    model = ConvLSTM(
        (1, size, size, 1),
        (1, size, size, 1),
        hidden=(2,),
        strides=(stride,),
        conv_kernels=(5,),
        deconv_kernels=(kernel,),
    )
    assert model(torch.rand(1, 1, size, size, 1)).shape == (1, 1, size, size, 1)


def test_a_run_without_inputs_or_state_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a state"):
        ConvLSTMCell(0, 3).run(None, None, 2)
