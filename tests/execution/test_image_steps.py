"""Each step of an image alone, and the memory that the steps share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segray import rle
from segray._system.memory import MemoryBudget
from segray.errors import ImageError
from segray.execution.image_steps import (
    Decoder,
    ImageMemory,
    ImageSteps,
    Inference,
    LabellerSettings,
    LoadedModel,
    postprocess,
    read,
)
from segray.execution.stage_timer import StageTimer
from segray.execution.tiling import TilingOptions
from segray.imaging import decode
from segray.instances import ImageRef, Instances
from segray.limits import ImageLimits
from segray.models.adapters.adapter import ImageInput, ModelFormat, Options
from segray.models.engine import FakeEngine
from segray.sources.reader import Files
from segray.storage.store import Store

LIMITS = ImageLimits()
PIXELS_BYTES = 6 * 8 * 3


class Timer(StageTimer):
    """A timer that remembers which stages it was told of."""

    def __init__(self) -> None:
        super().__init__("")
        self.entered: list[str] = []

    def enter(self, stage: str) -> None:
        super().enter(stage)
        self.entered.append(stage)


class Everything:
    """An adapter that finds one thing, which fills the image, with the option's threshold as its score."""

    name = "everything"
    labels: Mapping[int, str] = {13: "stop sign"}
    forms: ClassVar = {"original": ModelFormat("original", ImageInput("x", None, "NHWC", "RGB", None, None), ("x",))}

    def prepare(self, form: ModelFormat, image_rgb: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        return {"x": image_rgb[None]}

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        assert outputs["x"].shape[1:3] == size_hw
        box = np.array([[0, 0, size_hw[1], size_hw[0]]], np.float32)
        counts = (rle.encode(np.ones(size_hw, np.bool_)),)
        score = np.array([options.score_threshold], np.float32)
        return Instances(np.array([13], np.int32), score, box, counts, size_hw)


def model(engine: FakeEngine | None = None) -> LoadedModel:
    adapter: Any = Everything()
    return LoadedModel(engine or FakeEngine(dict), adapter, adapter.forms["original"], Options(0.25))


def png(size_wh: tuple[int, int] = (8, 6)) -> bytes:
    return cv2.imencode(".png", np.full((size_wh[1], size_wh[0], 3), 90, np.uint8))[1].tobytes()


def photo(path: Path) -> ImageRef:
    path.write_bytes(png())
    return ImageRef(path.name, str(path), "1", path.stat().st_size)


def test_a_file_is_read_in_the_block_and_its_memory_comes_back_after_it(tmp_path: Path) -> None:
    ref, budget, timer = photo(tmp_path / "a.png"), MemoryBudget(1000), Timer()
    (portion,) = Files(Store(), LIMITS, budget).portions([ref])
    with read(portion, 0, timer) as data:
        assert data == png()
        assert budget.free_bytes == 1000 - len(data)
    assert budget.free_bytes == 1000
    assert timer.entered == ["read"]


def test_a_decoded_file_is_closed_and_only_its_pixels_stay_reserved_for_the_block() -> None:
    """Decoding a grey picture is reckoned to hold 20 bytes a pixel, of which 3 are left."""
    pixels, timer, closed = MemoryBudget(48 * 20), Timer(), []
    grey = cv2.imencode(".png", np.full((6, 8), 90, np.uint8))[1].tobytes()

    @contextmanager
    def file() -> Iterator[bytes]:
        yield grey
        closed.append(True)

    with Decoder(LIMITS, pixels, threads=1).decode(file(), timer) as picture:
        assert closed == [True]
        assert pixels.free_bytes == 48 * 20 - PIXELS_BYTES
        assert (picture.pixels == 90).all()
        assert picture.facts == (len(grey), (6, 8), 1, None)
    assert pixels.free_bytes == 48 * 20
    assert timer.entered == ["decode", "wait", "decode"]


def test_a_picture_that_is_refused_waits_for_no_memory() -> None:
    pixels, timer = MemoryBudget(1), Timer()
    decoder = Decoder(ImageLimits(max_pixels=47), pixels, threads=1)
    with pixels.reserve(1), pytest.raises(ImageError, match="max_pixels"), decoder.decode(nullcontext(png()), timer):
        pytest.fail("decoded")
    assert timer.entered == ["decode"]


def test_as_many_files_are_decoded_at_a_time_as_there_are_threads_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work = ListenerGroup()
    load = decode.load

    def slow(*arguments: Any) -> decode.Decoded:
        with at_work:
            return load(*arguments)

    monkeypatch.setattr(decode, "load", slow)
    decoder = Decoder(LIMITS, MemoryBudget(1 << 20), threads=2)

    def one() -> None:
        with decoder.decode(nullcontext(png()), Timer()):
            pass

    run_together(one, 8)
    assert at_work.most == 2


def test_a_large_jpeg_is_decoded_at_a_fraction_where_that_suffices() -> None:
    data = cv2.imencode(".jpg", np.full((64, 96, 3), 90, np.uint8))[1].tobytes()
    for least_hw, expected in (((16, 16), (16, 24)), ((16, 48), (32, 48)), (None, (64, 96))):
        with Decoder(LIMITS, MemoryBudget(1 << 20), 1, least_hw).decode(nullcontext(data), Timer()) as picture:
            assert (picture.pixels.shape[:2], picture.facts.size_hw) == (expected, (64, 96))


def test_as_many_images_are_inferred_at_a_time_as_the_engine_has_requests() -> None:
    at_work = ListenerGroup()

    def function(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        with at_work:
            return inputs

    inference = Inference(FakeEngine(function, requests=3))

    def one() -> None:
        with inference.infer({"x": np.ones(1)}, Timer()) as outputs:
            assert outputs["x"] == 1

    run_together(one, 12)
    assert at_work.most == 3


def test_outputs_are_interpreted_for_the_size_of_the_image() -> None:
    timer = Timer()
    found = postprocess(model(), {"x": np.zeros((1, 6, 8, 3))}, (6, 8), timer)
    assert (found.scores.tolist(), found.boxes_xyxy.tolist()) == ([0.25], [[0, 0, 8, 6]])
    assert timer.entered == ["postprocess"]


@pytest.mark.parametrize(
    ("tiles", "stages"),
    [
        (None, ["wait", "infer", "postprocess"]),
        # One window for each half of the image, of which each is prepared on its own.
        (TilingOptions(6, 0.5, whole=False), ["decode", "wait", "infer", "postprocess"] * 2),
    ],
)
def test_the_steps_follow_each_other_and_hold_no_memory_afterwards(
    tmp_path: Path, tiles: TilingOptions | None, stages: list[str]
) -> None:
    memory, timer = ImageMemory(MemoryBudget(1000), MemoryBudget(1000)), Timer()
    (portion,) = Files(Store(), LIMITS, memory.files).portions([photo(tmp_path / "a.png")])
    steps = ImageSteps(model(), LabellerSettings(1, LIMITS, tiles), memory.pixels)
    facts, found = steps.label(portion, 0, timer)
    assert (facts.size_hw, found.size_hw) == ((6, 8), (6, 8))
    assert rle.area(found.rles).tolist() == [48]
    assert timer.entered == ["read", "decode", "wait", "decode", *stages]
    assert (memory.files.free_bytes, memory.pixels.free_bytes) == (1000, 1000)


def test_images_that_hold_all_files_memory_still_get_pixels(tmp_path: Path) -> None:
    """With one budget of as many bytes, two images would each hold a file and wait for pixels, for ever."""
    refs = [photo(tmp_path / f"{i}.png") for i in range(40)]
    memory = ImageMemory(MemoryBudget(2 * len(png())), MemoryBudget(PIXELS_BYTES))
    portions = Files(Store(), LIMITS, memory.files).portions(refs)
    steps = ImageSteps(model(), LabellerSettings(4, LIMITS), memory.pixels)
    with ThreadPoolExecutor(8) as pool:
        labelled = [pool.submit(steps.label, portion, portion.rows[0], Timer()) for portion in portions]
        assert {done.result(timeout=60)[0].size_hw for done in labelled} == {(6, 8)}


def test_the_memory_of_a_worker_grows_with_its_cores() -> None:
    small, large = ImageMemory.for_cores(1), ImageMemory.for_cores(3)
    assert large.files.free_bytes == 2 * small.files.free_bytes
    assert large.pixels.free_bytes == 2 * small.pixels.free_bytes == 4 * 96 * 2**20


class ListenerGroup:
    """Count how many threads are in the block at a time. Each stays for 20 ms."""

    def __init__(self) -> None:
        self._lock, self._here, self.most = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            self._here += 1
            self.most = max(self.most, self._here)
        time.sleep(0.02)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._here -= 1


def run_together(work: Any, times: int) -> None:
    with ThreadPoolExecutor(times) as pool:
        for done in [pool.submit(work) for _ in range(times)]:
            done.result(timeout=60)
