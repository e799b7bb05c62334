"""The sticker scenes from every shape of data: the rows that the same files in a folder get, but for their keys."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import cv2
import pytest
import shapes
from command import in_both_ways, write_config
from shapes import SHAPES, Shaped
from swift_server import Swift
from watchers import Notes

import segray
from segray import config
from segray.execution import run
from segray.execution.labeller import Labeller
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import WorkerSpec, build
from segray.storage.store import StorageOptions, Store
from segray.synthetic import dataset

pytestmark = pytest.mark.integration

Rows = dict[str, list[Any]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, 12, seed=5)
    return {path.name: path.read_bytes() for path in sorted((folder / "images").iterdir())}


class Kept:
    """One compiled network for all runs, each with its own staging folder."""

    def __init__(self) -> None:
        self._labeller: Labeller | None = None
        self._facts: Mapping[str, str] = {}

    def start(self, spec: WorkerSpec, chosen: config.Config) -> InProcess:
        if self._labeller is None:
            self._labeller, self._facts = build(spec, "CPU", None)
        self._labeller._staged = spec.staged
        workers = InProcess(self._labeller, self._facts)
        workers.close = lambda: workers._pool.shutdown()  # type: ignore[method-assign]
        return workers

    def close(self) -> None:
        if self._labeller is not None:
            self._labeller.close()


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    network = Kept()
    yield network
    network.close()


def label(shaped: Shaped, root: Path, kept: Kept, **more: Any) -> run.Summary:
    values = {
        "source": {"uri": shaped.uri, **shaped.source},
        "output": {"root": str(root)},
        "model": {"name": "stickers"},
        "unit_images": 5,
        "max_failed_fraction": 1.0,
        **more,
    }
    return run.label(config.validate(values, "test"), Notes(), kept.start)


def rows(root: Path | str, keys: Mapping[str, str], **options: Any) -> Rows:
    """By name of the file that went in: its status and size, and its instances."""
    images = segray.images(str(root), **options).to_table().to_pylist()
    names = {key: name for name, key in keys.items()}
    found: Rows = {names[row["image_key"]]: [(row["status"], row["height"], row["width"])] for row in images}
    for row in (
        segray.scan(str(root), **options)
        .to_table()
        .sort_by([("image_key", "ascending"), ("instance", "ascending")])
        .to_pylist()
    ):
        found[names[row["image_key"]]].append((row["class_name"], row["score"], row["bbox_x"], row["area"], row["rle"]))
    return found


@pytest.fixture(scope="module")
def expected(scenes: dict[str, bytes], kept: Kept, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    folder = tmp_path_factory.mktemp("folder")
    shaped = shapes.folder(scenes, folder / "data")
    label(shaped, folder / "labels", kept)
    found = rows(folder / "labels", shaped.keys)
    assert sum(map(len, found.values())) > 3 * len(scenes)
    return found


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "folder"])
def test_every_shape_gets_the_rows_of_a_folder_and_then_nothing_is_left(
    kind: str, scenes: dict[str, bytes], expected: Rows, kept: Kept, tmp_path: Path
) -> None:
    shaped = SHAPES[kind](scenes, tmp_path / "data")
    label(shaped, tmp_path / "labels", kept)
    assert rows(tmp_path / "labels", shaped.keys) == expected
    assert label(shaped, tmp_path / "labels", kept).planned == 0


def test_a_shard_that_grows_is_labelled_again_and_its_neighbour_is_not(
    scenes: dict[str, bytes], expected: Rows, kept: Kept, tmp_path: Path
) -> None:
    some = dict(list(scenes.items())[:8])
    shaped = shapes.tar(some, tmp_path / "data")
    label(shaped, tmp_path / "labels", kept)
    more = {name: scenes[name] for name in list(scenes)[8:10]}
    assert shaped.holder is not None
    with tarfile.open(shaped.holder, "a") as archive:
        for name, data in more.items():
            shapes.add(archive, name, data)
    assert label(shaped, tmp_path / "labels", kept).planned == 6
    keys = {**shaped.keys, **{name: f"{shaped.holder.name}/{name}" for name in more}}
    found = rows(tmp_path / "labels", keys)
    assert found == {name: expected[name] for name in (*some, *more)}


def test_the_frames_of_a_video_get_the_rows_of_the_same_pictures(
    scenes: dict[str, bytes], kept: Kept, tmp_path: Path
) -> None:
    path = tmp_path / "video" / "drive.avi"
    path.parent.mkdir()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 2.0, (640, 480))
    for i, data in enumerate(scenes.values()):
        (tmp_path / f"{i}").write_bytes(data)
        picture = cv2.resize(cv2.imread(str(tmp_path / f"{i}")), (640, 480))
        writer.write(picture)
    writer.release()
    reader, frames = cv2.VideoCapture(str(path)), []
    while (read := reader.read())[0]:
        frames.append(read[1])
    assert len(frames) == len(scenes)
    pictures = {f"{i}.png": cv2.imencode(".png", frame)[1].tobytes() for i, frame in enumerate(frames[::2])}
    alone = shapes.folder(pictures, tmp_path / "pictures")
    label(alone, tmp_path / "a", kept)
    video = Shaped(str(path.parent), {f"{i}.png": f"drive.avi#t={i}.000" for i in range(len(pictures))})
    label(video, tmp_path / "b", kept)
    assert rows(tmp_path / "b", video.keys) == rows(tmp_path / "a", alone.keys)


@in_both_ways
@pytest.mark.usefixtures("shared_ray")
def test_shards_in_a_bucket_are_labelled(
    command: Callable[..., CompletedProcess[str]],
    scenes: dict[str, bytes],
    expected: Rows,
    swift_env: Swift,
    tmp_path: Path,
) -> None:
    bucket = swift_env.bucket()
    options = StorageOptions(endpoint_url=swift_env.endpoint_url)
    shaped = shapes.tar(scenes, tmp_path / "data")
    for path in (tmp_path / "data").iterdir():
        Store(options).put(f"s3://{bucket}/raw/{path.name}", path.read_bytes())
    root = f"s3://{bucket}/labels"
    storage = {"endpoint_url": swift_env.endpoint_url}
    asked = write_config(tmp_path / "c.yaml", f"s3://{bucket}/raw/", root, unit_images=5, storage=storage)
    done = command("label", "--config", asked)
    assert done.returncode == 0, done.stderr
    assert rows(root, shaped.keys, endpoint_url=swift_env.endpoint_url) == expected
