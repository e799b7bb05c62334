"""The actor's work without Ray: one slice in, one staged file out, faults where they belong."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import shapes
from numpy.typing import NDArray

import segray
from segray import config, rle
from segray._system.memory import MemoryBudget
from segray.errors import ConfigError, InfrastructureError, ModelError
from segray.execution.image_steps import ImageMemory, LabellerSettings, LoadedModel
from segray.execution.labeller import Labeller
from segray.execution.model_loading import options_of
from segray.execution.progress import Counters
from segray.execution.staging import stage_failure
from segray.execution.tiling import TilingOptions
from segray.execution.valid_rows import drop_invalid_rows
from segray.execution.worker_spec import WorkerSpec, build
from segray.instances import ImageFailure, ImageRef, Instances
from segray.label_set import schema
from segray.label_set.run_records import staged_task
from segray.limits import ImageLimits
from segray.models.adapters.adapter import ImageInput, ModelFormat, Options
from segray.models.engine import FakeEngine
from segray.models.registry import ADAPTERS
from segray.sources import listing, reader
from segray.storage.store import StorageOptions, Store
from segray.tasks import Task, WithheldImage

LABELS = {13: "stop sign", 44: "bottle"}


class Whole:
    """A contract whose model reports the image's mean colour; decode finds one full-frame thing in bright images."""

    name = "whole"
    labels: Mapping[int, str] = LABELS
    forms: ClassVar = {"original": ModelFormat("original", ImageInput("x", None, "NHWC", "RGB", None, None), ("mean",))}

    def prepare(self, form: ModelFormat, image_rgb: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        return {"x": image_rgb[None]}

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        mean = float(outputs["mean"][0])
        if mean < 100:
            return Instances.empty(size_hw)
        box = np.array([[0, 0, size_hw[1], size_hw[0]]], np.float32)
        counts = (rle.encode(np.ones(size_hw, np.bool_)),)
        return Instances(np.array([13], np.int32), np.array([0.9], np.float32), box, counts, size_hw)


def labeller(
    folder: Path, function: Callable[..., Any] | None = None, store: Any = None, memory: ImageMemory | None = None
) -> Labeller:
    def mean(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"mean": np.array([inputs["x"].mean()], np.float32)}

    engine = FakeEngine(function or mean)
    contract: Any = Whole()
    model = LoadedModel(engine, contract, contract.forms["original"], Options())
    settings = LabellerSettings(2, ImageLimits(max_bytes=100_000))
    return Labeller(model, settings, store or Store(), str(folder), memory=memory)


def photo(path: Path, value: int) -> ImageRef:
    _, data = cv2.imencode(".png", np.full((6, 8, 3), value, np.uint8))
    path.write_bytes(data.tobytes())
    return ImageRef(path.name, str(path), "1", path.stat().st_size)


def test_a_slice_becomes_one_file_with_a_row_for_every_image_in_order(tmp_path: Path) -> None:
    refs = [photo(tmp_path / f"{i}.png", value) for i, value in enumerate((200, 10, 255))]
    (tmp_path / "broken.png").write_bytes(b"<html>")
    refs.insert(1, ImageRef("broken.png", str(tmp_path / "broken.png")))
    refs.append(ImageRef("gone.png", str(tmp_path / "gone.png")))
    task = Task(3, 0, 5, 2)
    (report,) = labeller(tmp_path / "staged").label(task, refs).staged
    assert (report.ok, report.empty, report.failed, report.instances) == (2, 1, 2, 2)
    assert staged_task(report.staged) == task
    table = schema.staged_rows((tmp_path / "staged" / report.staged).read_bytes())
    assert table.schema.remove_metadata().equals(schema.STAGED)
    rows = table.to_pylist()
    assert [(r["image_key"], r["status"], r["stage"]) for r in rows] == [
        ("0.png", "ok", None),
        ("broken.png", "failed", "decode"),
        ("1.png", "empty", None),
        ("2.png", "ok", None),
        ("gone.png", "failed", "read"),
    ]
    assert [r["n_instances"] for r in rows] == [len(r["instances"]) for r in rows]
    (thing,) = rows[0]["instances"]
    assert (thing["class_name"], thing["area"], thing["bbox_w"], rows[0]["width"]) == ("stop sign", 48, 8.0, 8)
    assert rle.decode(thing["rle"], (6, 8)).all()
    assert {r["attempts"] for r in rows} == {2}


class Bright(Whole):
    """A contract whose model gives the picture back; decode finds the bright pixels, all of them as one thing."""

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        mask = outputs["mean"][0, :, :, 0] > 100
        if not mask.any():
            return Instances.empty(size_hw)
        counts = (rle.encode(mask),)
        x, y, w, h = rle.bbox(counts, size_hw)[0]
        box = np.array([[x, y, x + w, y + h]], np.float32)
        return Instances(np.array([13], np.int32), np.array([0.9], np.float32), box, counts, size_hw)


@pytest.mark.parametrize("tiles", [None, TilingOptions(64, 0.3, whole=False), TilingOptions(64, 0.3, whole=True)])
def test_an_image_in_windows_gives_the_rows_of_the_whole(tmp_path: Path, tiles: TilingOptions | None) -> None:
    picture = np.zeros((150, 200, 3), np.uint8)
    picture[20:120, 30:170] = 255
    cv2.imwrite(str(tmp_path / "large.png"), picture)
    contract: Any = Bright()
    engine = FakeEngine(lambda inputs: {"mean": inputs["x"]})
    model = LoadedModel(engine, contract, contract.forms["original"], Options())
    worker = Labeller(model, LabellerSettings(2, ImageLimits(), tiles), Store(), str(tmp_path))
    (done,) = worker.label(Task(0, 0, 1), [ImageRef("large.png", str(tmp_path / "large.png"))]).staged
    worker.close()
    (row,) = schema.staged_rows((tmp_path / done.staged).read_bytes()).to_pylist()
    (thing,) = row["instances"]
    assert (row["width"], row["height"], thing["area"]) == (200, 150, 14_000)
    assert (rle.decode(thing["rle"], (150, 200)) == (picture[..., 0] > 100)).all()
    assert [thing[name] for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h")] == [30, 20, 140, 100]


def test_a_file_over_the_limit_fails_and_is_not_cut(tmp_path: Path) -> None:
    """Both files are whole pictures with zeros behind them: cut anywhere there, they could still be decoded."""
    refs = [photo(tmp_path / f"{size}.png", 200) for size in (100_000, 100_001)]
    for ref in refs:
        os.truncate(ref.uri, int(Path(ref.uri).stem))
    (report,) = labeller(tmp_path).label(Task(0, 0, 2), refs).staged
    allowed, over = schema.staged_rows((tmp_path / report.staged).read_bytes()).to_pylist()
    assert (allowed["status"], allowed["bytes"], allowed["n_instances"]) == ("ok", 100_000, 1)
    assert (over["status"], over["error"], over["instances"]) == ("failed", "ImageError", [])
    assert over["message"] == "more than 100000 bytes (image.max_bytes)"


def test_an_error_in_any_stage_costs_only_its_image(tmp_path: Path) -> None:
    def failing(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if inputs["x"].mean() == 7:
            raise RuntimeError("no inference")
        return {"mean": np.array([200], np.float32)}

    refs = [photo(tmp_path / f"{i}.png", value) for i, value in enumerate((1, 7, 2))]
    (report,) = labeller(tmp_path, failing).label(Task(0, 0, 3), refs).staged
    rows = schema.staged_rows((tmp_path / report.staged).read_bytes()).to_pylist()
    assert [r["status"] for r in rows] == ["ok", "failed", "ok"]
    assert (rows[1]["stage"], rows[1]["error"]) == ("infer", "RuntimeError")


class Storm(Store):
    """Storage that withholds some files, and counts how often it is asked."""

    def __init__(self, withheld: Callable[[str], bool]) -> None:
        super().__init__()
        self._withholds, self.asked = withheld, 0

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        self.asked += 1
        if self._withholds(uri):
            raise InfrastructureError("slow down", found="503")
        return super().read(uri, max_bytes)


def test_what_storage_withholds_is_named_and_the_rest_is_staged(tmp_path: Path) -> None:
    refs = [photo(tmp_path / f"{i}.png", i) for i in range(6)]
    store = Storm(lambda uri: uri.endswith(("/2.png", "/5.png")))
    worker = labeller(tmp_path / "staged", store=store)
    task = Task(4, 10, 20, 1, (10, 11, 13, 14, 15, 19))
    report = worker.label(task, refs)
    assert report.withheld == (WithheldImage(13, "slow down: 503"), WithheldImage(19, "slow down: 503"))
    assert [part.task for part in report.staged] == [Task(4, 10, 12), Task(4, 14, 16)]
    rows = [
        row["image_key"]
        for part in report.staged
        for row in schema.staged_rows((tmp_path / "staged" / part.staged).read_bytes()).to_pylist()
    ]
    assert rows == [refs[i].key for i in (0, 1, 3, 4)]
    assert report.staged[0].seconds["infer"] > 0
    assert report.staged[1].seconds == {}
    assert worker.progress().finished == 4


def test_an_outage_stages_nothing_and_is_not_asked_for_every_image(tmp_path: Path) -> None:
    refs = [photo(tmp_path / f"{i}.png", i) for i in range(200)]
    store = Storm(lambda uri: True)
    worker = labeller(tmp_path / "staged", store=store)
    report = worker.label(Task(0, 0, 200), refs)
    assert report.staged == ()
    assert len(report.withheld) == store.asked < 100
    assert len(report.withheld) + len(report.untried) == 200
    assert not (tmp_path / "staged").exists()
    assert worker.progress().finished == 0


def shard(folder: Path) -> list[ImageRef]:
    """Forty images in two shards."""
    files = {f"{i:02d}.png": photo(folder / f"{i:02d}.png", 5 * i).uri for i in range(40)}
    shaped = shapes.tar({name: Path(uri).read_bytes() for name, uri in files.items()}, folder / "shards")
    return [ref for batch in listing.read(shaped.uri, Store()) for ref in listing.refs(batch)]


def test_images_that_are_read_together_never_wait_for_each_others_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PORTION_BYTES", 3000)
    refs, budget = shard(tmp_path), MemoryBudget(4000)
    worker = labeller(tmp_path / "staged", memory=ImageMemory(budget, MemoryBudget(4000)))
    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(worker.label, Task(unit, 0, len(refs)), refs[:: (-1) ** unit]) for unit in range(6)]
        assert [sum(part.failed for part in done.result(timeout=60).staged) for done in tasks] == [0] * 6
    assert budget.free_bytes == 4000


def test_a_fault_of_the_world_amid_a_shard_leaves_no_memory_lent(tmp_path: Path) -> None:
    class Storm(Store):
        def read_range(self, uri: str, start: int, size: int) -> bytes:
            raise InfrastructureError("slow down")

    refs, budget = shard(tmp_path), MemoryBudget(4000)
    worker = labeller(tmp_path / "staged", store=Storm(), memory=ImageMemory(budget, MemoryBudget(4000)))
    report = worker.label(Task(0, 0, len(refs)), refs)
    assert {image.reason for image in report.withheld} == {"slow down"}
    assert (report.staged, len(report.withheld) + len(report.untried)) == ((), 40)
    worker.close()
    assert budget.free_bytes == 4000
    assert not (tmp_path / "staged").exists()


def test_progress_names_the_image_and_stage_in_flight(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        entered.set()
        leave.wait(10)
        return {"mean": np.array([0], np.float32)}

    worker = labeller(tmp_path, slow)
    thread = threading.Thread(target=worker.label, args=(Task(4, 2, 3), [photo(tmp_path / "0.png", 1)]))
    thread.start()
    assert entered.wait(10)
    (image,) = worker.progress().in_flight
    leave.set()
    thread.join()
    assert (image.unit, image.index, image.stage) == (4, 2, "infer")
    assert worker.progress().finished == 1
    assert worker.progress().in_flight == ()


def test_rows_that_the_table_cannot_hold_are_dropped_and_counted() -> None:
    full, none = rle.encode(np.ones((4, 4), np.bool_)), rle.encode(np.zeros((4, 4), np.bool_))
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4], [2, 0, 2, 4], [0, 0, 4, 4]], np.float32)
    found = Instances(
        np.array([13, 13, 13, 12], np.int32), np.ones(4, np.float32), boxes, (full, none, full, full), (4, 4)
    )
    kept, dropped = drop_invalid_rows(found, LABELS)
    assert len(kept) == 1
    assert dropped == {"empty_mask": 1, "empty_box": 1, "unnamed_class": 1}


