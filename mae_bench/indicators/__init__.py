"""Indicators: pure functions that turn a block of images into sums, and sums over blocks into numbers.

Each module has an ``*_sums`` function for one block and a ``*_values`` function for totals; between them the
sums live in :class:`mae_bench.indicators.block_sums.BlockSums`, which merges.
"""

INDICATOR_VERSION = 2
"""Changes whenever a definition or a constant does, so that results of different definitions never mix."""
