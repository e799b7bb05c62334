"""TIFF and PNG files of every kind decode to the pixels that they were written with, or are refused."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from known_pictures import KnownFile, pngs, tiffs

from segray.errors import ImageError
from segray.imaging.decode import decode

SAMPLE = 200


def wrong(files: Iterable[Callable[[], KnownFile]]) -> list[str]:
    """The files that do not give their pixels, and what they give."""
    mistakes = []
    for write in files:
        file = write()
        try:
            decoded = decode(file.data)
        except ImageError as error:
            if file.pixels is not None:
                mistakes.append(f"{file.name}: {error.short()}")
            continue
        if file.pixels is None:
            mistakes.append(f"{file.name}: not refused")
        elif decoded.image.shape != file.pixels.shape:
            mistakes.append(f"{file.name}: {decoded.image.shape}")
        elif (gap := np.abs(decoded.image.astype(int) - file.pixels).max()) > file.tolerance:
            mistakes.append(f"{file.name}: {gap} wrong")
        elif decoded.guessed_depth is not None:
            mistakes.append(f"{file.name}: taken for {decoded.guessed_depth} bits")
    return mistakes


def test_a_sample_of_all_kinds_of_files_gives_the_known_pixels() -> None:
    files = [*tiffs(), *pngs()]
    assert wrong(random.Random(int(os.environ["SEGRAY_SEED"])).sample(files, SAMPLE)) == []


@pytest.mark.chaos
def test_all_kinds_of_files_give_the_known_pixels() -> None:
    files = [*tiffs(), *pngs()]
    assert len(files) >= 2000
    assert wrong(files) == []
