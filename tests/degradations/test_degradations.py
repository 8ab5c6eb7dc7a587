import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.cells import FAMILIES, MARKS, Level
from mae_bench.degradations import (
    BUILT_IN,
    CORRUPTIONS,
    DEGRADATIONS,
    DOMAINS,
    FILLS,
    PATTERNS,
    SALIENT,
    Degradation,
    Setting,
    degradation,
)

LAW = settings(max_examples=5, deadline=None, derandomize=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# square and not, a multiple of the grid of 7 cells and not
SIZES = [(28, 28), (20, 31), (33, 24), (21, 42)]
# the rest moves pixels by real arithmetic, whose rounding may depend on the shape of a batch
EXACT = [kind for kind in BUILT_IN if kind.family == "occlusion" and not kind.name.endswith("lowpass")]
ROUNDING = ("glass_blur", "shot_noise", "impulse_noise", "pixelate", "jpeg_compression", "snow", "spatter")
"""Corruptions that round, threshold or count on their way, so that the last bit of a number may turn a pixel."""


def named(kind: Degradation) -> str:
    return f"{kind.family}-{kind.name}"


every = pytest.mark.parametrize("entry", BUILT_IN, ids=named)


def levels_of(entry: Degradation) -> st.SearchStrategy[Level]:
    low, high = DOMAINS[entry.unit]
    # in hundredths, as in a cell's id; beyond 8 px nothing is left of an image of 28
    hundredths = st.integers(round(100 * low), round(100 * min(high, 8.0)))
    return hundredths.map(lambda hundredths: Level(hundredths / 100, severity=entry.by_severity))


def nearly_equal(entry: Degradation, one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether pixels are as equal as the law has it: within 1e-5, and where an algorithm rounds, thresholds or counts,
    all but a thousandth of them, of a small image one in a hundred.
    """
    off = (one - other).abs() > 1e-5
    return int(off.sum()) <= (off.numel() // 100 if entry.name in ROUNDING else 0)


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
        salience = torch.rand(self.count, 49, generator=torch.Generator().manual_seed(self.seed))
        salience /= salience.sum(1, keepdim=True)
        return Setting(keys, self.run_seed, reference_size=28, mean=self.mean[: self.channels], salience=salience)


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
    assert setting.salience is not None
    return Setting(setting.keys[rows], setting.seed, setting.reference_size, setting.mean, setting.salience[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every
@LAW
@given(data=st.data())
def test_shape_dtype_and_range_are_kept(entry: Degradation, dtype: torch.dtype, data: st.DataObject) -> None:
    batch, level = data.draw(batches()), data.draw(levels_of(entry))
    images = batch.images.to(dtype)
    before = images.clone()
    degraded = entry.apply(images, level, batch.setting)
    assert degraded.shape == images.shape
    assert degraded.dtype == dtype
    # a NaN fails both comparisons
    assert bool(((degraded >= 0) & (degraded <= 1)).all())
    assert torch.equal(images, before)


@every
def test_images_that_require_a_gradient_are_degraded_like_others(entry: Degradation) -> None:
    batch = Batch(2, 3, (28, 28), False, 0, 0, (0.5, 0.5, 0.5))
    level = Level(3.0, severity=True) if entry.by_severity else Level(0.0 if entry.name == "clean" else 0.5)
    degraded = entry.apply(batch.images.requires_grad_(), level, batch.setting)
    assert torch.equal(degraded.detach(), entry.apply(batch.images, level, batch.setting))


@pytest.mark.parametrize("entry", DEGRADATIONS.values(), ids=named)
@LAW
@given(batches(), st.sampled_from(DTYPES))
def test_level_zero_changes_nothing(entry: Degradation, batch: Batch, dtype: torch.dtype) -> None:
    images = batch.images.to(dtype)
    assert torch.equal(entry.apply(images, Level(0.0), batch.setting), images)


@every
def test_what_acts_on_tokens_leaves_pixels_alone(entry: Degradation) -> None:
    assert entry.on_tokens is (entry.name == "token_drop")
    images, setting = torch.rand(2, 1, 28, 28), Setting(torch.arange(2), 0, 28, (0.5,))
    if entry.on_tokens:
        assert entry.apply(images, Level(0.9), setting) is images


@pytest.mark.parametrize("entry", [kind for kind in BUILT_IN if kind.name not in ("clean", "token_drop")], ids=named)
@LAW
@given(batches())
def test_strong_level_changes_every_image(entry: Degradation, batch: Batch) -> None:
    level = strong(entry)
    # noise of little contrast, which no fill equals: the mean is outside of it
    images = 0.5 + 0.2 * torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(batch.seed))
    setting = replace(batch.setting, mean=(0.25,) * batch.channels)
    changed = entry.apply(images, level, setting) != images
    assert bool(changed.flatten(1).any(dim=1).all()) is not (entry.colour and batch.channels == 1)


def strong(entry: Degradation) -> Level:
    """A level that leaves no image as it is."""
    if entry.by_severity:
        return Level(5.0, severity=True)
    return Level({"blur": 4.0, "geometry": 30.0 if entry.unit == "degrees" else 0.3}.get(entry.family, 0.5))


@every
@LAW
@given(data=st.data())
def test_batch_and_order_do_not_matter(entry: Degradation, data: st.DataObject) -> None:
    batch, level = data.draw(batches(smallest=2)), data.draw(levels_of(entry))
    images, setting = batch.images, batch.setting
    whole = entry.apply(images, level, setting)
    order = torch.tensor(data.draw(st.permutations(range(len(images)))))
    size = data.draw(st.integers(1, len(images)))
    parts = torch.cat([entry.apply(images[rows], level, part(setting, rows)) for rows in order.split(size)])
    if entry in EXACT:
        assert torch.equal(parts, whole[order])
    else:
        assert nearly_equal(entry, parts, whole[order])
    assert torch.equal(entry.apply(images, level, setting), whole)


@every
@LAW
@given(data=st.data())
def test_image_of_one_key_is_degraded_alike_wherever_it_stands(entry: Degradation, data: st.DataObject) -> None:
    batch, level = data.draw(batches()), data.draw(levels_of(entry))
    images, setting = batch.images, batch.setting
    twice = entry.apply(images.repeat(2, 1, 1, 1), level, part(setting, torch.arange(len(images)).repeat(2)))
    assert nearly_equal(entry, twice[: len(images)], twice[len(images) :])


@every
@LAW
@given(batches(), st.sampled_from(DTYPES[1:]))
def test_lower_precision_only_rounds(entry: Degradation, batch: Batch, dtype: torch.dtype) -> None:
    lowered, setting = batch.images.to(dtype), batch.setting
    level = Level(0.0) if entry.family == "clean" else strong(entry)
    exact = entry.apply(lowered.float(), level, setting)
    # half a unit in the last place of numbers up to 1, and the difference of two float32 results
    assert (
        float((entry.apply(lowered, level, setting).float() - exact).abs().max()) <= torch.finfo(dtype).eps / 2 + 1e-5
    )


FRACTION = [-0.01, 1.01, 2.0, math.nan, math.inf, -math.inf]
OUTSIDE = {
    "px": [-0.01, -3.0, math.nan, math.inf, -math.inf],
    "fraction of area": FRACTION,
    "fraction of attention": FRACTION,
    "fraction of side": FRACTION,
    "fraction of tokens": FRACTION,
    "degrees": [-0.01, 180.01, math.nan, math.inf],
    "times larger or smaller, less 1": [-0.01, math.nan, math.inf],
    "severity": [0.0, 0.99, 5.01, 6.0, math.nan, math.inf],
    "none": [0.01, -0.01, 1.0, math.nan, math.inf],
}


@every
def test_level_outside_the_domain_is_refused_by_name(entry: Degradation) -> None:
    images, setting = torch.zeros(1, 1, 28, 28), Setting(torch.zeros(1, dtype=torch.int64), 0, 28, (0.5,))
    outside = [Level(value, severity=entry.by_severity) for value in OUTSIDE[entry.unit]]
    # and the other kind of level, whatever its value
    outside += [Level(value, severity=not entry.by_severity) for value in (0.0, 1.0, 3.0, 5.0)]
    for level in outside:
        for use in (lambda level=level: entry.check(level), lambda level=level: entry.apply(images, level, setting)):
            with pytest.raises(ValueError, match=rf"^{entry.name}: level {level} is outside its domain") as caught:
                use()
            assert entry.unit in str(caught.value)


@every
def test_ends_of_the_domain_are_inside(entry: Degradation) -> None:
    low, high = DOMAINS[entry.unit]
    setting = Setting(torch.arange(2), 0, 28, (0.5,), torch.full((2, 49), 1 / 49))
    images = torch.rand(2, 1, 28, 28)
    # blur has no largest level: a kernel wider than the image still gives an image
    for level in (low, 1000.0 if math.isinf(high) else high):
        degraded = entry.apply(images, Level(level, severity=entry.by_severity), setting)
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
    assert all(kind.name in str(caught.value) for kind in BUILT_IN)


@every
def test_entry_is_registered_under_its_name_in_a_known_family(entry: Degradation) -> None:
    assert degradation(entry.name, entry.by_severity) is entry
    assert entry.family in FAMILIES
    assert entry.unit in DOMAINS
    assert set(entry.marks) <= set(MARKS)
    # an id is cut at dashes
    assert entry.name.replace("_", "").isalnum()


def test_a_level_of_the_other_ladder_is_refused_with_its_own() -> None:
    with pytest.raises(ValueError, match="'fog' has no such level: its levels are from s1 to s5"):
        degradation("fog")
    with pytest.raises(ValueError, match=r"'stripes' has no such level: its levels are as 0\.50 or 2\.00"):
        degradation("stripes", severity=True)


def test_nineteen_corruptions_stand_in_the_four_groups_of_their_source() -> None:
    """Hendrycks and Dietterich 2019, figure 1, and the appendix for the extra four."""
    groups = {
        "noise": ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"],
        "blur": ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"],
        "weather": ["snow", "frost", "fog", "brightness", "spatter"],
        "digital": ["contrast", "pixelate", "jpeg_compression", "elastic_transform", "saturate"],
    }
    for group, names in groups.items():
        assert [kind.name for kind in CORRUPTIONS.values() if kind.group == group] == names
        assert [kind.family for kind in CORRUPTIONS.values() if kind.group == group][-1] == "c_extra"
    assert sum(kind.family == "imagenet_c" for kind in CORRUPTIONS.values()) == 15


def test_salience_is_asked_for_where_it_is_needed() -> None:
    setting = Setting(torch.zeros(1, dtype=torch.int64), 0, 28, (0.5,))
    with pytest.raises(ValueError, match="salient: needs the salience of the images"):
        degradation("salient").apply(torch.zeros(1, 1, 28, 28), Level(0.5), setting)


def test_every_pattern_is_collected_in_black_and_random_patch_in_every_fill() -> None:
    occlusions = {name for name, entry in DEGRADATIONS.items() if entry.family == "occlusion"}
    assert FILLS[0] == "black"
    assert occlusions == {*PATTERNS, *SALIENT, *(f"random_patch_{fill}" for fill in FILLS if fill != "black")}
