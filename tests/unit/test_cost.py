from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.cost import count_model, measure_speed
from bench.errors import ContractError

HEADS, TOKENS, WIDTH = 4, 64, 16


class _Net(nn.Module):
    """A model whose forward is given as a function; it has one parameter, so that it has a device."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.function = forward

    def forward(self, context: Tensor) -> Tensor:
        return self.function(context) * self.weight


def _fused(x: Tensor) -> Tensor:
    q = x.reshape(1, TOKENS, HEADS, WIDTH).transpose(1, 2)
    return nn.functional.scaled_dot_product_attention(q, q, q)


def _plain(x: Tensor) -> Tensor:
    q = x.reshape(1, TOKENS, HEADS, WIDTH).transpose(1, 2)
    return torch.softmax(q @ q.transpose(-1, -2) * WIDTH**-0.5, -1) @ q


@pytest.mark.parametrize("attention", [_fused, _plain])
def test_attention_counts_its_two_products_fused_or_not(attention) -> None:
    cost = count_model(_Net(attention), (TOKENS, HEADS, WIDTH, 1))
    assert cost.gmacs * 1e9 == 2 * HEADS * TOKENS * TOKENS * WIDTH
    assert cost.torch_gmacs * 1e9 == 2 * HEADS * TOKENS * TOKENS * WIDTH
    assert cost.gflops == 2 * cost.gmacs


def test_a_convolution_counts_its_multiply_adds() -> None:
    conv = nn.Conv3d(2, 5, 3, padding=1)
    net = _Net(lambda x: conv(x.permute(0, 4, 1, 2, 3)))
    net.conv = conv
    cost = count_model(net, (4, 8, 8, 2))
    assert cost.gmacs * 1e9 == 4 * 8 * 8 * 2 * 5 * 27


def test_an_unknown_operation_fails_the_count() -> None:
    with pytest.raises(ContractError, match="aten::fft_fft2"):
        count_model(_Net(lambda x: torch.fft.fft2(x.squeeze(-1)).real), (2, 8, 8, 1))


def test_a_model_that_does_not_trace_is_a_contract_error() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("needs a licence")

    with pytest.raises(ContractError, match="needs a licence"):
        count_model(_Net(broken), (2, 8, 8, 1))


def test_a_model_is_counted_under_its_reference_formulation() -> None:
    class Fast(_Net):
        plain = False

        @contextlib.contextmanager
        def reference(self):
            self.plain = True
            yield
            self.plain = False

        def forward(self, context: Tensor) -> Tensor:
            return _plain(context) if self.plain else context * self.weight

    model = Fast(None)
    assert count_model(model, (TOKENS, HEADS, WIDTH, 1)).gmacs > 0 and not model.plain


def test_counting_leaves_mode_and_statistics_alone() -> None:
    model = bench.load_model("unet", bench.load_task("sevir_lr"), channels=[4], center_channels=8).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count_model(model, (7, 128, 128, 1))
    assert model.training and all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_unet_has_the_published_size() -> None:
    cost = bench.count("unet", bench.load_task("sevir"))
    assert cost.parameters == 16_556_044
    assert cost.gmacs == pytest.approx(32.80, abs=0.005)


def test_speed_says_what_it_was_measured_on() -> None:
    speed = measure_speed(bench.load_model("persistence", bench.load_task("sevir_lr")), (7, 128, 128, 1))
    assert speed.latency_s > 0 and speed.device == "cpu" and speed.threads == torch.get_num_threads()
