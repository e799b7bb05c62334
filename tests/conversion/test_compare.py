"""trial.py on engines that find what they are told to, over a few small pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segray.conversion import compare
from segray.conversion.compare import Reader, Speed, Truth, TruthOfDataset
from segray.errors import SourceError, UserError
from segray.instances import Instances
from segray.models.adapters.adapter import ImageInput, ModelAdapter, ModelFormat, Options
from segray.models.engine import FakeEngine
from segray.rle import encode_crop
from segray.storage.store import Store

SIZE_HW = (8, 10)
FORM = ModelFormat("converted", ImageInput("image", None, "NHWC", "RGB", None, None), ("brightness",))


class Squares(ModelAdapter):
    """Finds one object, the picture's left half, in pictures brighter than 100; the score is the brightness."""

    def prepare(self, form: ModelFormat, image_rgb: Any) -> dict[str, Any]:
        return {"image": image_rgb[None]}

    def decode(self, outputs: Mapping[str, Any], size_hw: tuple[int, int], options: Options) -> Instances:
        if outputs["brightness"][0] < 100:
            return Instances.empty(size_hw)
        height, width = size_hw
        counts = encode_crop(np.ones((height, width // 2), bool), 0, 0, size_hw)
        box = np.array([[0, 0, width // 2, height]], np.float32)
        return Instances(np.array([13], np.int32), np.ones(1, np.float32), box, (counts,), size_hw)


CONTRACT = Squares("squares", {13: "stop sign"}, {"converted": FORM})
SIGHTED = FakeEngine(lambda inputs: {"brightness": np.array([inputs["image"].mean()])})
BLIND = FakeEngine(lambda inputs: {"brightness": np.zeros(1)})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures, the odd ones bright with an object in each, and their truth."""
    (tmp_path / "images").mkdir()
    for i in range(12):
        cv2.imwrite(str(tmp_path / "images" / f"{i:02d}.png"), np.full((*SIZE_HW, 3), 200 * (i % 2), np.uint8))
    counts = encode_crop(np.ones((8, 5), bool), 0, 0, SIZE_HW)
    rows = [
        {"id": i, "image_id": i, "category_id": 13, "bbox": [0, 0, 5, 8], "area": 40, "iscrowd": 0,
         "segmentation": {"size": list(SIZE_HW), "counts": counts}}
        for i in range(1, 12, 2)
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{i:02d}.png", "height": 8, "width": 10} for i in range(12)]
    truth = {"images": images, "annotations": rows, "categories": [{"id": 13, "name": "stop sign"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path


def truth_of(folder: Path, most: int | None = None, images: str = "images", **matching: Any) -> TruthOfDataset:
    truth = Truth(folder / "truth.json", str(folder / images), most, **matching)
    return compare.truth_of_dataset(truth, Store(), CONTRACT.labels)


def reader() -> Reader:
    return Reader(CONTRACT, FORM, Store())


def test_each_engine_is_judged_on_the_same_images(folder: Path) -> None:
    found = compare.accuracy({"sighted": SIGHTED, "blind": BLIND}, reader(), truth_of(folder))
    assert found.mask_ap == found.box_ap == {"sighted": pytest.approx(1), "blind": 0}
    assert (len(found.uris), found.objects) == (12, 6)


def test_a_limit_spreads_over_the_truth(folder: Path) -> None:
    found = compare.accuracy({"sighted": SIGHTED}, reader(), truth_of(folder, 4))
    assert [Path(uri).name for uri in found.uris] == ["00.png", "03.png", "06.png", "09.png"]
    assert found.objects == 2


def test_images_that_are_not_there_are_not_judged_and_broken_ones_find_nothing(folder: Path) -> None:
    (folder / "images" / "01.png").unlink()
    (folder / "images" / "03.png").write_bytes(b"no picture")
    readers = reader()
    found = compare.accuracy({"sighted": SIGHTED}, readers, truth_of(folder))
    assert (len(found.uris), found.objects) == (11, 5)
    assert found.mask_ap["sighted"] == pytest.approx(0.8, abs=0.02)  # 4 of 5
    assert list(readers.failures) == [str(folder / "images" / "03.png")]
    assert "03.png: " in readers.first_failure()


def test_a_truth_of_other_images_is_refused(folder: Path) -> None:
    (folder / "more").mkdir()
    (folder / "images" / "00.png").rename(folder / "more" / "else.png")
    with pytest.raises(UserError, match=r"nothing in common[\s\S]*else\.png, truth: 00\.png"):
        truth_of(folder, images="more")


@pytest.mark.parametrize("lacks", ["images of the dataset", "images of the truth"])
def test_a_truth_or_a_dataset_without_an_image_is_refused(folder: Path, lacks: str) -> None:
    (folder / "list.txt").write_text("" if lacks == "images of the dataset" else "images/00.png\n")
    if lacks == "images of the truth":
        truth = json.loads((folder / "truth.json").read_text())
        (folder / "truth.json").write_text(json.dumps({**truth, "images": [], "annotations": []}))
    with pytest.raises(UserError):
        truth_of(folder, images="list.txt")


def rewritten(folder: Path, name: str, folder_of_images: str = "") -> None:
    """Renumber and rename the truth's one class, number its images by words, and move them to another folder."""
    truth = json.loads((folder / "truth.json").read_text())
    for row in truth["images"]:
        row |= {"id": f"image {row['id']}", "file_name": folder_of_images + row["file_name"]}
    for row in truth["annotations"]:
        row |= {"image_id": f"image {row['image_id']}", "category_id": 1}
    truth["categories"] = [{"id": 0, "name": "objects"}, {"id": 1, "name": name}]
    (folder / "truth.json").write_text(json.dumps(truth))


def test_classes_and_images_are_matched_as_evaluate_does(folder: Path) -> None:
    rewritten(folder, "Stop_Sign", "C:\\val\\")
    truth = truth_of(folder)
    found = compare.accuracy({"sighted": SIGHTED, "blind": BLIND}, reader(), truth)
    assert found.mask_ap == found.box_ap == {"sighted": pytest.approx(1), "blind": 0}
    assert (len(found.uris), found.objects) == (12, 6)
    assert "12 of 12 images of the truth are matched by the end of their path" in truth.notes[0]
    assert "1 'Stop_Sign' is 13 'stop sign'" in truth.notes[1]
    with pytest.raises(UserError, match="nothing in common"):
        truth_of(folder, files_by="key")


def test_sizes_that_the_truth_lacks_are_those_of_the_images(folder: Path) -> None:
    truth = json.loads((folder / "truth.json").read_text())
    for row in truth["images"]:
        del row["height"], row["width"]
    for row in truth["annotations"]:
        row["segmentation"] = [[0, 0, 5, 0, 5, 8, 0, 8]]
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "images" / "03.png").write_bytes(b"no picture")
    found = compare.accuracy({"sighted": SIGHTED}, reader(), truth_of(folder))
    assert (len(found.uris), found.objects) == (12, 6)
    assert found.mask_ap["sighted"] == pytest.approx(5 / 6, abs=0.02)


def test_a_class_that_the_model_lacks_is_refused_or_mapped(folder: Path) -> None:
    rewritten(folder, "panneau")
    with pytest.raises(UserError, match="lack categories"):
        truth_of(folder)
    found = compare.accuracy({"sighted": SIGHTED}, reader(), truth_of(folder, class_map={"panneau": "stop sign"}))
    assert found.mask_ap == {"sighted": pytest.approx(1)}


def test_a_truth_of_other_sizes_is_refused(folder: Path) -> None:
    cv2.imwrite(str(folder / "images" / "05.png"), np.zeros((10, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"another size[\s\S]*05\.png[\s\S]*8x10, truth 10x8"):
        compare.accuracy({"sighted": SIGHTED}, reader(), truth_of(folder))


def test_a_sample_is_spread_over_the_listing(folder: Path) -> None:
    images = str(folder / "images")
    assert [ref.key for ref in compare.evenly_spaced_images(images, Store(), 3)] == ["00.png", "04.png", "08.png"]
    assert len(compare.evenly_spaced_images(images, Store(), 300)) == 12
    with pytest.raises(SourceError):
        compare.evenly_spaced_images(str(folder / "none"), Store(), 3)


def test_speed_compares_round_by_round() -> None:
    """A machine that slows down halfway changes the medians, not what a round says."""
    rounds = ({"f32": 10.0, "int8": 30.0}, {"f32": 5.0, "int8": 15.0}, {"f32": 4.0, "int8": 20.0})
    assert Speed("cpu", rounds).over("int8") == {"f32": 3.0}
    assert Speed("cpu", rounds).images_per_s() == {"f32": 5.0, "int8": 20.0}


def test_every_engine_takes_part_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "ROUNDS", 3)
    monkeypatch.setattr(compare, "ROUND_S", 0.001)
    inputs = [{"image": np.zeros((1, 2, 2, 3), np.uint8)}]
    found = compare.speed({"a": SIGHTED, "b": FakeEngine(SIGHTED.function, requests=1, delay_s=0.002)}, inputs)
    assert [sorted(each) for each in found.rounds] == [["a", "b"]] * 3
    assert all(rate > 0 for each in found.rounds for rate in each.values())