def test_pictures_of_12_bits_in_16_have_things_and_are_counted(tmp_path: Path) -> None:
    bright = np.full((6, 8), 4000, np.uint16)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(cv2.imencode(".png", bright)[1].tobytes())
    (tmp_path / "c.png").write_bytes(cv2.imencode(".png", bright * 16)[1].tobytes())
    refs = [ImageRef(name, str(tmp_path / name), "1", 100) for name in ("a.png", "b.png", "c.png")]
    (report,) = labeller(tmp_path / "staged").label(Task(0, 0, 3), refs).staged
    assert report.ok == 3
    assert report.guessed_depths == {12: 2}
    counters = Counters()
    counters.add(report)
    counters.add(replace(report, guessed_depths={10: 1, 12: 1}))
    assert counters.guessed_depths == {10: 1, 12: 3}


def test_an_image_that_no_worker_survived_is_a_failed_row(tmp_path: Path) -> None:
    ref = ImageRef("a.png", "/a.png", "1", 5)
    report = stage_failure(
        Store(), str(tmp_path), Task(0, 3, 4, 3), ref, ImageFailure("process", "WorkerLost", "killed")
    )
    (row,) = schema.staged_rows((tmp_path / report.staged).read_bytes()).to_pylist()
    assert (row["status"], row["stage"], row["attempts"], row["instances"]) == ("failed", "process", 3, [])
    assert report.failed == 1


