from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segray import rle
from segray.errors import SourceError
from segray.models.coco_labels import COCO_NAMES
from segray.synthetic import dataset
from segray.synthetic.scene import draw_scene
from segray.synthetic.shapes import STICKERS

COUNT, SEED = 13, 5


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, COUNT, SEED)
    return folder


def truth_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / dataset.TRUTH).read_text())
    return content


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.integration
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path, drawn: Path) -> None:
    dataset.write(tmp_path / "again", COUNT, SEED)
    assert files_of(tmp_path / "again") == files_of(drawn)
    dataset.write(tmp_path / "other", 1, SEED + 1)
    name = "images/scene-00000.jpg"
    assert files_of(tmp_path / "other")[name] != files_of(drawn)[name]


@pytest.mark.integration
def test_truth_masks_are_the_drawn_pixels(drawn: Path) -> None:
    truth = truth_of(drawn)
    for image in truth["images"]:
        scene = dataset.scene_at(SEED, image["id"] - 1)
        owners = np.zeros_like(scene.owners)
        rows = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for number, row in enumerate(rows, 1):
            size_hw = tuple(row["segmentation"]["size"])
            mask = rle.decode(row["segmentation"]["counts"], size_hw).astype(bool)
            assert size_hw == (image["height"], image["width"])
            assert row["area"] == mask.sum() > 0
            y, x = np.nonzero(mask)
            assert row["bbox"] == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            owners[mask] = number
        assert np.array_equal(owners, scene.owners)
        assert tuple(row["category_id"] for row in rows) == scene.category_ids


@pytest.mark.integration
def test_files_are_the_listed_ones_and_read_back_as_drawn(drawn: Path) -> None:
    listed = {image["file_name"]: image for image in truth_of(drawn)["images"]}
    assert set(listed) == {path.name for path in (drawn / dataset.IMAGES).iterdir()}
    assert {Path(name).suffix for name in listed} == {".jpg", ".png", ".webp"}
    for name, image in listed.items():
        data = np.frombuffer((drawn / dataset.IMAGES / name).read_bytes(), np.uint8)
        read = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
        meant = dataset.scene_at(SEED, image["id"] - 1).image
        assert read.shape == meant.shape == (image["height"], image["width"], 3)
        assert np.abs(read.astype(int) - meant).mean() < (0.01 if name.endswith(".png") else 8)


@pytest.mark.integration
def test_annotation_ids_start_at_one_and_are_unique(drawn: Path) -> None:
    ids = [row["id"] for row in truth_of(drawn)["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


@pytest.mark.integration
def test_scenes_vary_in_size_and_content() -> None:
    scenes = [dataset.scene_at(SEED, i) for i in range(48)]
    sizes = [scene.owners.shape for scene in scenes]
    assert sum(h * w > 2e6 for h, w in sizes) == 3
    assert any(h > w for h, w in sizes)
    assert len(set(sizes)) >= 5
    assert any(not scene.category_ids for scene in scenes)
    assert {c for scene in scenes for c in scene.category_ids} == {sticker.category_id for sticker in STICKERS}


def test_scenes_share_no_random_stream_with_training() -> None:
    for second in (len("crops"), len("scenes")):
        training = np.random.default_rng([7, second, 0]).random(8)
        assert not np.allclose(training, np.random.default_rng([dataset._STREAM, second, 0]).random(8))


def test_a_finished_dataset_is_left_alone(tmp_path: Path) -> None:
    truth = dataset.write(tmp_path, 2, SEED)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert dataset.write(tmp_path, 2, SEED) == truth
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_an_interrupted_dataset_is_drawn_again(tmp_path: Path) -> None:
    dataset.write(tmp_path, 2, SEED)
    whole = files_of(tmp_path)
    (tmp_path / dataset.TRUTH).unlink()
    (tmp_path / "images" / "scene-00001.jpg").write_bytes(b"half")
    dataset.write(tmp_path, 2, SEED)
    assert files_of(tmp_path) == whole


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    dataset.write(tmp_path / "a", 2, SEED)
    with pytest.raises(SourceError, match="another dataset"):
        dataset.write(tmp_path / "a", 3, SEED)
    (tmp_path / "b" / "images").mkdir(parents=True)
    (tmp_path / "b" / "images" / "holiday.jpg").touch()
    with pytest.raises(SourceError, match=r"holiday\.jpg"):
        dataset.write(tmp_path / "b", 2, SEED)


@pytest.mark.parametrize(("count", "seed"), [(0, 1), (1, -1)])
def test_impossible_requests_are_refused(tmp_path: Path, count: int, seed: int) -> None:
    with pytest.raises(SourceError, match="count >= 1"):
        dataset.write(tmp_path, count, seed)


def test_stickers_have_coco_names_and_stand_on_both_sides_of_every_gap_in_its_ids() -> None:
    assert [COCO_NAMES[sticker.category_id] for sticker in STICKERS] == [sticker.name for sticker in STICKERS]
    gaps_below = [s.category_id - 1 - list(COCO_NAMES).index(s.category_id) for s in STICKERS]
    assert gaps_below == [1, 2, 4, 4, 5, 5, 9, 10, 10, 10]


def test_a_scene_keeps_every_thing_visible() -> None:
    for seed in range(20):
        scene = draw_scene(np.random.default_rng(seed), (240, 320))
        areas = [int(scene.mask(i).sum()) for i in range(len(scene.category_ids))]
        assert all(area >= 40 for area in areas)
        assert scene.owners.max() == len(areas)
