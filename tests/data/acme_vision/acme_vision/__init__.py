"""What the package adds, without PyTorch: it is read whenever tests are collected."""

from mae_bench.degradations import Degradation
from mae_bench.indicators import Indicator
from mae_bench.sinks import SinkEntry
from mae_bench.suites import SuiteEntry

RAINDROPS = Degradation("raindrops", "acme", "share of rows", module="acme_vision.drops", levels=(0.1, 0.25, 0.5))
LENGTHENING = Indicator("lengthening", "acme_vision.lengths", "how much longer features become")
SHAPES = SuiteEntry("acme_shapes", 28, 0, True, "stripes and bars, drawn anew", grey=True, module="acme_vision.shapes")
LINES = SinkEntry("lines", "acme_vision.lines", "a text file with a line for each cell")
