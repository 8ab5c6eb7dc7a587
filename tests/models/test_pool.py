"""One loaded model at a time."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mae_bench.models import ModelError
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import MEMORY_FORMATS, Pool, is_convolutional
from mae_bench.models.registry import ModelEntry

VIT, CNN = ModelEntry("vit"), ModelEntry("cnn")


def wrapped(module: nn.Module) -> Classifier:
    return Classifier(module, mean=(0.5,), std=(0.5,), input_size=(1, 4, 4))


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


class Answering(nn.Module):
    """Answers with whatever the function makes of the images."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images)


class Builder:
    """Builds linear models and keeps nothing but weak references to them."""

    def __init__(self) -> None:
        self.built: list[weakref.ref[nn.Module]] = []

    def __call__(self) -> Classifier:
        network = linear()
        self.built.append(weakref.ref(network))
        return wrapped(network)

    @property
    def alive(self) -> int:
        # the law is that nothing holds the model, not when the collector comes by
        gc.collect()
        return sum(reference() is not None for reference in self.built)


@pytest.fixture(autouse=True, scope="module")
def frozen_heap() -> Iterator[None]:
    """A collection walks over all that torch has imported; here only what a test makes is of interest."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def post_mortem() -> Iterator[None]:
    """Leaves no trace of what a test put where debuggers look."""
    names = ("last_type", "last_value", "last_traceback", "last_exc")
    before = {name: getattr(sys, name) for name in names if hasattr(sys, name)}
    yield
    for name in names:
        if hasattr(sys, name):
            delattr(sys, name)
    for name, value in before.items():
        setattr(sys, name, value)


def test_the_model_is_built_once_while_it_is_held() -> None:
    pool, builder = Pool("cpu"), Builder()
    first = pool.load(VIT, builder)
    assert pool.load(VIT, builder) is first
    assert len(builder.built) == 1


def test_a_released_model_is_gone() -> None:
    pool, builder = Pool("cpu"), Builder()
    pool.load(VIT, builder)
    assert builder.alive == 1
    pool.release()
    assert builder.alive == 0


def test_the_pool_says_which_model_it_holds() -> None:
    pool = Pool("cpu")
    held = [pool.held]
    for entry in (VIT, CNN):
        pool.load(entry, Builder())
        held.append(pool.held)
    pool.release()
    assert [*held, pool.held] == [None, "vit", "cnn", None]


def test_an_empty_pool_has_no_model_to_give() -> None:
    pool = Pool("cpu")
    loaded = pool.load(VIT, Builder())
    assert pool.model is loaded
    pool.release()
    with pytest.raises(LookupError, match="no model is loaded: load one first"):
        _ = pool.model


def test_a_released_model_is_built_anew_when_asked_for() -> None:
    pool, builder = Pool("cpu"), Builder()
    pool.load(VIT, builder)
    pool.release()
    assert pool.load(VIT, builder).entry is VIT
    assert len(builder.built) == 2


def test_the_former_model_is_gone_before_the_next_is_built() -> None:
    pool, builder = Pool("cpu"), Builder()
    pool.load(VIT, builder)
    alive_when_built = []

    def build() -> Classifier:
        alive_when_built.append(builder.alive)
        return wrapped(linear())

    pool.load(CNN, build)
    assert alive_when_built == [0]


def test_a_model_that_a_failed_test_left_in_a_traceback_is_gone(post_mortem: None) -> None:  # noqa: ARG001
    pool, builder = Pool("cpu"), Builder()

    def cell() -> None:
        held = pool.load(VIT, builder)
        raise AssertionError(f"{held.entry.name} regressed")

    try:
        cell()
    except AssertionError as error:
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        sys.last_exc = error  # type: ignore[attr-defined,unused-ignore]
    assert builder.alive == 1
    pool.release()
    assert builder.alive == 0


def test_a_tapped_vit_is_gone_after_it_was_evaluated(small_vit: Callable[..., nn.Module]) -> None:
    pool = Pool("cpu")
    built = []

    def build() -> Classifier:
        network = small_vit()
        built.append(weakref.ref(network))
        return Classifier(network, mean=(0.5,), std=(0.5,), input_size=(1, 28, 28))

    loaded = pool.load(VIT, build)
    with loaded.taps.capture(patches=True) as features:
        loaded.classifier(torch.zeros(1, 1, 28, 28))
    assert features.tokens
    del loaded
    pool.release()
    gc.collect()
    assert built[0]() is None


@pytest.mark.parametrize("how", ["refused", "raising-fixture", "raising-model"])
def test_a_model_that_failed_is_not_kept(how: str) -> None:
    pool = Pool("cpu")
    built: list[weakref.ref[nn.Module]] = []

    def answer(images: Tensor) -> Tensor:
        if how == "raising-model":
            raise RuntimeError("no kernel for this device")
        return images.flatten()

    def build() -> Classifier:
        network = Answering(answer)
        built.append(weakref.ref(network))
        if how == "raising-fixture":
            raise FileNotFoundError("no such checkpoint")
        return wrapped(network)

    with pytest.raises(ModelError):
        pool.load(VIT, build)
    pool.load(CNN, Builder())
    gc.collect()
    # the error is remembered, but its traceback must not hold the frames that hold the model
    assert built[0]() is None


def test_releasing_nothing_does_nothing() -> None:
    pool = Pool("cpu")
    pool.release()
    pool.load(VIT, Builder())
    pool.release()
    pool.release()


def test_clean_up_runs_once_and_before_the_next_model_is_built() -> None:
    events = []

    def fixture(name: str) -> Callable[[], Iterator[Classifier]]:
        def generator() -> Iterator[Classifier]:
            events.append(f"build {name}")
            yield wrapped(linear())
            events.append(f"clean {name}")

        return generator

    pool = Pool("cpu")
    pool.load(VIT, fixture("vit"))
    pool.load(VIT, fixture("vit"))
    pool.load(CNN, fixture("cnn"))
    pool.release()
    pool.release()
    assert events == ["build vit", "clean vit", "build cnn", "clean cnn"]


def test_clean_up_may_still_use_what_the_fixture_made() -> None:
    seen = []

    def generator() -> Iterator[Classifier]:
        model = wrapped(linear())
        yield model
        with torch.no_grad():
            seen.append(tuple(model(torch.zeros(1, 1, 4, 4)).shape))

    pool = Pool("cpu")
    pool.load(VIT, generator)
    pool.release()
    assert seen == [(1, 3)]


def test_a_model_from_a_generator_is_gone_after_release() -> None:
    builder = Builder()

    def generator() -> Iterator[Classifier]:
        model = builder()
        yield model
        assert model is not None

    pool = Pool("cpu")
    pool.load(VIT, generator)
    assert builder.alive == 1
    pool.release()
    assert builder.alive == 0


def test_a_fixture_that_yields_twice_is_an_error_that_names_it() -> None:
    def generator() -> Iterator[Classifier]:
        yield wrapped(linear())
        yield wrapped(linear())

    pool = Pool("cpu")
    pool.load(VIT, generator)
    with pytest.raises(ModelError, match="'vit' yields more than once"):
        pool.release()
    pool.release()
    assert pool.load(CNN, Builder()).outputs == 3


def test_a_fixture_that_yields_nothing_is_an_error_that_names_it() -> None:
    def generator() -> Iterator[Classifier]:
        yield from ()

    with pytest.raises(ModelError, match="model fixture 'vit' raised StopIteration"):
        Pool("cpu").load(VIT, generator)


def test_a_clean_up_that_raises_is_an_error_that_names_the_fixture() -> None:
    def generator() -> Iterator[Classifier]:
        yield wrapped(linear())
        raise OSError("disk full")

    pool = Pool("cpu")
    pool.load(VIT, generator)
    with pytest.raises(ModelError, match=r"'vit' raised OSError in its clean-up: disk full") as caught:
        pool.release()
    assert isinstance(caught.value.__cause__, OSError)
    pool.release()


def test_a_refused_model_is_cleaned_up_once() -> None:
    events = []

    def generator() -> Iterator[Classifier]:
        yield wrapped(Answering(lambda images: images.flatten()))
        events.append("clean")

    pool = Pool("cpu")
    with pytest.raises(ModelError, match="logits of shape"):
        pool.load(VIT, generator)
    pool.release()
    assert events == ["clean"]


def test_a_clean_up_that_raises_for_a_refused_model_names_the_fixture() -> None:
    def generator() -> Iterator[Classifier]:
        yield wrapped(Answering(lambda images: images.flatten()))
        raise OSError("disk full")

    with pytest.raises(ModelError, match="'vit'"):
        Pool("cpu").load(VIT, generator)


@pytest.mark.parametrize("yielding", [False, True])
def test_a_fixture_that_raises_fails_again_without_being_built_again(yielding: bool) -> None:
    calls = []

    def returning() -> Classifier:
        calls.append("built")
        raise FileNotFoundError("no such checkpoint")

    def generator() -> Iterator[Classifier]:
        yield returning()

    pool = Pool("cpu")
    build = generator if yielding else returning
    for _ in range(3):
        with pytest.raises(ModelError, match=r"'vit' raised FileNotFoundError: no such checkpoint"):
            pool.load(VIT, build)
    assert calls == ["built"]
    # another model is not concerned
    assert pool.load(CNN, Builder()).entry is CNN
    with pytest.raises(ModelError, match="no such checkpoint"):
        pool.load(VIT, build)
    assert calls == ["built"]


def test_what_the_fixture_returned_is_kept_beside_the_classifier() -> None:
    model = wrapped(linear())
    loaded = Pool("cpu").load(VIT, lambda: model)
    assert loaded.returned is model
    assert loaded.classifier is model


def test_a_loaded_model_knows_its_outputs_and_parameters() -> None:
    loaded = Pool("cpu").load(VIT, lambda: wrapped(linear()))
    assert (loaded.outputs, loaded.parameters) == (3, 16 * 3 + 3)
    assert loaded.weights_hash == loaded.classifier.weights_hash()


def test_a_model_left_in_training_mode_is_evaluated_all_the_same() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    loaded = Pool("cpu").load(VIT, lambda: wrapped(network))
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    first = loaded.classifier(images)
    assert torch.equal(loaded.classifier(images), first)
    torch.testing.assert_close(loaded.classifier(images[:1]), first[:1])
    assert int(network[1].num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (lambda images: images.mean((1, 2, 3)), r"\(2,\)"),
        (lambda images: images, r"\(2, 1, 4, 4\)"),
        (lambda images: images.flatten(1)[:1], r"\(1, 16\)"),
        (lambda images: (images.flatten(1), None), "tuple"),
        (lambda images: {"logits": images.flatten(1)}, "dict"),
        (lambda images: [images.flatten(1)], "list"),
        (lambda _: None, "NoneType"),
        (lambda images: images.flatten(1)[:, :0], r"\(2, 0\)"),
    ],
    ids=["one-dimensional", "maps", "fewer-images", "tuple", "dict", "list", "nothing", "no-classes"],
)
def test_logits_of_another_shape_are_refused(answer: Callable[[Tensor], Any], shown: str) -> None:
    message = rf"'vit' gave logits of shape {shown} for 2 images; expected \(2, classes\)"
    with pytest.raises(ModelError, match=message):
        Pool("cpu").load(VIT, lambda: wrapped(Answering(answer)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_logits_that_are_no_floating_point_numbers_are_refused_by_their_type(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=rf"'vit' gave logits of {dtype}; expected floating-point numbers"):
        Pool("cpu").load(VIT, lambda: wrapped(Answering(lambda images: images.flatten(1).to(dtype))))


def test_logits_on_another_device_are_refused() -> None:
    with pytest.raises(ModelError, match="'vit' gave logits on meta; expected them on cpu"):
        Pool("cpu").load(VIT, lambda: wrapped(Answering(lambda images: images.flatten(1).to("meta"))))


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (lambda images: images.flatten(1).squeeze(0), r"\(16,\)"),
        (lambda images: images.flatten(1)[:, : 8 * len(images)], r"\(1, 8\)"),
        (lambda images: images.flatten(1) if len(images) > 1 else None, "NoneType"),
    ],
    ids=["squeezed", "fewer-classes", "nothing"],
)
def test_logits_of_one_image_are_as_those_of_more(answer: Callable[[Tensor], Any], shown: str) -> None:
    message = rf"'vit' gave logits of shape {shown} for 1 image; expected \(1, 16\)"
    with pytest.raises(ModelError, match=message):
        Pool("cpu").load(VIT, lambda: wrapped(Answering(answer)))


@pytest.mark.parametrize(
    "answer",
    [
        lambda images: images.flatten(1) - images.flatten(1).mean(0),
        lambda images: nn.functional.dropout(images.flatten(1) + 1),
        lambda images: nn.functional.batch_norm(images.flatten(1), None, None, training=True),
        lambda images: images.flatten(1).flip(0),
    ],
    ids=["mean of the batch", "functional dropout", "normalised over the batch", "another image's"],
)
def test_a_model_whose_logits_depend_on_the_rest_of_the_batch_is_refused(answer: Callable[[Tensor], Tensor]) -> None:
    network = wrapped(Answering(lambda images: answer(images) if images.shape[0] > 1 else images.flatten(1)))
    with pytest.raises(ModelError, match=r"'vit' gives an image other logits in a batch than alone .*dropout"):
        Pool("cpu").load(VIT, lambda: network)


@pytest.mark.parametrize("largest", [1e-6, 1.0, 1e6])
def test_rounding_that_depends_on_the_batch_is_none(largest: float) -> None:
    network = Answering(lambda images: largest * (images.flatten(1) + 1) * (1 + 1e-3 * len(images)))
    assert Pool("cpu").load(VIT, lambda: wrapped(network)).outputs == 16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_with_their_number_and_the_first(value: float) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3))
    nn.init.constant_(network[1].bias, value)
    nn.init.constant_(network[2].weight, value)
    with pytest.raises(ModelError, match=r"'vit': 2 of its tensors hold NaN or infinite weights, the first is 1\.bias"):
        Pool("cpu").load(VIT, lambda: wrapped(network))


def test_a_mask_of_infinities_is_no_weight() -> None:
    network = linear()
    network.register_buffer("mask", torch.full((2, 2), float("-inf")))
    assert Pool("cpu").load(VIT, lambda: wrapped(network)).outputs == 3


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_tensors_on_another_device_are_refused_by_name(kind: str) -> None:
    network = linear()
    if kind == "parameter":
        network.extra = nn.Parameter(torch.ones(1, device="meta"))
    else:
        network.register_buffer("extra", torch.ones(1, device="meta"))
    with pytest.raises(ModelError, match=r"'vit' has tensors on meta, but the run is on cpu: .*--mae-device"):
        Pool("cpu").load(VIT, lambda: wrapped(network))


def test_a_model_that_cannot_take_its_declared_input_is_refused() -> None:
    declared = Classifier(linear(), mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(3, 8, 8))
    with pytest.raises(ModelError, match=r"'vit' cannot evaluate images of \(3, 8, 8\): .*check input_size") as caught:
        Pool("cpu").load(VIT, lambda: declared)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("returned", [None, linear()], ids=["nothing", "bare-module"])
def test_what_cannot_be_wrapped_is_refused_once_and_remembered(returned: object) -> None:
    calls = []

    def build() -> object:
        calls.append("built")
        return returned

    pool = Pool("cpu")
    for _ in range(2):
        with pytest.raises(ModelError, match=r"model fixture 'vit' returned .*Classifier\(module, mean="):
            pool.load(VIT, build)
    assert calls == ["built"]


def test_a_classifier_that_was_never_trained_is_refused_and_an_encoder_is_not(
    small_vit: Callable[..., nn.Module],
) -> None:
    network = small_vit()
    nn.init.trunc_normal_(network.head.weight, std=0.02)
    nn.init.zeros_(network.head.bias)
    model = Classifier(network, mean=(0.5,), std=(0.5,), input_size=(1, 28, 28))
    with pytest.raises(ModelError, match=r"'vit': its classifier of 8 x 16 weights was never trained.*head=False"):
        Pool("cpu").load(VIT, lambda: model)
    assert Pool("cpu").load(ModelEntry("vit", head=False), lambda: model).classifier is model
    nn.init.constant_(network.head.bias, 0.01)
    assert Pool("cpu").load(VIT, lambda: model).outputs == 8


@pytest.mark.parametrize("network", ["small_vit", "small_resnet"])
def test_what_is_compiled_holds_no_tap_and_gives_the_same(
    network: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Tensor) -> Tensor:
            ran.append("compiled")
            hooks = [m._forward_hooks or m._forward_pre_hooks for m in list(forward.__self__.modules())[1:]]
            assert not any(hooks)
            return forward(*args)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    build = request.getfixturevalue(network)
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    features, logits = [], []
    for compiles in (False, True):
        model = Classifier(build(), mean=(0.5,), std=(0.5,), input_size=(1, 28, 28))
        loaded = Pool("cpu", compiles).load(VIT, lambda model=model: model)
        with torch.inference_mode(), loaded.taps.capture(patches=True) as found:
            logits.append(loaded.classifier(images))
        features.append(found)
    assert len(ran) >= 2
    assert torch.equal(*logits)
    assert features[0].tokens.keys() == features[1].tokens.keys()
    assert features[0].heads.keys() == features[1].heads.keys()


@pytest.mark.parametrize("network", ["small_vit", "small_resnet"])
def test_weights_are_laid_out_as_asked_and_give_the_same(network: str, request: pytest.FixtureRequest) -> None:
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    build, logits = request.getfixturevalue(network), []
    for memory_format in ("auto", *MEMORY_FORMATS):
        model = Classifier(build(), mean=(0.5,), std=(0.5,), input_size=(1, 28, 28))
        loaded = Pool("cpu", memory_format=memory_format).load(VIT, lambda model=model: model)
        for weights in (each for each in loaded.classifier.parameters() if each.ndim == 4):
            assert weights.is_contiguous(memory_format=MEMORY_FORMATS.get(memory_format, torch.contiguous_format))
        with torch.inference_mode():
            logits.append(loaded.classifier(images))
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=0, atol=1e-5)


def test_what_attends_is_no_convolutional_network(
    small_vit: Callable[..., nn.Module], small_resnet: Callable[..., nn.Module]
) -> None:
    assert is_convolutional(small_resnet())
    assert not is_convolutional(small_vit())
