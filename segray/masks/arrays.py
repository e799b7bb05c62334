"""NamedTuples of arrays that travel together into the compiled loops.

This module is fast to import, because it does not import Numba.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Fraction bits of the weights of a resize, as Pillow has them. A shift by a constant is half as slow as by a variable.
FRACTION_BITS = 22


class EncodedMasks(NamedTuple):
    """The counts of n masks. Counts i are text[starts[i]:stops[i]].

    text: uint8, all characters. starts, stops: (n,) int64.
    The loops take the three arrays one by one: a NamedTuple costs 1 to 6 us a call.
    The Decisions in README.md have the measurement.
    """

    text: NDArray[np.uint8]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]

    def at(self, rows: NDArray[np.intp] | slice) -> EncodedMasks:
        """Return the masks of these rows, in their order."""
        return EncodedMasks(self.text, self.starts[rows], self.stops[rows])


class Taps(NamedTuple):
    """The source pixels that n consecutive output pixels of one axis read.

    An output pixel is source[low] * (1 - weight) + source[high] * weight.
    first: index of the output pixel of row 0. low, high: (n,) intp, ascending; equal lows have equal highs.
    weight: (n,) float32, ascending where low is equal.
    """

    first: int
    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float32]

    @classmethod
    def of(cls, first: int, low: NDArray[np.intp], high: NDArray[np.intp], weight: NDArray[np.float32]) -> Taps:
        """Return the taps, and make their arrays read-only.

        The loops are compiled for arrays that are only read. Numba converts a writable array, but not one in a
        NamedTuple.
        """
        for array in (low, high, weight):
            array.flags.writeable = False
        return cls(first, low, high, weight)
