"""The noise source and the sampler: published vectors, distribution tests, and that nobody can replay them.

Random tests use thresholds that a correct source misses less than once in 10^9 runs.
"""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from training import randomness
from training.randomness import BLOCK, ERROR, Keystream, PoissonSampler

NEVER = 1e-9


class Fixed:
    """Entropy that always says the same: for vectors and for showing what a seed would do."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = list(parts)

    def __call__(self, count: int) -> bytes:
        part = self.parts.pop(0)
        assert len(part) == count
        return part


def test_the_keystream_is_aes_256_in_counter_mode():
    """McGrew and Viega 2004, test case 14: key and nonce zero, plaintext zero. And bare AES in counter mode agrees."""
    words = Keystream(Fixed(bytes(32), bytes(12))).words(2)
    assert words.tobytes().hex() == "cea7403d4d606b6e074ec5d3baf39d18"
    key, nonce = bytes(range(32)), bytes(range(100, 112))
    bare = Cipher(algorithms.AES(key), modes.CTR(nonce + (2).to_bytes(4, "big"))).encryptor()
    assert Keystream(Fixed(key, nonce)).words(1001).tobytes() == bare.update(bytes(8008))


def test_a_key_is_replaced_before_its_counter_begins_again(monkeypatch):
    monkeypatch.setattr(randomness, "KEY_BYTES", 160)
    parts = [np.random.default_rng(index).bytes(size) for index in range(4) for size in (32, 12)]
    stream = Keystream(Fixed(*parts))
    drawn = [stream.words(10), stream.words(1), stream.normal_block(9).tolist(), stream.words(10), stream.words(1)]
    first, second, third = (Keystream(Fixed(*parts[2 * index : 2 * index + 2])) for index in range(3))
    made = [first.words(10), first.words(1), second.normal_block(9).tolist(), second.words(10), third.words(1)]
    assert [list(one) for one in drawn] == [list(one) for one in made]


def test_two_streams_never_agree_and_seeding_changes_nothing():
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append(Keystream().gaussian(50))
    assert not np.intersect1d(drawn[0], drawn[1]).size


def test_a_stream_leaves_torchs_and_numpys_generators_alone():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    PoissonSampler(Fraction(1, 2), Keystream()).draw(100)
    Keystream().gaussian(100)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def gaussian(count):
    return Keystream().gaussian(count)


def normal_blocks(count):
    stream = Keystream()
    sizes = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
    return np.concatenate([stream.normal_block(size).numpy().copy() for size in sizes])


KINDS = pytest.mark.parametrize("draw", [gaussian, normal_blocks])


@KINDS
def test_gaussian_values_are_gaussian(draw):
    values = draw(400_000)
    assert stats.kstest(values, "norm").pvalue > NEVER
    assert abs(values.mean()) < 6 / np.sqrt(len(values))
    assert abs(values.var() - 1) < 6 * np.sqrt(2 / len(values))
    assert abs(stats.skew(values)) < 6 * np.sqrt(6 / len(values))
    assert abs(stats.kurtosis(values)) < 6 * np.sqrt(24 / len(values))
    for bound in (2.0, 3.0, 4.0):  # both tails hold what they should
        share = 2 * stats.norm.sf(bound)
        count = int((np.abs(values) > bound).sum())
        assert stats.binomtest(count, len(values), share).pvalue > NEVER


def test_far_tails_hold_what_they_should():
    """Out to six standard deviations: two in a thousand million values are beyond."""
    stream, far = Keystream(), {3.0: 0, 4.0: 0, 5.0: 0, 6.0: 0}
    count = 8_000_000
    for _ in range(count // BLOCK):
        values = stream.normal_block(BLOCK).abs()
        for bound in far:
            far[bound] += int((values > bound).sum())
    drawn = count // BLOCK * BLOCK
    for bound, found in far.items():
        assert stats.binomtest(found, drawn, 2 * stats.norm.sf(bound)).pvalue > NEVER


@KINDS
def test_gaussian_values_are_independent(draw):
    values = draw(200_000)
    for lag in (1, 2, 1000, BLOCK // 2, 100_000):  # half a block or half of all: the other value of a pair
        r = np.corrcoef(values[lag:], values[:-lag])[0, 1]
        assert abs(r) < 6.2 / np.sqrt(len(values) - lag)
        r = np.corrcoef(values[lag:] ** 2, values[:-lag] ** 2)[0, 1]
        assert abs(r) < 6.2 / np.sqrt(len(values) - lag)
    assert len(np.unique(values)) == len(values)


class Given:
    """Stands in for the cipher: what was given, again and again."""

    def __init__(self, words: list[int]) -> None:
        self.words = np.array(words, dtype="<i8").tobytes()

    def update(self, data: bytes) -> bytes:
        return (self.words * (len(data) // len(self.words) + 1))[: len(data)]

    def update_into(self, data: bytes, room: bytearray) -> int:
        room[: len(data)] = self.update(bytes(data))
        return len(data)


def test_single_values_are_within_their_bound_of_exact_arithmetic():
    """mpmath's logarithm, sine and cosine at 60 digits, on random words and those that are next to zero and to one."""
    random = Keystream().words(400).view(np.int64).tolist()
    largest = 2**63 - 1
    sizes = [
        2**45,
        2**45 + 1,
        2**50 + 3,
        2**53 - 1,
        2**62,
        largest,
        largest - 2**20,
        largest - 2**40,
        -(2**45),
        -(2**63),
    ]
    radii, angles = (random[:200] + sizes), (random[200:] + random[200 : 200 + len(sizes)])
    stream = Keystream()
    stream._encryptor = Given([*radii, *angles])
    found = stream.normal_block(2 * len(radii)).tolist()
    with mpmath.workdps(60):
        for index, (word, turn) in enumerate(zip(radii, angles, strict=True)):
            radius = mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(abs(word)) / 2**63))
            # Next to one the logarithm is small, and the 53 bits of its argument count; that is as rare as r^2.
            bound = ERROR * max(radius, 1) + 2.0**-52 / max(radius, mpmath.mpf(2) ** -26)
            angle = mpmath.pi * turn / 2**63
            assert abs(found[index] - radius * mpmath.cos(angle)) < bound
            assert abs(found[len(radii) + index] - radius * mpmath.sin(angle)) < bound


