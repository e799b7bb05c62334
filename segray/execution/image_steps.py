"""The four steps of labelling one image: read, decode, infer, postprocess.

Knows the resource that each step waits for: memory, a decoding thread, a request of the engine. Knows nothing of tasks,
rows and threads. All four steps of an image run on one thread. Each step tells the image's timer which stage begins.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segray._system.memory import MemoryBudget
from segray.execution.stage_timer import StageTimer
from segray.execution.tiling import TilingOptions, merge, place, windows
from segray.imaging import decode, headers
from segray.instances import Instances
from segray.limits import ImageLimits
from segray.models.adapters.adapter import ModelAdapter, ModelFormat, Options
from segray.models.engine import Engine
from segray.sources.reader import CoalescedRead

_Arrays = Mapping[str, NDArray[Any]]

# Bytes for each core. The pixels of a photograph of 12 megapixels take 36 MB.
_FILES_BYTES, _PIXELS_BYTES = 32 * 2**20, 96 * 2**20
WORKING_BYTES = _FILES_BYTES + _PIXELS_BYTES


@dataclass(frozen=True)
class LabellerSettings:
    """Limits of a labeller's work.

    cores: number of cores that the labeller may use.
    limits: largest image that is decoded.
    tiles: options for cutting large images into windows; None to label each image as a whole.
    scaled_decode: whether a JPEG may be decoded at a fraction of its size, no smaller than the model's input.
    """

    cores: int
    limits: ImageLimits
    tiles: TilingOptions | None = None
    scaled_decode: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A compiled network, and the adapter for its inputs and outputs.

    engine: the compiled network.
    form: the form of the model's files.
    options: thresholds and further options of postprocessing.
    """

    engine: Engine
    adapter: ModelAdapter
    form: ModelFormat
    options: Options

    def inputs(self, image: decode.Pixels) -> _Arrays:
        """Return the inputs of the network by name.

        image: uint8 (height, width, 3) RGB, upright.
        """
        return self.adapter.prepare(self.form, image)


def thread_count(engine: Engine, cores: int) -> int:
    """Return the number of threads that keep the engine busy: some infer, the others read and decode."""
    return engine.requests + max(4, 2 * cores)


@dataclass(frozen=True)
class ImageMemory:
    """The memory of the images in flight: one budget for files that are read, one for pixels that are decoded.

    One budget for both could deadlock. An image holds its file while waiting for pixels. Files could therefore take
    the whole budget, while all their images wait for pixels. Two budgets prevent the deadlock. An image with pixels
    waits for no more memory, so its pixels are released. Then images that wait for pixels release their files.

    Images of one coalesced read hold one part of `files` until the last image is read. These images must therefore be
    neighbours in the queue of the threads. An image between them that waits for `files` could wait for ever.

    files, pixels: budgets in bytes.
    """

    files: MemoryBudget
    pixels: MemoryBudget

    @classmethod
    def for_cores(cls, cores: int) -> ImageMemory:
        """Return two budgets that sum up to WORKING_BYTES times (cores + 1)."""
        return cls(MemoryBudget((cores + 1) * _FILES_BYTES), MemoryBudget((cores + 1) * _PIXELS_BYTES))


class ImageFacts(NamedTuple):
    """Facts of a decoded image.

    size_bytes: size of the file.
    size_hw: height and width in pixels, upright.
    orientation: EXIF orientation, 1..8.
    guessed_depth: bits that 16-bit samples were taken to use because of their values; None if not guessed.
    """

    size_bytes: int
    size_hw: tuple[int, int]
    orientation: int
    guessed_depth: int | None = None


class DecodedImage(NamedTuple):
    """A decoded image and its facts.

    pixels: uint8 (height, width, 3) RGB, upright; smaller than facts.size_hw after a scaled decode.
    """

    pixels: decode.Pixels
    facts: ImageFacts


# ---- the four steps -------------------------------------------------------------------------------


def read(coalesced_read: CoalescedRead, row: int, timer: StageTimer) -> AbstractContextManager[bytes]:
    """Begin to read an image. A `with` block over the result yields the bytes and holds their memory."""
    timer.enter("read")
    return coalesced_read.take(row)


