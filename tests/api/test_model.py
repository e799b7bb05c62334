"""A model as an object: images of every kind, streams, raw inputs and outputs, errors, and other processes."""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import golden_tables
import numpy as np
import openvino as ov
import pytest
import yolo_network
from PIL import Image

import segray
from segray.api.model import Model
from segray.errors import ArgumentError, ConfigError, ImageError, ModelError, UserError
from segray.instances import Instances

SIZE_HW = (48, 80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return yolo_network.write(tmp_path_factory.mktemp("model") / "best_openvino_model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return segray.load_model(folder, precision="f32", threads=2)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return yolo_network.red_rectangle(SIZE_HW)


@pytest.fixture(scope="module")
def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def facts(things: Instances) -> tuple[Any, ...]:
    return (things.rles, things.scores.tolist(), things.boxes_xyxy.tolist(), things.class_ids.tolist(), things.size_hw)


def test_every_kind_of_image_gives_the_same_instances(
    model: Model, image: np.ndarray, png: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "red.png").write_bytes(png)
    monkeypatch.chdir(tmp_path)
    kinds = [
        image, png, bytearray(png), memoryview(png), tmp_path / "red.png", "red.png", f"file://{tmp_path}/red.png",
        Image.fromarray(image), Image.open(io.BytesIO(png)), Image.fromarray(image).convert("RGBA"),
        np.asfortranarray(image), image[::-1][::-1],
    ]  # fmt: skip
    results = [model(kind) for kind in kinds]
    assert len(results[0]) == 1
    assert results[0].class_names.tolist() == ["red thing"]
    assert all(facts(result) == facts(results[0]) for result in results)
    assert all(np.array_equal(result.image, image) for result in results)


def test_pillow_images_and_files_are_turned_upright_alike(model: Model, image: np.ndarray) -> None:
    stored = Image.fromarray(np.rot90(image))
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn clockwise by 90 degrees to see it upright.
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    from_file, from_pillow = model(buffer.getvalue()), model(Image.open(buffer))
    assert facts(from_file) == facts(from_pillow) == facts(model(image))


def test_rows_are_those_that_a_run_writes(tmp_path: Path) -> None:
    refs = [ref for ref in golden_tables.draw(tmp_path / "scenes") if ref.key != "broken.jpg"]
    golden_tables.label(tmp_path / "labels", refs)
    stickers = segray.load_model("stickers", precision="f32", score_threshold=0.4, threads=1)
    table = segray.scan(tmp_path / "labels").to_table().sort_by([("image_key", "ascending"), ("instance", "ascending")])
    predicted = list(stickers.predict([ref.uri for ref in refs]))
    assert table.num_rows == sum(map(len, predicted)) > 10
    for ref, things in zip(refs, predicted, strict=True):
        rows = [row for row in table.to_pylist() if row["image_key"] == ref.key]
        assert [row["rle"] for row in rows] == list(things.rles)
        assert [row["class_name"] for row in rows] == things.class_names.tolist()
        assert [row["class_id"] for row in rows] == things.class_ids.tolist()
        assert np.array_equal(np.array([row["score"] for row in rows], np.float32), things.scores)
        boxes = np.array([[row[f"bbox_{axis}"] for axis in "xywh"] for row in rows], np.float32).reshape(-1, 4)
        assert np.array_equal(boxes, things.boxes_xywh)
        assert [row["area"] for row in rows] == things.areas.tolist()
        assert facts(stickers(ref.uri)) == facts(things)


# ---- streams --------------------------------------------------------------------------------------


def test_a_stream_keeps_the_order_and_takes_no_more_images_than_it_says(model: Model, image: np.ndarray) -> None:
    taken = []

    def images() -> Iterator[np.ndarray]:
        for width in range(20, 120):
            taken.append(width)
            yield np.ascontiguousarray(np.resize(image, (SIZE_HW[0], width, 3)))

    most_ahead, widths = 0, []
    for number, things in enumerate(model.predict(images())):
        most_ahead = max(most_ahead, len(taken) - number)
        widths.append(things.size_hw[1])
        assert things.image is None
    assert widths == list(range(20, 120)) == taken
    assert most_ahead <= model.look_ahead < 100


def test_an_abandoned_stream_leaves_no_thread_and_no_setting(model: Model, image: np.ndarray) -> None:
    threads, opencv_threads = threading.active_count(), cv2.getNumThreads()
    stream, other = model.predict([image] * 50), model.predict([image] * 3)
    next(stream)
    next(other)
    assert cv2.getNumThreads() == 1
    stream.close()
    assert len(list(other)) == 2
    assert (threading.active_count(), cv2.getNumThreads()) == (threads, opencv_threads)
    assert list(model.predict([])) == []


def test_a_broken_image_ends_a_stream_or_takes_its_place(model: Model, image: np.ndarray) -> None:
    images = [image, b"<html>", image]
    with pytest.raises(ImageError, match="not an image"):
        list(model.predict(images))
    results = list(model.predict(images, errors="return"))
    assert [type(result) for result in results] == [Instances, ImageError, Instances]


def test_several_threads_share_a_model(model: Model, image: np.ndarray) -> None:
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.extend(map(facts, model.predict([image] * 5)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [facts(model(image))] * 20


def test_a_model_works_inside_a_running_event_loop(model: Model, image: np.ndarray) -> None:
    async def label() -> int:
        return len(model(image)) + len(await asyncio.to_thread(model, image))

    assert asyncio.run(label()) == 2


# ---- for who runs the network elsewhere -----------------------------------------------------------


@pytest.mark.parametrize("how", ["names of the graph", "list"])
def test_prepared_inputs_and_decoded_outputs_of_the_file_give_the_same_instances(
    model: Model, folder: Path, image: np.ndarray, how: str
) -> None:
    compiled = ov.Core().compile_model(folder / "best.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = model.prepare(image)
    assert {name: (array.shape, array.dtype) for name, array in inputs.items()} == {
        "x": ((1, 3, 64, 96), np.dtype(np.float32))
    }
    arrays = [array.copy() for array in compiled(inputs).values()]
    names = [next(iter(port.get_names()), f"out{i}") for i, port in enumerate(compiled.outputs)]
    outputs: Any = arrays if how == "list" else dict(zip(names, arrays, strict=True))
    assert facts(model.decode(outputs, SIZE_HW)) == facts(model(image))


def test_a_model_of_the_catalogue_is_prepared_and_decoded_too(tmp_path: Path) -> None:
    stickers = segray.load_model("stickers", precision="f32", score_threshold=0.4)
    first = golden_tables.draw(tmp_path)[-1]
    pixels = np.asarray(Image.open(first.uri))
    compiled = ov.Core().compile_model(stickers._resolved.path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = {min(port.get_names()): array.copy() for port, array in compiled(stickers.prepare(pixels)).items()}
    decoded, labelled = stickers.decode(outputs, pixels.shape[:2]), stickers(pixels)
    assert decoded.class_names.tolist() == labelled.class_names.tolist()
    assert decoded.scores == pytest.approx(labelled.scores, abs=1e-4)
    assert decoded.areas == pytest.approx(labelled.areas, rel=0.02)


def test_missing_outputs_are_named(model: Model) -> None:
    with pytest.raises(ModelError, match="is missing"):
        model.decode({"other": np.zeros(3)}, SIZE_HW)


# ---- errors and facts -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "found", "hint"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 (4, 4, 3)", "(image * 255).astype"),
        (np.zeros((4, 4, 3), np.uint16), "uint16 (4, 4, 3)", "(image >> 8).astype"),
        (np.zeros((4, 4), np.uint8), "uint8 (4, 4)", "numpy.stack([image] * 3, axis=-1)"),
        (np.zeros((4, 4, 4), np.uint8), "uint8 (4, 4, 4)", "image[..., :3]"),
        (np.zeros((3, 4, 5), np.uint8), "uint8 (3, 4, 5)", "image.transpose(1, 2, 0)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "uint8 (1, 4, 4, 3)", "model.predict(images)"),
        (np.zeros((0, 4, 3), np.uint8), "uint8 (0, 4, 3)", "one pixel"),
        (None, "None (NoneType)", "uint8 RGB"), (7, "7 (int)", "uint8 RGB"), ("", "'' (str)", "uint8 RGB"),
        ([1, 2], "[1, 2] (list)", "model.predict(images)"),
    ],
    ids=lambda value: value.replace(' ', '_') if isinstance(value, str) else '',
)  # fmt: skip
def test_what_is_no_image_is_refused_with_what_makes_one(model: Model, value: Any, found: str, hint: str) -> None:
    with pytest.raises(ArgumentError, match="no image") as caught:
        model(value)
    assert caught.value.found == found
    assert hint in caught.value.hint


def test_an_open_file_is_refused_with_how_to_give_its_bytes(model: Model) -> None:
    with pytest.raises(ArgumentError) as caught:
        model(io.BytesIO(b""))  # type: ignore[arg-type]
    assert "file.read()" in caught.value.hint


@pytest.mark.parametrize("mode", ["La", "closed"])
def test_an_image_of_pillow_that_cannot_be_read_is_an_image_error(model: Model, mode: str, tmp_path: Path) -> None:
    image = Image.new("LA", (8, 8))
    if mode == "closed":
        image.save(tmp_path / "a.png")
        image = Image.open(tmp_path / "a.png")
        image.close()
    else:
        image = image.convert(mode)
    with pytest.raises(ImageError, match="cannot be decoded") as caught:
        model(image)
    assert 'image.convert("RGB")' in caught.value.hint


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.decode(None, SIZE_HW), lambda x: x.decode({}, (0, 5)), lambda x: x.decode({}, 5),
        lambda x: x.decode({}, (1, 2, 3)), lambda x: x.prepare(None), lambda x: x.predict(None),
        lambda x: x.predict({"a.jpg": 1}), lambda x: x.predict([], errors="ignore"), lambda x: x.predict(bytearray(3)),
        lambda x: x.predict([], batch=8), lambda x: segray.load_model(None), lambda x: segray.load_model(threads=0),
        lambda x: segray.load_model(device=0), lambda x: segray.load_model(tiles=640),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_a_typed_error(model: Model, call: Callable[[Any], object]) -> None:
    with pytest.raises(ArgumentError) as caught:
        call(model)
    assert caught.value.hint
    assert caught.value.found


def test_an_image_that_cannot_be_read_or_decoded_has_what_where_found_and_hint(model: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    for value, stage in ((tmp_path / "no.jpg", "read"), (tmp_path, "read"), (tmp_path / "broken.jpg", "decode")):
        with pytest.raises(ImageError) as caught:
            model(value)
        error = caught.value
        assert (error.stage, error.where) == (stage, str(value))
        assert error.what
        assert error.found
        assert error.hint
    with pytest.raises(ImageError) as caught:
        model(b"")
    assert (caught.value.where, caught.value.stage) == ("0 bytes", "decode")


@pytest.mark.parametrize("value", ["photos", Path("photos"), b"bytes", np.zeros((4, 4, 3), np.uint8)])
def test_a_stream_of_one_image_is_refused_at_once(model: Model, value: Any) -> None:
    with pytest.raises(UserError, match="call model"):
        model.predict(value)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"score_treshold": 0.3}, "did you mean model.score_threshold"),
        ({"score_threshold": 2}, "model.score_threshold"),
        ({"nms": "none"}, "model.nms"), ({"batch_size": 8}, "each image is inferred by itself"),
        ({"confidence": 0.5}, "model.score_threshold"), ({"class_names": []}, "model.labels"),
        ({"tiles": {"sise": 9}}, "tiles.sise"),
        ({"labels": {1: "a"}}, "2 classes"), ({"max_detections": 0}, "model.max_detections"),
    ],
)  # fmt: skip
def test_a_wrong_keyword_is_the_error_of_a_wrong_configuration(folder: Path, keys: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        segray.load_model(folder, **keys)


def test_a_folder_in_place_of_an_image_is_an_error_that_names_the_call_for_folders(folder: Path) -> None:
    with pytest.raises(ImageError, match="a folder, not an image") as caught:
        segray.load_model(folder)(folder)
    assert f"model.predict(Path({str(folder)!r}).rglob" in caught.value.hint


def test_a_model_that_is_not_there_is_an_error_that_names_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        segray.load_model(tmp_path / "nothing.xml")
    with pytest.raises(ConfigError, match="segray models pull"):
        segray.load_model("mask_rcnn_inception_v2_coco")
    with pytest.raises(ModelError, match="no device"):
        segray.load_model("stickers", device="TPU")


def test_a_model_says_what_it_is(model: Model) -> None:
    assert repr(model) == "Model(yolo_seg: 2 classes, input 96x64, CPU f32, scores from 0.25)"
    assert (model.name, model.labels, model.size_hw) == ("yolo_seg", {1: "red thing", 2: "bird"}, (64, 96))
    assert model.facts["precision"] == "f32"
    assert model.settings["score_threshold"] == 0.25


def test_keys_and_tiles_are_those_of_the_configuration(folder: Path, image: np.ndarray) -> None:
    named = segray.load_model(folder, labels={7: "thing", 9: "other"}, score_threshold=0.5, max_detections=1)
    assert named(image).class_names.tolist() == ["thing"]
    assert len(segray.load_model(folder, class_thresholds={"red thing": 0.99})(image)) == 0
    tiled = segray.load_model(folder, tiles={"size": 64, "overlap": 0.2, "whole": False})
    assert tiled(image).size_hw == SIZE_HW


# ---- other processes ------------------------------------------------------------------------------


def in_processes(method: str) -> ProcessPoolExecutor:
    """A pool of one process. Not a Pool, whose end is a SIGTERM: a fork has Ray's handler, which waits for ever."""
    return ProcessPoolExecutor(1, multiprocessing.get_context(method))


def count_instances(model: Model, image: np.ndarray) -> int:
    return len(model(image)) + len(list(model.predict([image])))


def test_a_pickled_model_is_loaded_again(folder: Path, model: Model, image: np.ndarray) -> None:
    assert facts(pickle.loads(pickle.dumps(model))(image)) == facts(model(image))


@pytest.mark.integration
def test_a_model_works_in_a_spawned_process(model: Model, image: np.ndarray) -> None:
    with in_processes("spawn") as pool:
        assert pool.submit(count_instances, model, image).result(timeout=120) == 2


def refusals(folder: Path) -> list[str]:
    texts = []
    for call in (lambda: shared["model"](shared["image"]), lambda: segray.load_model(folder)):
        try:
            call()
        except UserError as error:
            texts.append(error.hint)
    return texts


shared: dict[str, Any] = {}


def test_a_fork_of_a_process_that_uses_openvino_is_refused_with_the_way_out(
    model: Model, image: np.ndarray, folder: Path
) -> None:
    """In OpenVINO itself such a process waits for ever."""
    shared.update(model=model, image=image)
    with in_processes("fork") as pool:
        texts = pool.submit(refusals, folder).result(timeout=60)
    assert len(texts) == 2
    assert all("spawn" in text for text in texts)


FORKED_FIRST = """
import os, sys
import segray
child = os.fork()
if not child:
    things = segray.load_model(sys.argv[1])(sys.argv[2])
    os._exit(len(things))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.integration
def test_a_fork_may_load_the_first_model(folder: Path, png: bytes, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png)
    command = [sys.executable, "-c", FORKED_FIRST, str(folder), str(tmp_path / "red.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["1"], done.stderr
