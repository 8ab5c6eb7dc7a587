import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.cells import FAMILIES, Level
from mae_bench.degradations import DEGRADATIONS, DOMAINS, FILLS, PATTERNS, Degradation, Setting, degradation

LAW = settings(max_examples=8, deadline=None, derandomize=True)

NAMES = list(DEGRADATIONS)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# square and not, a multiple of the grid of 7 cells and not
SIZES = [(28, 28), (20, 31), (33, 24), (14, 42)]
# the rest moves pixels by real arithmetic, whose rounding may depend on the shape of a batch
EXACT = [name for name, entry in DEGRADATIONS.items() if entry.family == "occlusion" and not name.endswith("lowpass")]


def levels_of(entry: Degradation) -> st.SearchStrategy[Level]:
    low, high = DOMAINS[entry.unit]
    # in hundredths, as in a cell's id; beyond 8 px nothing is left of an image of 28
    return st.integers(round(100 * low), round(100 * min(high, 8.0))).map(lambda hundredths: Level(hundredths / 100))


@dataclass(frozen=True)
class Batch:
    """What a batch of random images is made from: short to print where a law is broken."""

    count: int
    channels: int
    size: tuple[int, int]
    black_and_white: bool
    seed: int
    run_seed: int
    mean: tuple[float, float, float]

    @property
    def images(self) -> torch.Tensor:
        images = torch.rand(self.count, self.channels, *self.size, generator=torch.Generator().manual_seed(self.seed))
        # black and white is where what overshoots leaves the range
        return images.round() if self.black_and_white else images

    @property
    def setting(self) -> Setting:
        keys = torch.randint(-(2**62), 2**62, (self.count,), generator=torch.Generator().manual_seed(self.seed))
        return Setting(keys, self.run_seed, reference_size=28, mean=self.mean[: self.channels])


def batches(smallest: int = 1) -> st.SearchStrategy[Batch]:
    value = st.floats(0, 1, width=32)
    return st.builds(
        Batch,
        count=st.integers(smallest, 5),
        channels=st.sampled_from([1, 3]),
        size=st.sampled_from(SIZES),
        black_and_white=st.booleans(),
        seed=st.integers(0, 2**31),
        run_seed=st.integers(0, 2**32 - 1),
        mean=st.tuples(value, value, value),
    )


def part(setting: Setting, rows: torch.Tensor) -> Setting:
    return Setting(setting.keys[rows], setting.seed, setting.reference_size, setting.mean)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
