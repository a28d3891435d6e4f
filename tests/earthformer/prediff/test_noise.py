"""Counter-based random numbers: published values, layout, distribution, and independence of batch and device."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from earthformer.prediff.noise import RowNoise, content_seeds, members_of, philox

WORD = 0xFFFFFFFF


def in_integers(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Returns Philox 4x32-10, computed with Python integers."""
    for _ in range(10):
        high, low = divmod(0xD2511F53 * counter[0], 2**32), divmod(0xCD9E8D57 * counter[2], 2**32)
        counter = (low[0] ^ counter[1] ^ key[0], low[1], high[0] ^ counter[3] ^ key[1], high[1])
        key = ((key[0] + 0x9E3779B9) & WORD, (key[1] + 0xBB67AE85) & WORD)
    return counter


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((WORD,) * 4, (WORD,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)  # fmt: skip
def test_random_words_match_the_random123_test_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], words: str
) -> None:
    found = philox(tuple(torch.tensor([part]) for part in counter), tuple(torch.tensor([part]) for part in key))
    assert [f"{int(word):08x}" for word in found] == words.split()
    assert " ".join(f"{word:08x}" for word in in_integers(counter, key)) == words


def test_a_number_is_determined_by_seed_member_draw_and_position() -> None:
    """The layout is part of the definition of members: another one draws other members for the same seed."""
    seed, member, draw = 2**62 + 12345678901, 3, 17
    drawn = RowNoise(torch.tensor([seed]), torch.tensor([member])).normal((3, 3), draw).flatten()
    for place in range(9):
        words = in_integers((place // 4, draw, member, 0), (seed & WORD, seed >> 32))
        first, second = (words[place % 4 // 2 * 2 + part] for part in range(2))
        radius, angle = math.sqrt(-2 * math.log((first + 0.5) / 2**32)), 2 * math.pi * (second + 0.5) / 2**32
        expected = radius * (math.sin(angle) if place % 2 else math.cos(angle))
        assert float(drawn[place]) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_rows_draw_independently_of_each_other() -> None:
    noise = members_of(torch.tensor([7, 2**62, 9]), 4)
    together = noise.normal((3, 5), 2)
    assert together.dtype == torch.float32 and len(noise) == 12
    assert torch.equal(noise[5:7].normal((3, 5), 2), together[5:7])
    assert torch.equal(members_of(torch.tensor([2**62]), 2).normal((3, 5), 2), together[4:6])
    assert torch.equal(noise[5:6].uniform(), noise.uniform()[5:6])
    assert len({float(value) for value in together.flatten()}) == together.numel()


def test_numbers_are_normal_and_independent() -> None:
    noise = members_of(torch.arange(4), 2)
    drawn = torch.stack([noise.normal((5_000,), draw) for draw in range(4)]).double()
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 0.01
    assert float(drawn.mean()) == pytest.approx(0, abs=0.01) and float(drawn.var()) == pytest.approx(1, abs=0.02)
    assert float((drawn**4).mean()) == pytest.approx(3, abs=0.1)
    others = torch.corrcoef(drawn.flatten(0, 1)) - torch.eye(32)
    assert float(others.abs().max()) < 5 / math.sqrt(5_000)
    near = torch.corrcoef(torch.stack((drawn[..., :-1].flatten(), drawn[..., 1:].flatten())))
    assert abs(float(near[0, 1])) < 0.02


def test_uniforms_and_integers_cover_their_range() -> None:
    noise = members_of(torch.arange(3_000), 1)
    assert stats.kstest(noise.uniform().numpy(), "uniform").pvalue > 0.01
    found = noise.integers(10).bincount()
    assert len(found) == 10 and stats.chisquare(found.numpy()).pvalue > 0.01


def test_content_seeds_are_unique_and_independent_of_the_batch() -> None:
    frames = torch.randint(256, (40, 3, 8, 8, 1)) / 255
    seeds = content_seeds(frames, 5)
    assert len(set(seeds.tolist())) == 40 and int(seeds.min()) >= 0
    assert torch.equal(content_seeds(frames[7:9], torch.tensor([5])), seeds[7:9])
    assert not set(seeds.tolist()) & set(content_seeds(frames, 6).tolist())
    changed = frames.clone()
    changed[:, 0, 0, 0] += 1 / 255
    swapped = frames.flip(1)
    for other in (changed, swapped):
        assert not (content_seeds(other, 5) == seeds).any()


def test_content_seeds_of_8_bit_frames_are_robust_to_rounding() -> None:
    """A GPU multiplies by the reciprocal where a CPU divides, which changes the last digit of some values."""
    stored = torch.arange(256).float().view(1, 4, 8, 8, 1)
    divided, multiplied = stored / 255, stored * torch.tensor(1 / 255)
    assert not torch.equal(divided, multiplied)
    assert torch.equal(content_seeds(divided), content_seeds(multiplied))


def test_extreme_values_have_a_seed() -> None:
    wild = torch.tensor([[math.nan, 1e30], [math.inf, 0.0]])
    assert torch.equal(content_seeds(wild), content_seeds(wild.clone()))
