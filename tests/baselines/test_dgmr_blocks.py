"""DGMR's building blocks against formulas of its specification."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.dgmr import blocks


def _plain(conv: nn.Module, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, padding=conv.weight.shape[-1] // 2)


def test_the_spectral_norm_converges_to_one_and_is_frozen_in_eval_mode() -> None:
    torch.manual_seed(0)
    layer = blocks.normed(nn.Linear(7, 5))
    for _ in range(100):
        _ = layer.weight
    assert float(torch.linalg.matrix_norm(layer.weight, 2)) == pytest.approx(1, rel=1e-4)
    layer.eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(layer.weight, layer.weight)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_the_recurrent_cell_follows_its_equations() -> None:
    torch.manual_seed(0)
    cell, x, h = blocks.ConvGRUCell(3, 4).eval(), torch.randn(2, 3, 5, 6), torch.randn(2, 4, 5, 6)
    r, u = (torch.sigmoid(_plain(gate, torch.cat((x, h), 1))) for gate in (cell.reset, cell.update))
    c = F.relu(_plain(cell.candidate, torch.cat((x, r * h), 1)))
    torch.testing.assert_close(cell(x, h), u * h + (1 - u) * c)


@pytest.mark.parametrize("up", [False, True])
def test_the_generator_block_follows_its_equations(up: bool) -> None:
    torch.manual_seed(0)
    block, x = blocks.GBlock(4, 6, up=up).eval(), torch.randn(2, 4, 5, 6)

    def grown(y: Tensor) -> Tensor:
        return y.repeat_interleave(2, 2).repeat_interleave(2, 3) if up else y

    y = _plain(block.inner, grown(F.relu(block.norms[0](x))))
    y = _plain(block.outer, F.relu(block.norms[1](y)))
    torch.testing.assert_close(block(x), y + _plain(block.shortcut, grown(x)))
    assert isinstance(blocks.GBlock(4, 4).shortcut, nn.Identity)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_the_discriminator_block_follows_its_equations(first: bool, down: bool) -> None:
    torch.manual_seed(0)
    block, x = blocks.DBlock(4, 6, first=first, down=down).eval(), torch.randn(2, 4, 6, 8)
    assert block.inner.weight.shape[:2] == (4, 4)  # the first convolution keeps the channels
    y = _plain(block.outer, F.relu(_plain(block.inner, x if first else F.relu(x))))
    expected = y + _plain(block.shortcut, x)
    if down:
        expected = expected.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    torch.testing.assert_close(block(x), expected)


def test_the_latent_block_follows_its_equations() -> None:
    torch.manual_seed(0)
    block, x = blocks.LBlock(4, 6), torch.randn(2, 4, 5, 6)
    y = _plain(block.outer, F.relu(_plain(block.inner, F.relu(x))))
    torch.testing.assert_close(block(x), y + torch.cat((x, _plain(block.added, x)), 1))


def test_attention_is_unscaled_and_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    layer, x = blocks.Attention(16), torch.randn(2, 16, 3, 4)
    assert torch.equal(layer(x), x)
    nn.init.constant_(layer.gamma, 0.5)
    q, k, v = (F.conv2d(x, conv.weight).flatten(2) for conv in (layer.query, layer.key, layer.value))
    seen = torch.einsum("nij,ncj->nci", torch.einsum("nci,ncj->nij", q, k).softmax(-1), v).unflatten(2, (3, 4))
    torch.testing.assert_close(layer(x), x + 0.5 * F.conv2d(seen, layer.out.weight))


def test_the_head_norm_subtracts_the_mean_only() -> None:
    norm, x = blocks.MeanNorm(3), torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 5.0]])
    torch.testing.assert_close(norm(x), torch.tensor([[-1.0, -2.0, -1.0], [1.0, 2.0, 1.0]]))
    torch.testing.assert_close(norm.running_mean, torch.tensor([0.2, 0.4, 0.4]))
    torch.testing.assert_close(norm.eval()(x), x - norm.running_mean)
    assert torch.isfinite(norm.train()(x[:1])).all()
