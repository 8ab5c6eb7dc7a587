import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mae_bench import randomness
from mae_bench.randomness import philox, random_normal, random_uniform, random_words

LAW = settings(max_examples=40, deadline=None, derandomize=True)

words32 = st.integers(0, 2**32 - 1)
keys64 = st.integers(-(2**63), 2**63 - 1)
seeds = st.integers(0, 2**32 - 1)
streams = st.text(max_size=12)


def slow_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as published: Salmon et al. 2011, section 3.3, in Python's unbounded integers."""
    c, k = list(counter), list(key)
    for number in range(10):
        if number:
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
    return c


def slow_words(key: int, count: int, seed: int, stream: str) -> list[int]:
    label = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:4], "little")
    unsigned = key % 2**64
    words: list[int] = []
    for position in range(math.ceil(count / 4)):
        words += slow_philox([position, 0, label, seed], [unsigned % 2**32, unsigned // 2**32])
    return words[:count]


def one(value: int) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int64)


# kat_vectors of Random123 (D. E. Shaw Research), lines "philox4x32 10"
@pytest.mark.parametrize(
    "line",
    [
        "00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd",
        "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1",
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_answers(line: str) -> None:
    values = [int(word, 16) for word in line.split()]
    counter, key, answer = values[:4], values[4:6], values[6:]
    c0, c1, c2, c3 = (one(word) for word in counter)
    assert [int(word) for word in philox((c0, c1, c2, c3), (one(key[0]), one(key[1])))] == answer
    assert slow_philox(counter, key) == answer


@LAW
@given(st.lists(st.lists(words32, min_size=6, max_size=6), min_size=1, max_size=5))
def test_philox_is_what_unbounded_integers_give(rows: list[list[int]]) -> None:
    columns = torch.tensor(rows, dtype=torch.int64).unbind(1)
    words = torch.stack(philox(columns[:4], (columns[4], columns[5])), dim=1)
    assert words.tolist() == [slow_philox(row[:4], row[4:]) for row in rows]


@LAW
@given(st.lists(keys64, min_size=1, max_size=5), st.integers(1, 13), seeds, streams)
def test_words_are_a_function_of_seed_stream_image_and_position(
    keys: list[int], count: int, seed: int, stream: str
) -> None:
    words = random_words(torch.tensor(keys), count, seed, stream)
    assert words.tolist() == [slow_words(key, count, seed, stream) for key in keys]


@LAW
@given(st.lists(keys64, min_size=1, max_size=8), st.integers(1, 9), seeds, st.data())
def test_normal_numbers_do_not_depend_on_batch_or_order(
    keys: list[int], count: int, seed: int, data: st.DataObject
) -> None:
    whole = random_normal(torch.tensor(keys), count, seed, "stream")
    order = data.draw(st.permutations(range(len(keys))))
    cut = data.draw(st.integers(1, len(keys)))
    shuffled = torch.tensor(keys)[order]
    parts = [random_normal(part, count, seed, "stream") for part in shuffled.split(cut)]
    assert torch.equal(torch.cat(parts), whole[order])


@LAW
@given(st.lists(keys64, min_size=1, max_size=8), st.integers(1, 9), seeds, st.data())
def test_words_do_not_depend_on_batch_or_order(keys: list[int], count: int, seed: int, data: st.DataObject) -> None:
    whole = random_words(torch.tensor(keys), count, seed, "stream")
    order = data.draw(st.permutations(range(len(keys))))
    cut = data.draw(st.integers(1, len(keys)))
    shuffled = torch.tensor(keys)[order]
    parts = [random_words(part, count, seed, "stream") for part in shuffled.split(cut)]
    assert torch.equal(torch.cat(parts), whole[order])


@LAW
@given(st.lists(keys64, min_size=1, max_size=3), st.integers(1, 9), st.integers(0, 9), seeds)
def test_more_numbers_begin_with_fewer(keys: list[int], count: int, more: int, seed: int) -> None:
    for draw in (random_words, random_normal):
        few = draw(torch.tensor(keys), count, seed, "stream")
        many = draw(torch.tensor(keys), count + more, seed, "stream")
        assert torch.equal(many[:, :count], few)


@LAW
@given(st.lists(keys64, min_size=1, max_size=3), st.integers(1, 9), seeds, streams)
def test_uniform_numbers_are_the_upper_24_bits_exactly(keys: list[int], count: int, seed: int, stream: str) -> None:
    uniform = random_uniform(torch.tensor(keys), count, seed, stream)
    # 24 bits fit a float32, so that equality holds without rounding
    expected = [[(word // 2**8) / 2**24 for word in slow_words(key, count, seed, stream)] for key in keys]
    assert uniform.tolist() == expected
    assert uniform.dtype == torch.float32


def box_muller(first: int, second: int) -> tuple[float, float]:
    """Two normal numbers from two words: a point whose squared radius is exponential and whose angle is uniform."""
    radius = math.sqrt(-2 * math.log((first + 1) / 2**32))
    angle = 2 * math.pi * second / 2**32
    return radius * math.cos(angle), radius * math.sin(angle)


@LAW
@given(st.lists(keys64, min_size=1, max_size=5), st.integers(1, 13), seeds, streams)
def test_normal_numbers_are_those_of_box_and_muller(keys: list[int], count: int, seed: int, stream: str) -> None:
    normals = random_normal(torch.tensor(keys), count, seed, stream)
    for found, key in zip(normals, keys, strict=True):
        words = slow_words(key, count + count % 2, seed, stream)
        expected = [number for pair in zip(words[::2], words[1::2], strict=True) for number in box_muller(*pair)]
        # half a unit in the last place of float32, or what is left of a sine near its zero in float64
        assert found.tolist() == pytest.approx(expected[:count], rel=1e-7, abs=1e-14)
    assert normals.dtype == torch.float32


def test_normal_numbers_are_finite_at_either_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = np.array([[[0, 0, 0, 2**31], [2**32 - 1, 0, 2**32 - 1, 2**32 - 1]]], np.uint32)
    monkeypatch.setattr(randomness, "_drawn_in_cache", lambda *_: [((slice(0, 1), slice(0, 2)), ends)])
    normals = random_normal(one(0), 8, 0, "stream")[0].tolist()
    farthest = math.sqrt(64 * math.log(2))
    assert normals == pytest.approx([farthest, 0, -farthest, 0, 0, 0, 0, 0], rel=1e-7, abs=1e-14)


def test_empty_batch_has_no_words() -> None:
    assert random_words(torch.zeros(0, dtype=torch.int64), 5, 0, "stream").shape == (0, 5)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40])
def test_seed_that_does_not_fit_is_refused(seed: int) -> None:
    for draw in (random_words, random_uniform, random_normal):
        with pytest.raises(ValueError, match=rf"seed {seed} is outside 0..4294967295"):
            draw(one(1), 4, seed, "stream")


# Statistical laws are checked on fixed keys: the outcome is a constant of the definition, and at a level of
# 1e-4 a sound generator fails one of the checks below with a probability under 1 %.
ALPHA = 1e-4
CONTENT_KEYS = torch.from_numpy(
    np.array([int(hashlib.sha256(bytes([i])).hexdigest()[:16], 16) for i in range(64)], dtype=np.uint64).view(np.int64)
)
NEIGHBOURING_KEYS = torch.arange(64)


@pytest.mark.parametrize("keys", [CONTENT_KEYS, NEIGHBOURING_KEYS], ids=["content", "neighbouring"])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_numbers_are_uniform_over_positions_and_over_images(keys: torch.Tensor, seed: int) -> None:
    uniform = random_uniform(keys, 256, seed, "uniformity").numpy().astype(np.float64)
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > ALPHA
    # over images at one position: what a mask draws from
    over_images = random_uniform(torch.cat([keys * 64 + i for i in range(64)]), 1, seed, "uniformity").numpy()
    assert stats.kstest(over_images.ravel().astype(np.float64), "uniform").pvalue > ALPHA


@pytest.mark.parametrize("keys", [CONTENT_KEYS, NEIGHBOURING_KEYS], ids=["content", "neighbouring"])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_normal_numbers_are_normal_over_positions_and_over_images(keys: torch.Tensor, seed: int) -> None:
    normals = random_normal(keys, 1024, seed, "normality").double().numpy().ravel()
    assert stats.kstest(normals, "norm").pvalue > ALPHA
    over_images = random_normal(torch.cat([keys * 64 + i for i in range(64)]), 2, seed, "normality").double().numpy()
    for numbers in over_images.T:
        assert stats.kstest(numbers, "norm").pvalue > ALPHA
    # four standard errors of the first four moments, and the share beyond three and four deviations
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (normals**power).mean() == pytest.approx(moment, abs=4 * math.sqrt(variance / len(normals)))
    for bound in (3, 4):
        assert stats.binomtest(int((abs(normals) > bound).sum()), len(normals), 2 * stats.norm.sf(bound)).pvalue > ALPHA


@pytest.mark.parametrize("bit", range(0, 32, 5))
def test_every_bit_is_set_half_of_the_time(bit: int) -> None:
    set_bits = int(((random_words(CONTENT_KEYS, 256, 7, "bits") >> bit) & 1).sum())
    assert stats.binomtest(set_bits, 64 * 256).pvalue > ALPHA


def correlation_is_chance(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(stats.pearsonr(a.flatten().numpy(), b.flatten().numpy()).pvalue > ALPHA)


@pytest.mark.parametrize(("seed", "other"), [(0, 1), (0, 2**31), (12345, 12346)])
def test_seeds_are_independent(seed: int, other: int) -> None:
    a, b = (random_uniform(CONTENT_KEYS, 256, s, "stream") for s in (seed, other))
    assert correlation_is_chance(a, b)


@pytest.mark.parametrize(("stream", "other"), [("random_patch", "random_patch_offset"), ("a", "b"), ("", " ")])
def test_streams_are_independent(stream: str, other: str) -> None:
    a, b = (random_uniform(CONTENT_KEYS, 256, 0, s) for s in (stream, other))
    assert correlation_is_chance(a, b)


def test_images_and_positions_are_independent() -> None:
    uniform = random_uniform(NEIGHBOURING_KEYS, 256, 0, "stream")
    assert correlation_is_chance(uniform[:-1], uniform[1:])
    assert correlation_is_chance(uniform[:, :-1], uniform[:, 1:])
    assert correlation_is_chance(uniform[:, :-4], uniform[:, 4:])


def test_normal_numbers_of_a_pair_are_independent() -> None:
    normals = random_normal(NEIGHBOURING_KEYS, 1024, 0, "stream")
    cosines, sines = normals[:, 0::2], normals[:, 1::2]
    assert correlation_is_chance(cosines, sines)
    # they share a radius, which shows in their size unless the radius is that of a normal point
    assert correlation_is_chance(cosines.square(), sines.square())
    assert correlation_is_chance(normals[:-1], normals[1:])


@LAW
@given(keys64, st.integers(0, 63), seeds)
def test_every_bit_of_an_images_key_counts(key: int, bit: int, seed: int) -> None:
    unsigned = (key % 2**64) ^ (1 << bit)
    other = unsigned - 2**64 if unsigned >= 2**63 else unsigned
    # for a fixed counter the cipher is no bijection in its key: two words may agree, eight do not by chance
    assert not torch.equal(random_words(one(key), 8, seed, "stream"), random_words(one(other), 8, seed, "stream"))


@pytest.mark.parametrize("images", [0, 1, 3, 40])
@pytest.mark.parametrize("count", [1, 4 * randomness._COUNTERS - 3, 4 * randomness._COUNTERS + 5])
def test_however_many_counters_are_worked_on_at_a_time_words_are_those_of_other_devices(
    images: int, count: int
) -> None:
    keys = torch.randint(-(2**63), 2**63 - 1, (images,), generator=torch.Generator().manual_seed(0))
    label = int.from_bytes(hashlib.sha256(b"stream").digest()[:4], "little")
    position, zero = torch.arange(math.ceil(count / 4))[None], torch.tensor(0)
    counter = (position, zero, zero + label, zero + 7)
    expected = torch.stack(philox(counter, ((keys & 0xFFFFFFFF)[:, None], (keys >> 32 & 0xFFFFFFFF)[:, None])), dim=-1)
    assert torch.equal(random_words(keys, count, 7, "stream"), expected.flatten(1)[:, :count])
    normals = random_normal(keys, count, 7, "stream")
    assert normals.shape == (images, count)
    for image in range(min(images, 3)):
        assert torch.equal(random_normal(keys[image : image + 1], count, 7, "stream")[0], normals[image])
