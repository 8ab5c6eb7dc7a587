import subprocess
import sys

import pytest
from timm.data import ImageNetInfo

from mae_bench.errors import BenchError
from mae_bench.suites import synsets
from mae_bench.suites.synsets import SYNSET, published_synsets


def test_thousand_classes_are_in_the_order_of_outputs() -> None:
    assert list(published_synsets("imagenet")) == ImageNetInfo("imagenet-1k").label_names()


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_choice_is_of_200_of_the_thousand_in_their_order(name: str) -> None:
    assert len(published_synsets(name)) == 200
    assert set(published_synsets(name)) <= set(published_synsets("imagenet"))
    assert list(published_synsets(name)) == sorted(published_synsets(name))
    assert all(SYNSET.fullmatch(synset) for synset in published_synsets(name))


def test_lists_are_read_without_importing_timm() -> None:
    code = "import sys; from mae_bench.suites.synsets import published_synsets as lists; lists('imagenet_a')"
    run = [sys.executable, "-c", f"{code}; print('timm' in sys.modules)"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synsets, "find_spec", lambda _: None)
    with pytest.raises(BenchError, match=r"timm, .*, is missing: install mae_bench again"):
        published_synsets.__wrapped__("imagenet")
