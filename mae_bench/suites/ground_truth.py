"""Which class each of ImageNet's numbered validation images is of, from the files that people have beside them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from mae_bench.suites import SuiteError
from mae_bench.suites.matlab import structures
from mae_bench.suites.synsets import published_synsets

IMAGES = 50_000
"""Validation images of ImageNet-1k, numbered from 1."""
DEVKIT = "ILSVRC2012_devkit_t12/data"


def ground_truth(folders: Iterable[Path]) -> tuple[Path, dict[str, str]] | None:
    """The first of the known files in one of ``folders`` or in a devkit there, and the synset that it has for each
    image by its name without suffix; None where there is none.

    Raises:
        SuiteError: the file is not what was published, or needs another beside it.
    """
    places = [place for folder in folders for place in (folder, folder / DEVKIT)]
    for name, read in FILES.items():
        for place in places:
            path = place / name
            if path.is_file():
                try:
                    return path, read(path)
                except (OSError, UnicodeDecodeError, csv.Error) as error:
                    raise _damaged(path, f"cannot be read ({error})") from error
    return None


def _kaggle(path: Path) -> dict[str, str]:
    """Kaggle's table: name of an image, then its class and boxes."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return _checked(path, _single(path, [(row["ImageId"], row["PredictionString"].split()[0]) for row in rows]))
    except (KeyError, AttributeError, IndexError) as error:
        raise _damaged(path, "expected the columns ImageId and PredictionString") from error


def _synset_list(path: Path) -> dict[str, str]:
    """One synset a line, in the order of the images' numbers."""
    return _checked(path, _numbered(path, path.read_text().split()))


def _caffe(path: Path) -> dict[str, str]:
    """Name of an image and position of its class among the sorted synsets, from 0."""
    classes = published_synsets("imagenet")
    numbers = {str(position): synset for position, synset in enumerate(classes)}
    found = []
    for line in filter(str.strip, path.read_text().splitlines()):
        name, _, position = line.strip().rpartition(" ")
        if position not in numbers:
            raise _damaged(path, f"line {line[:80]!r} does not end in a class from 0 to {len(classes) - 1}")
        found.append((Path(name.strip()).stem, numbers[position]))
    return _single(path, found)


def _devkit(path: Path) -> dict[str, str]:
    """The development kit's list: its numbers are ILSVRC2012 ids, which meta.mat alone maps to synsets."""
    meta = path.with_name("meta.mat")
    if not meta.is_file():
        raise SuiteError(
            f"{path}: its numbers are ILSVRC2012 ids and not positions among the sorted synsets; put the development "
            f"kit's meta.mat, which says what they stand for, beside it ({meta})"
        )
    synset_of = _ids(meta)
    numbers = path.read_text().split()
    unknown = [number for number in numbers if number not in synset_of]
    if unknown:
        raise _damaged(path, f"{unknown[0][:80]!r} is no ILSVRC2012 id of {meta}")
    return _numbered(path, [synset_of[number] for number in numbers])


def _ids(meta: Path) -> dict[str, str]:
    try:
        table = structures(meta.read_bytes(), "synsets", ("ILSVRC2012_ID", "WNID"))
        pairs = {str(int(number)): str(synset) for number, synset in table}
    except (OSError, ArithmeticError, ValueError) as error:
        raise _damaged(meta, f"not the development kit's table of synsets ({error})") from error
    # ids beyond the thousand are of synsets above the classes
    classes = {number: synset for number, synset in pairs.items() if int(number) <= len(published_synsets("imagenet"))}
    if sorted(classes.values()) != list(published_synsets("imagenet")):
        raise _damaged(meta, "its first 1,000 ids are not ImageNet's 1,000 classes")
    return classes


FILES: dict[str, Callable[[Path], dict[str, str]]] = {
    "LOC_val_solution.csv": _kaggle,
    "imagenet_2012_validation_synset_labels.txt": _synset_list,
    "val.txt": _caffe,
    "ILSVRC2012_validation_ground_truth.txt": _devkit,
}
"""What is read, in this order, by name of file."""


def _single(path: Path, pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Class by name of image, each once."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise _damaged(path, f"{twice[:80]!r} is in it twice")
    return found


def _numbered(path: Path, values: list[str]) -> dict[str, str]:
    if len(values) != IMAGES:
        raise _damaged(path, f"holds {len(values)} lines, not one for each of {IMAGES} images")
    return {f"ILSVRC2012_val_{number:08}": value for number, value in enumerate(values, start=1)}


def _checked(path: Path, labels: dict[str, str]) -> dict[str, str]:
    unknown = sorted(set(labels.values()) - set(published_synsets("imagenet")))
    if unknown:
        raise _damaged(path, f"{unknown[0][:80]!r} is no synset of ImageNet-1k")
    return labels


def _damaged(path: Path, what: str) -> SuiteError:
    return SuiteError(f"{path}: {what}; get it again from its source")
