"""ImageNet-C (Hendrycks and Dietterich 2019) and ImageNet-C-bar (Mintun et al. 2021) as published: ImageNet's
validation images resized and cropped to 224 pixels, corrupted at five severities and stored as JPEG.

The clean images are ImageNet's own, and :meth:`mae_bench.suites.Suite.view` resizes and crops them alike, so that
corruption is all that tells the two apart. A suite has the clean images that were published corrupted: all of them
where the first corruption on the disk has all, else those that any corruption has at its lowest severity. A corruption
that lacks one of these is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image

from mae_bench.cells import near_name
from mae_bench.images import content_hash
from mae_bench.suites import StoredImages, Suite, SuiteEntry, SuiteError
from mae_bench.suites.imagenet import validation_images
from mae_bench.suites.records import Listed, Reader, Record, class_folders, hashed, suite_of
from mae_bench.suites.synsets import published_synsets

CLEAN = ("clean", "val", "validation")
"""Folders below ``--mae-data`` that the clean images are looked for in."""
SEVERITIES = range(1, 6)
SIDE = 224
"""Pixels along a side of a published image."""

FOLDERS: dict[str, dict[str, str]] = {
    "imagenet_c": {
        name: name
        for name in (
            "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
            "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
            "speckle_noise", "gaussian_blur", "spatter", "saturate",
        )
    },
    "imagenet_c_bar": {
        "blue_sample": "blue_noise_sample",
        "plasma": "plasma_noise",
        "checkerboard_cutout": "checkerboard_cutout",
        "cocentric_sine": "cocentric_sine_waves",
        "single_freq_grey": "single_frequency_greyscale",
        "brownish": "brownish_noise",
        "perlin": "perlin_noise",
        "sparkles": "sparkles",
        "inverse_sparkles": "inverse_sparkles",
        "caustic": "caustic_refraction",
    },
}  # fmt: skip
"""By suite and degradation the name of the folder that was published."""


def check(entry: SuiteEntry, data: Path) -> None:
    """Raises:
    SuiteError: the clean images, or all corrupted ones, are missing.
    """
    _clean(data)
    _held(entry, data)


def load(entry: SuiteEntry, data: Path) -> Suite:
    """Clean images and where their corrupted copies are.

    Raises:
        SuiteError: as :func:`check`, or the two have no image in common.
        ImageError: a file cannot be read.
    """
    records = _clean(data)()
    if unnamed := [record for record in records if not record.path]:
        raise SuiteError(
            f"{unnamed[0].where}: has no file name, by which it could be told which corrupted image is its own; put "
            f"clean images with file names into {data / CLEAN[0]}"
        )
    names = {record.name for record in records}
    if len(names) < len(records):
        raise SuiteError(f"{data}: {len(records) - len(names):,} of the clean images have a name that another has too")
    folders = _held(entry, data)
    published = set(_listing(folders[0]))
    for folder in folders[1:] if names - published else ():
        published |= set(_listing(folder))
    kept = [record for record in records if record.name in published]
    if not kept:
        raise SuiteError(
            f"{folders[0]}: holds none of the clean images, the first of which is {min(names)}: the two are of "
            "different sets, or their files were renamed"
        )
    suite, arranged = suite_of(entry, kept)

    def stored(name: str, severity: int) -> StoredImages:
        folder = _folder(entry, data, name) / str(severity)
        if not folder.is_dir():
            raise SuiteError(f"{folder}: no such directory, so {name} is not known at severity {severity}; unpack it")
        listing = _listing(folder)
        if missing := [record.name for record in arranged if record.name not in listing]:
            raise SuiteError(
                f"{folder}: lacks {len(missing):,} of {len(arranged):,} images that the clean ones and other "
                f"corruptions have, first {min(missing)}; unpack it again"
            )
        copies = hashed(folder, [listing[record.name] for record in arranged])
        fingerprint = content_hash("\n".join(copy.hash for copy in copies).encode())
        return StoredImages(fingerprint, lambda position: _checked(copies[position]))

    return replace(suite, stored=stored)


def _clean(data: Path) -> Reader:
    if not data.is_dir():
        raise SuiteError(f"--mae-data {data}: no such directory")
    for name in CLEAN:
        if (data / name).is_dir():
            return validation_images(data / name)
    raise SuiteError(
        f"--mae-data {data}: ImageNet's clean validation images are needed beside the corrupted ones, in "
        f"{', '.join(str(data / name) for name in CLEAN)}; where you have them elsewhere, link them: "
        f"ln -s /data/imagenet/val {data / CLEAN[0]}"
    )


def _folder(entry: SuiteEntry, data: Path, name: str) -> Path:
    """Where the severities of degradation ``name`` are: in ``data``, or one deeper, as some archives unpack."""
    published = FOLDERS[entry.name].get(name)
    if published is None:
        raise SuiteError(
            f"suite {entry.name!r} was not published under {name!r}: {near_name(name, FOLDERS[entry.name])}"
        )
    found = [folder for folder in (data / published, *sorted(data.glob(f"*/{published}"))) if folder.is_dir()]
    if not found:
        raise SuiteError(
            f"{data / published}: no such directory, and none of this name one deeper; expected "
            f"{data / published}/<1 to 5>/<synset>/<image files>"
        )
    if len(found) > 1:
        raise SuiteError(f"{published} lies in {' and in '.join(map(str, found))}: take one of them away")
    return found[0]


def _held(entry: SuiteEntry, data: Path) -> list[Path]:
    """The lowest severity that is on the disk of each corruption that is."""
    held = []
    for name, published in FOLDERS[entry.name].items():
        if (data / published).is_dir() or any(data.glob(f"*/{published}")):
            folder = _folder(entry, data, name)
            held += [place for severity in SEVERITIES if (place := folder / str(severity)).is_dir()][:1]
    if not held:
        raise SuiteError(
            f"--mae-data {data}: holds no corrupted images; expected {data}/<corruption>/<1 to 5>/<synset>/"
            f"<image files>, with the corruptions {', '.join(FOLDERS[entry.name].values())}"
        )
    return held


def _listing(folder: Path) -> dict[str, Listed]:
    """Corrupted images by the name that they share with the clean ones."""
    listing: dict[str, Listed] = {}
    for image in class_folders(folder, published_synsets("imagenet")):
        name = f"{image.synset}/{image.file.stem}"
        if listing.setdefault(name, image) is not image:
            raise SuiteError(f"{image.file}: is a second image of this name, after {listing[name].file}; remove one")
    return listing


def _checked(copy: Record) -> Image.Image:
    image = copy.image()
    if image.size != (SIDE, SIDE):
        width, height = image.size
        raise SuiteError(f"{copy.where}: {width}x{height} pixels; as published it would have {SIDE}x{SIDE}")
    return image