# ---- choices of the configuration -----------------------------------------------------------------


def chosen(name: str = "stickers", **keys: Any) -> Options:
    return options_of(config.ModelSettings(name=name, **keys), ADAPTERS[name])


def test_the_configurations_choices_reach_decoding() -> None:
    assert chosen() == Options(0.05)
    found = chosen(score_threshold=0.3, max_detections=7, nms="cross_class", min_area=9)
    assert found == Options(0.3, 7, "cross_class", min_area=9)
    assert chosen("mask_rcnn_inception_v2_coco", paste="reframe").paste == "reframe"


def test_thresholds_by_class_go_by_name_or_id() -> None:
    assert chosen(class_thresholds={"stop sign": 0.3, 44: 0.6, "1": 0.2}).class_thresholds == {13: 0.3, 44: 0.6, 1: 0.2}
    with pytest.raises(ConfigError, match=r"no such class[\s\S]*class_thresholds[\s\S]*'bottel'[\s\S]*'bottle'"):
        chosen(class_thresholds={"bottel": 0.3})
    with pytest.raises(ConfigError, match="no such class"):
        chosen(class_thresholds={12: 0.3})


def test_a_floor_lowers_every_threshold_and_raises_none() -> None:
    found = chosen(score_threshold=0.5, class_thresholds={1: 0.7, 2: 0.01}, score_floor=0.1)
    assert (found.score_threshold, found.class_thresholds) == (0.1, {1: 0.1, 2: 0.01})


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("mask_rcnn_inception_v2_coco", {"nms": "fast"}),
        ("instance-segmentation-security-0033", {"nms": "cross_class"}),
        ("yolact-resnet50-fpn-pytorch", {"paste": "tile"}),
    ],
)
def test_a_choice_the_model_does_not_leave_is_refused(name: str, keys: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=rf"does not support the option {next(iter(keys))}") as caught:
        chosen(name, **keys)
    assert caught.value.where == f"model.{next(iter(keys))}"


def test_a_worker_that_is_not_like_the_driver_says_where_it_is_and_what_differs(tmp_path: Path) -> None:
    model = config.ModelSettings(name="yolact-resnet50-fpn-pytorch", path=str(tmp_path / "gone.xml"))
    spec = WorkerSpec(model, "f", ImageLimits(), StorageOptions(), str(tmp_path))
    with pytest.raises(
        ModelError, match=rf"(?s){platform.node()}: {tmp_path}/gone\.xml.*give every node the same files of the model"
    ):
        build(spec, "CPU", 1)
    with pytest.raises(ConfigError, match=rf"(?s){platform.node()}.*{segray.__version__} there, 0\.0\.9 in the driver"):
        build(replace(spec, version="0.0.9"), "CPU", 1)