@LAW
@given(data=st.data())
def test_shape_dtype_and_range_are_kept(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    entry = degradation(name)
    batch, level = data.draw(batches()), data.draw(levels_of(entry))
    images = batch.images.to(dtype)
    before = images.clone()
    degraded = entry.apply(images, level, batch.setting)
    assert degraded.shape == images.shape
    assert degraded.dtype == dtype
    # a NaN fails both comparisons
    assert bool(((degraded >= 0) & (degraded <= 1)).all())
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(batches(), st.sampled_from(DTYPES))
def test_level_zero_changes_nothing(name: str, batch: Batch, dtype: torch.dtype) -> None:
    images = batch.images.to(dtype)
    assert torch.equal(degradation(name).apply(images, Level(0.0), batch.setting), images)


@pytest.mark.parametrize("name", NAMES)
def test_what_acts_on_tokens_leaves_pixels_alone(name: str) -> None:
    entry = degradation(name)
    assert entry.on_tokens is (name == "token_drop")
    images, setting = torch.rand(2, 1, 28, 28), Setting(torch.arange(2), 0, 28, (0.5,))
    if entry.on_tokens:
        assert entry.apply(images, Level(0.9), setting) is images


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("clean", "token_drop")])
@LAW
@given(batches())
def test_strong_level_changes_every_image(name: str, batch: Batch) -> None:
    level = Level(4.0 if degradation(name).family == "blur" else 0.5)
    # noise of little contrast, which no fill equals: the mean is outside of it
    images = 0.5 + 0.2 * torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(batch.seed))
    setting = Setting(batch.setting.keys, batch.run_seed, 28, (0.25,) * batch.channels)
    changed = degradation(name).apply(images, level, setting) != images
    assert bool(changed.flatten(1).any(dim=1).all())


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(data=st.data())
def test_batch_and_order_do_not_matter(name: str, data: st.DataObject) -> None:
    entry = degradation(name)
    batch, level = data.draw(batches(smallest=2)), data.draw(levels_of(entry))
    images, setting = batch.images, batch.setting
    whole = entry.apply(images, level, setting)
    order = torch.tensor(data.draw(st.permutations(range(len(images)))))
    size = data.draw(st.integers(1, len(images)))
    parts = torch.cat([entry.apply(images[rows], level, part(setting, rows)) for rows in order.split(size)])
    if name in EXACT:
        assert torch.equal(parts, whole[order])
    else:
        assert float((parts - whole[order]).abs().max()) <= 1e-5
    assert torch.equal(entry.apply(images, level, setting), whole)


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(data=st.data())
def test_image_of_one_key_is_degraded_alike_wherever_it_stands(name: str, data: st.DataObject) -> None:
    entry = degradation(name)
    batch, level = data.draw(batches()), data.draw(levels_of(entry))
    images, setting = batch.images, batch.setting
    twice = entry.apply(images.repeat(2, 1, 1, 1), level, part(setting, torch.arange(len(images)).repeat(2)))
    assert float((twice[: len(images)] - twice[len(images) :]).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
@LAW
@given(batches(), st.sampled_from(DTYPES[1:]))
def test_lower_precision_only_rounds(name: str, batch: Batch, dtype: torch.dtype) -> None:
    entry = degradation(name)
    lowered, setting = batch.images.to(dtype), batch.setting
    level = Level({"blur": 2.5, "occlusion": 0.4, "clean": 0.0, "token_drop": 0.5}[entry.family])
    exact = entry.apply(lowered.float(), level, setting)
    # half a unit in the last place of numbers up to 1, and the difference of two float32 results
    assert (
        float((entry.apply(lowered, level, setting).float() - exact).abs().max()) <= torch.finfo(dtype).eps / 2 + 1e-5
    )


OUTSIDE = {
    "px": [-0.01, -3.0, math.nan, math.inf, -math.inf],
    "fraction of area": [-0.01, 1.01, 2.0, math.nan, math.inf, -math.inf],
    "fraction of tokens": [-0.01, 1.01, 2.0, math.nan, math.inf, -math.inf],
    "none": [0.01, -0.01, 1.0, math.nan, math.inf],
}


@pytest.mark.parametrize("name", NAMES)
def test_level_outside_the_domain_is_refused_by_name(name: str) -> None:
    entry = degradation(name)
    images, setting = torch.zeros(1, 1, 28, 28), Setting(torch.zeros(1, dtype=torch.int64), 0, 28, (0.5,))
    for level in [*map(Level, OUTSIDE[entry.unit]), *(Level(s, severity=True) for s in (0, 1, 3, 5))]:
        for use in (lambda level=level: entry.check(level), lambda level=level: entry.apply(images, level, setting)):
            with pytest.raises(ValueError, match=rf"^{name}: level {level} is outside its domain") as caught:
                use()
            assert entry.unit in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_ends_of_the_domain_are_inside(name: str) -> None:
    entry = degradation(name)
    low, high = DOMAINS[entry.unit]
    images, setting = torch.rand(2, 1, 28, 28), Setting(torch.arange(2), 0, 28, (0.5,))
    # blur has no largest level: a kernel wider than the image still gives an image
    for level in (low, 1000.0 if math.isinf(high) else high):
        degraded = entry.apply(images, Level(level), setting)
        assert bool(((degraded >= 0) & (degraded <= 1)).all())


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("gausian_blur", "gaussian_blur"), ("random_patches", "random_patch"), ("centre_block", "center_block")],
)
def test_unknown_name_is_refused_with_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown degradation {typo!r}: did you mean {meant}\?"):
        degradation(typo)


def test_unknown_name_is_refused_with_all_names() -> None:
    with pytest.raises(ValueError, match="unknown degradation 'xyzzy'") as caught:
        degradation("xyzzy")
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_registered_under_its_name_in_a_known_family(name: str) -> None:
    entry = degradation(name)
    assert entry.name == name
    assert entry.family in FAMILIES
    assert entry.unit in DOMAINS
    # an id is cut at dashes
    assert name.replace("_", "").isalnum()


def test_every_pattern_is_collected_in_black_and_random_patch_in_every_fill() -> None:
    occlusions = {name for name, entry in DEGRADATIONS.items() if entry.family == "occlusion"}
    assert FILLS[0] == "black"
    assert occlusions == {*PATTERNS, *(f"random_patch_{fill}" for fill in FILLS if fill != "black")}
