"""What the figures are to be: data, and the verdict on a measurement, which nobody types."""

from __future__ import annotations

from dataclasses import dataclass

from mae_bench.perf.measurement import Measurement


@dataclass(frozen=True)
class Goal:
    """``figure`` in words, and the ``bound`` that it is not to exceed, or with ``at_least`` not to fall below. ``on``
    is the kind of device that it is about, ``unit`` that of the bound, none for a ratio. ``why`` is what is known to
    stand in the way, which is said where the goal is missed.
    """

    figure: str
    section: str
    bound: float
    at_least: bool = False
    on: str = "cpu"
    unit: str = ""
    why: str = ""

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def worst(self, measured: list[Measurement]) -> Measurement:
        """The one of several measurements on which the verdict falls."""
        return (min if self.at_least else max)(measured, key=lambda measurement: measurement.value)

    def verdict(self, measurement: Measurement) -> str:
        """``met``, or by how much of the bound it is missed, and whether within the noise band.

        >>> from mae_bench.perf.measurement import Measurement
        >>> Goal("cell / forward", "engine", 1.05).verdict(Measurement("", "", "", "times as long", 1.1, 1.08, 1.12))
        'missed by 4.8 %'
        """
        if self.is_met(measurement.value):
            return "met"
        if not self.bound:
            return "missed"
        share = abs(measurement.value / self.bound - 1)
        within = self.is_met(measurement.low) or self.is_met(measurement.high)
        return f"missed by {100 * share:.1f} %{', within the noise band' * within}"


GOALS = {
    "pooled float32": Goal("a cell with every pooled indicator of every layer and head / the pure forward pass, "
                           "ViT-Ti/16 at 224 px, float32", "engine", 1.05),
    "pooled bfloat16": Goal("the same in bfloat16", "engine", 1.10),
    "probe": Goal("the same in float32 with the probe indicators (attention maps, patch tokens), over the 1,024 images "
                  "of a cell", "engine", 1.15,
                  why="The patch tokens of every layer are compared with the clean ones, one by one."),
    "pooled cuda": Goal("a cell with every pooled indicator of every layer and head / the pure forward pass, ViT-B/16 "
                        "at 224 px, bfloat16", "engine", 1.10, on="cuda"),
    "blur kornia": Goal("exact Gaussian blur at 224 px against kornia, at every sigma", "degradations", 6, True,
                        why="A band of 32 pixels is multiplied by a matrix: at sigma 1 each sum of 9 weights takes 40 "
                        "multiplications."),
    "blur opencv": Goal("the same against OpenCV in float32 at sigma 8", "degradations", 1, True),
    "blur small": Goal("exact Gaussian blur at 28 and 32 px against OpenCV in float32", "degradations", 2, True,
                       why="A whole line is multiplied by a matrix: at sigma 0.5 each sum of 5 weights takes as many "
                       "multiplications as the line has pixels."),
    "bandwidth": Goal("Gaussian blur at 224 px against one read and one write of the batch", "degradations", 0.5, True,
                      on="cuda"),
    "corruptions": Goal("the 15 corruptions of ImageNet-C against imagecorruptions with numba, in sum", "corruptions",
                        5, True, why="Most of the time of the noises, and a quarter of that of glass blur and of "
                        "the elastic transform, goes into numbers that belong to the image, ten rounds of arithmetic "
                        "for four of them; zoom blur is ten bilinear enlargements by torch."),
    "each corruption": Goal("the slowest of them against imagecorruptions", "corruptions", 1, True,
                            why="JPEG compression is libjpeg's on both sides, and so is shrinking Pillow's in "
                            "pixelate; here what comes as float and goes as float is bytes in between."),
    "harness": Goal("harness cost of a cell", "harness", 5, unit="ms",
                    why="What pytest takes for a test that does nothing is a part of it, most of that its capture of "
                    "logs, which begins and ends in every phase of a test for each of torch's loggers."),
    "collection": Goal("collection of 10,000 cells", "collection", 3, unit="s"),
    "no torch": Goal("torch imported by it", "collection", 0),
    "memory": Goal("resident memory at 10,000 images / at 1,000, mapped pages aside", "memory", 1.05),
    "workers": Goal("two workers against one, on two free cores", "workers", 1.8, True,
                    why="Nothing is faster by more than two processes of forward passes alone are, which is measured "
                    "beside it; and each worker imports torch and makes its first clean pass before it is of use."),
}  # fmt: skip
"""By the key that measurements name."""