class Decoder:
    """A decoder that works within a budget of pixels.

    limits: largest image that is decoded.
    pixels: budget in bytes.
    threads: largest number of threads that decode at a time.
    least_hw: smallest height and width to which a JPEG may be scaled while decoding; None for full size.
    """

    def __init__(
        self, limits: ImageLimits, pixels: MemoryBudget, threads: int, least_hw: tuple[int, int] | None = None
    ) -> None:
        self._limits, self._pixels, self._least_hw = limits, pixels, least_hw
        self._threads = threading.Semaphore(threads)

    @contextmanager
    def decode(self, file: AbstractContextManager[bytes], timer: StageTimer) -> Iterator[DecodedImage]:
        """Decode a file and yield the image; release the file's bytes before the block.

        The pixels stay reserved until the block ends. Raises ImageError for a file that cannot be decoded. A file that
        the limits refuse raises the error before memory is reserved.
        """
        with ExitStack() as reserved:
            with file as data:
                timer.enter("decode")
                header = headers.admit(data, self._limits)
                timer.enter("wait")
                shrink_to = reserved.enter_context(self._pixels.reserve(decode.peak_bytes(header, self._least_hw)))
                with self._threads:
                    timer.enter("decode")
                    decoded = decode.load(data, header, self._limits, self._least_hw)
                facts = ImageFacts(len(data), decoded.size_hw, decoded.orientation, decoded.guessed_depth)
                del data
                shrink_to(decoded.image.nbytes)
            yield DecodedImage(decoded.image, facts)


class Inference:
    """Inference for as many images at a time as the engine has requests."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._requests = engine, threading.Semaphore(engine.requests)

    @contextmanager
    def infer(self, inputs: _Arrays, timer: StageTimer) -> Iterator[_Arrays]:
        """Yield the outputs of the network by name, valid in the block only."""
        timer.enter("wait")
        with self._requests:
            timer.enter("infer")
            with self._engine.infer(inputs) as outputs:
                yield outputs


def postprocess(model: LoadedModel, outputs: _Arrays, size_hw: tuple[int, int], timer: StageTimer) -> Instances:
    """Return the instances in the network's outputs.

    Args:
        model: the model that gave the outputs.
        outputs: arrays by name.
        size_hw: height and width in pixels of the image or window.
        timer: timer of the image.
    """
    timer.enter("postprocess")
    return model.adapter.decode(outputs, size_hw, model.options)


# ---- all steps of an image ------------------------------------------------------------------------


class ImageSteps:
    """The four steps of labelling with one model. Any number of threads may label at once."""

    def __init__(self, model: LoadedModel, settings: LabellerSettings, pixels: MemoryBudget) -> None:
        self._model, self._tiles = model, settings.tiles
        least_hw = model.engine.size_hw if settings.scaled_decode else None
        self._decoder = Decoder(settings.limits, pixels, settings.cores + 1, least_hw)
        self._inference = Inference(model.engine)

    def label(self, coalesced_read: CoalescedRead, row: int, timer: StageTimer) -> tuple[ImageFacts, Instances]:
        """Return the facts and the instances of one image.

        Args:
            coalesced_read: the read that has the image.
            row: position of the image in the list of images that the read was planned for.
            timer: timer of the image.
        """
        file = read(coalesced_read, row, timer)
        if self._tiles is not None:
            with self._decoder.decode(file, timer) as image:
                return image.facts, self._label_windows(image.pixels, self._tiles, timer)
        with self._decoder.decode(file, timer) as image:
            inputs, facts = self._model.inputs(image.pixels), image.facts
            del image  # The pixels are freed before the image waits for a request.
        return facts, self._instances(inputs, facts.size_hw, timer)

    def decoded(
        self, coalesced_read: CoalescedRead, row: int, timer: StageTimer
    ) -> AbstractContextManager[DecodedImage]:
        """Read and decode an image. A `with` block over the result yields the image and holds its memory.

        The arguments are those of `label`.
        """
        return self._decoder.decode(read(coalesced_read, row, timer), timer)

    def label_pixels(self, pixels: decode.Pixels, size_hw: tuple[int, int], timer: StageTimer) -> Instances:
        """Return the instances of a decoded image.

        Args:
            pixels: uint8 (height, width, 3) RGB, upright.
            size_hw: height and width of the full image; `pixels` is smaller after a scaled decode.
            timer: timer of the image.
        """
        if self._tiles is not None:
            return self._label_windows(pixels, self._tiles, timer)
        return self._instances(self._model.inputs(pixels), size_hw, timer)

    def _label_windows(self, pixels: decode.Pixels, tiles: TilingOptions, timer: StageTimer) -> Instances:
        """Return the instances of a large image, labelled one window after the other."""
        parts, size_hw = [], pixels.shape[:2]
        for window in windows(size_hw, tiles):
            timer.enter("decode")
            inputs = self._model.inputs(np.ascontiguousarray(pixels[window.slices]))
            parts.append((window, place(self._instances(inputs, window.size_hw, timer), window, size_hw)))
        return parts[0][1] if len(parts) == 1 else merge(parts, size_hw, self._model.options.max_detections)

    def _instances(self, inputs: _Arrays, size_hw: tuple[int, int], timer: StageTimer) -> Instances:
        with self._inference.infer(inputs, timer) as outputs:
            return postprocess(self._model, outputs, size_hw, timer)