def test_small_words_are_given_more_bits():
    """Without them the smallest word would be the end, and words next to it would leave gaps in the tails."""
    values = []
    for word in (0, 1, -1, 5, 2**40):
        stream = Keystream()
        stream._encryptor = Given([word, 0])  # the angle is zero: the first value is the radius
        stream.uniform = lambda count: np.linspace(0.0, 1.0 - 2.0**-53, count)
        values.append(float(stream.normal_block(2)[0]))
        place = mpmath.mpf(max(abs(abs(word) - 0.5), 2.0**-54)) / 2**63
        assert abs(values[-1] - float(mpmath.sqrt(-2 * mpmath.log(place)))) < 1e-9
    assert values[0] > 9.2
    stream = Keystream()
    stream._encryptor = Given([0, 0])
    stream.uniform = lambda count: np.full(count, 0.5)  # the middle of the interval around zero
    assert 12 < float(stream.normal_block(2)[0]) < 13


@pytest.mark.parametrize("count", [1, 2, 3, BLOCK - 1, BLOCK])
def test_as_many_values_come_as_were_asked_for(count):
    values = Keystream().normal_block(count)
    assert values.shape == (count,)
    assert bool(torch.isfinite(values).all())


def test_the_tails_are_not_cut_where_32_bits_would_cut_them():
    """With a 32-bit uniform a single Box-Muller value ends at 6.66; the smallest 64-bit word reaches beyond nine."""
    zero_words = Keystream(Fixed(bytes(32), bytes(12)))
    zero_words.words = lambda count: np.zeros(count, dtype=np.uint64)
    assert zero_words.gaussian(1)[0] > 9


def test_extreme_words_give_finite_values():
    for word in (0, 2**64 - 1):
        stream = Keystream()
        stream.words = lambda count, word=word: np.full(count, word, dtype=np.uint64)
        assert np.isfinite(stream.gaussian(8)).all()
        assert (stream.uniform(8) >= 0).all()
        assert (stream.uniform(8) < 1).all()


def test_uniform_values_are_uniform():
    assert stats.kstest(Keystream().uniform(200_000), "uniform").pvalue > NEVER


@pytest.mark.parametrize("rate", [Fraction(1, 100), Fraction(1, 3), Fraction(1, 2), Fraction(99, 100)])
def test_each_row_enters_at_the_rate_and_sizes_are_binomial(rate):
    sampler = PoissonSampler(rate, Keystream())
    rows, steps = 300, 2000
    draws = [sampler.draw(rows) for _ in range(steps)]
    per_row = np.bincount(np.concatenate(draws), minlength=rows)
    # Every single row, and all of them together, enter at the rate.
    assert min(stats.binomtest(int(n), steps, float(rate)).pvalue for n in per_row) > NEVER
    assert stats.binomtest(int(per_row.sum()), rows * steps, float(rate)).pvalue > NEVER
    # The batch size varies as independent choices make it vary: shuffled batches have no variance at all.
    sizes = np.array([len(draw) for draw in draws])
    expected = rows * float(rate) * (1 - float(rate))
    ratio = sizes.var(ddof=1) / expected * (steps - 1)
    assert NEVER < stats.chi2(steps - 1).cdf(ratio) < 1 - NEVER


def test_rows_and_steps_are_independent():
    sampler = PoissonSampler(Fraction(1, 2), Keystream())
    chosen = np.zeros((4000, 20))
    for step in range(4000):
        chosen[step, sampler.draw(20)] = 1
    table = np.corrcoef(chosen.T)
    assert np.abs(table - np.eye(20)).max() < 6.5 / np.sqrt(4000)
    repeats = np.mean(chosen[1:] * chosen[:-1])
    assert abs(repeats - 0.25) < 6.5 * np.sqrt(0.25 * 0.75 / (3999 * 20)) * 2


def test_draws_are_increasing_and_distinct():
    sampler = PoissonSampler(Fraction(1, 3), Keystream())
    for _ in range(50):
        drawn = sampler.draw(100)
        assert (np.diff(drawn) > 0).all()
        assert drawn.size == 0 or (drawn[0] >= 0 and drawn[-1] < 100)


def test_rate_one_takes_everybody_and_impossible_rates_are_refused():
    assert PoissonSampler(Fraction(1), Keystream()).draw(5).tolist() == [0, 1, 2, 3, 4]
    assert PoissonSampler(Fraction(1, 2), Keystream()).draw(0).tolist() == []
    for rate in (Fraction(0), Fraction(-1, 2), Fraction(3, 2)):
        with pytest.raises(ValueError):
            PoissonSampler(rate, Keystream())


def test_adding_a_row_does_not_change_whether_others_enter():
    for _ in range(20):
        part = np.random.default_rng().bytes(48)
        few = PoissonSampler(Fraction(1, 3), Keystream(Fixed(part[:32], part[32:44]))).draw(100)
        more = PoissonSampler(Fraction(1, 3), Keystream(Fixed(part[:32], part[32:44]))).draw(101)
        assert few.tolist() == [row for row in more.tolist() if row < 100]
