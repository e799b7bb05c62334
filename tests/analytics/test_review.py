from __future__ import annotations

import json
import shlex
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import label_sets
import numpy as np
import pytest
from label_sets import Image

from segray import rle
from segray.analytics.evaluation.evaluate import evaluate
from segray.analytics.export.label_studio import encode_brush
from segray.analytics.export.writer import row_runs
from segray.analytics.query import key_ranges
from segray.analytics.review import annotation_import
from segray.analytics.review import sampling as selecting
from segray.analytics.review.review import Review, estimate, review, wilson
from segray.analytics.review.sampling import Selection, farthest, select
from segray.cli import main
from segray.errors import LabelSetError, SourceError, UserError
from segray.label_set import maintenance, snapshot
from segray.models.coco_labels import COCO_NAMES
from segray.storage.store import StorageOptions

SIZE_HW = (60, 80)
NAMES = COCO_NAMES


def box(x: int, y: int, w: int, h: int) -> str:
    return rle.encode_crop(np.ones((h, w), np.bool_), x, y, SIZE_HW)


def blob(seed: int) -> str:
    """Parts, holes, pixels that touch at corners."""
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[30:55, 40:75] = np.random.default_rng(seed).random((25, 35)) < 0.7
    return rle.encode(mask)


def redact(count: int = 12) -> dict[str, Image]:
    """Two stop signs and a bottle in each image, all far from uncertain; one is empty, one failed."""
    found = {
        f"{i:02d}.jpg": Image(
            SIZE_HW, [(13, 0.95, box(2, 2, 20, 20)), (13, 0.93, box(30, 2, 20, 12)), (44, 0.9, blob(i))]
        )
        for i in range(count)
    }
    return found | {"empty.jpg": Image(SIZE_HW), "failed.jpg": Image((0, 0), failed=True)}


# ---- select ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An uncertain image, a rare class, a strange mix."""
    images = redact()
    images["03.jpg"] = Image(
        SIZE_HW, [(13, 0.95, box(2, 2, 20, 20)), (13, 0.45, box(30, 2, 20, 12)), (44, 0.9, blob(3))]
    )
    images["05.jpg"] = Image(SIZE_HW, [(90, 0.9, box(60, 2, 9, 9))])
    images["07.jpg"] = Image(SIZE_HW, [(44, 0.9, box(2 * i, 0, 2, 60)) for i in range(30)])
    return label_sets.write(tmp_path_factory.mktemp("a"), images)


def keys(found: Selection, criterion: str) -> list[str]:
    return [each.key for each in found.chosen if criterion in each.why]


def test_each_criterion_picks_the_images_made_for_it_and_says_why(
    planted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_ranges.cut, "__kwdefaults__", {"slice_rows": 9})
    images = redact()
    changed = {
        "05.jpg": Image(SIZE_HW, [(90, 0.9, box(60, 2, 9, 9))]),
        "07.jpg": Image(SIZE_HW, [(44, 0.9, box(2 * i, 0, 2, 60)) for i in range(30)]),
        "09.jpg": Image((0, 0), failed=True),
        "failed.jpg": images["01.jpg"],
    }
    other = label_sets.write(
        tmp_path / "b", {**images, **changed, "04.jpg": Image(SIZE_HW, images["04.jpg"].found[:1])}
    )
    take = {"uncertain": 3, "disagree": 5, "rare": 1, "diverse": 4, "random": 5}
    found = select(planted, take, against=other)
    assert keys(found, "uncertain") == ["03.jpg"]
    assert keys(found, "disagree") == ["04.jpg"]
    assert keys(found, "rare") == ["05.jpg"]
    assert {"05.jpg", "07.jpg", "empty.jpg"} <= set(keys(found, "diverse"))
    assert len(keys(found, "random")) == 5
    assert found.taken == {"uncertain": 1, "disagree": 1, "rare": 1, "diverse": 4, "random": 5}
    assert (found.images, found.failed, found.instances) == (13, 1, 10 * 3 + 1 + 30)
    why = {each.key: each.why for each in found.chosen}
    assert why["03.jpg"]["uncertain"] == "scores within 0.2 of 0.5: 1"
    assert why["05.jpg"]["rare"] == "toothbrush, images that show it: 1"
    assert why["04.jpg"]["disagree"] == f"2 lost in {other}"
    assert "failed.jpg" not in why


def test_the_same_labels_and_seed_give_the_same_choice_whatever_the_slices(
    planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selecting, "_POOL", 8)
    take = {"uncertain": 2, "rare": 3, "diverse": 2, "random": 4}
    found = select(planted, take)
    monkeypatch.setattr(key_ranges.cut, "__kwdefaults__", {"slice_rows": 9})
    assert select(planted, take) == found
    assert keys(select(planted, take, seed=1), "random") != keys(found, "random")
    assert keys(select(planted, {"random": 4}), "random") == keys(found, "random")


def test_the_pool_of_diverse_images_keeps_nothing_of_those_that_left_it(
    planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selecting, "_POOL", 4)
    state = snapshot.snapshot(planted)
    parts = key_ranges.cut(state, slice_rows=9)
    found = selecting._BestImages({"diverse": 1}, 0.5, 0.0, 0, selecting._images_per_class(state, parts, 0.0))
    for part in parts:
        found.add(state, part)
    assert len(parts) > 2
    assert len(found._pool) == 4
    assert all(vector.base is None for _, _, vector in found._pool)


@pytest.mark.integration
def test_a_random_sample_takes_every_image_equally_often(planted: str) -> None:
    drawn = [key for seed in range(20) for key in select(planted, {"random": 4}, seed=seed).sample]
    counts = [drawn.count(key) for key in [*(f"{i:02d}.jpg" for i in range(12)), "empty.jpg"]]
    assert sum(counts) == 80
    assert sum((count - 80 / 13) ** 2 for count in counts) / (80 / 13) < 28  # chi-square of 12 degrees, p 0.005


def test_farthest_points_first_the_typical_one_then_the_strangest() -> None:
    vectors = np.array([[0.0, 0], [0.1, 0], [0.1, 0], [5, 0], [-4, 0]])
    assert [row for row, _ in farthest(vectors, 5)] == [1, 3, 4, 0]
    assert farthest(np.empty((0, 3)), 2) == []


@pytest.mark.parametrize(
    ("take", "more", "says"),
    [
        ({}, {}, "no such criterion"),
        ({"odd": 1}, {}, "no such criterion"),
        ({"random": 0}, {}, "one image at least"),
        ({"disagree": 1}, {}, "go together"),
        ({"random": 1}, {"to": "cvat"}, "go together"),
        ({"random": 1}, {"to": "paint", "tasks": Path("t")}, "no such format"),
        ({"uncertain": 1}, {"threshold": 0.0}, "no image meets"),
    ],
)
def test_what_cannot_be_chosen_is_said_and_nothing_written(
    planted: str, tmp_path: Path, take: dict[str, int], more: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        select(planted, take, out=tmp_path / "s.json", **more)
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken_stay_as_they_are(planted: str, tmp_path: Path) -> None:
    (tmp_path / "taken.json").write_text("mine")
    for out, tasks in (("taken.json", "new.json"), ("new.json", "taken.json")):
        with pytest.raises(UserError, match="there already"):
            select(planted, {"random": 2}, out=tmp_path / out, to="cvat", tasks=tmp_path / tasks)
    assert {each.name for each in tmp_path.iterdir()} == {"taken.json"}
    assert (tmp_path / "taken.json").read_text() == "mine"


# ---- corrections come back ------------------------------------------------------------------------


Chosen = tuple[str, Path, Path]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return label_sets.write(tmp_path_factory.mktemp("r"), {f"a b/é{key}": image for key, image in redact().items()})


@pytest.fixture(scope="module")
def drawn(root: str, tmp_path_factory: pytest.TempPathFactory) -> Chosen:
    """Eight random images as tasks for Label Studio."""
    return chosen(root, tmp_path_factory.mktemp("drawn"), "label-studio")


def chosen(root: str, tmp_path: Path, to: str, take: dict[str, int] | None = None) -> Chosen:
    """A label set, the selection of some of it, of 8 random images, and their tasks."""
    paths = tmp_path / "selection.json", tmp_path / "tasks"
    select(root, take or {"random": 8}, out=paths[0], to=to, tasks=paths[1])
    return root, *paths


def studio(tasks: Path) -> list[dict[str, Any]]:
    """The tasks as Label Studio exports them when every prediction was submitted as it is."""
    content = json.loads(tasks.read_text())
    for number, task in enumerate(content):
        results = task.pop("predictions")[0]["result"]
        skipped = {"id": 9000 + number, "was_cancelled": True, "result": [], "updated_at": "2027-01-01"}
        task["annotations"] = [
            {"id": number, "was_cancelled": False, "result": results, "updated_at": "2026-01-01"},
            skipped,
        ]
    return list(content)


def reviewed(
    chosen_: Chosen, tmp_path: Path, change: Callable[[Any], None] = lambda content: None, **options: Any
) -> Review:
    """What a review says after this change to Label Studio's tasks."""
    root, selection, tasks = chosen_
    content = studio(tasks)
    change(content)
    (tmp_path / "corrected.json").write_text(json.dumps(content))
    return review(root, selection, tmp_path / "corrected.json", **options)


@pytest.mark.parametrize("to", ["label-studio", "cvat", "coco"])
def test_corrections_that_change_nothing_find_no_error(root: str, tmp_path: Path, to: str) -> None:
    _, selection, tasks = chosen(root, tmp_path, to)
    if to == "label-studio":
        tasks.write_text(json.dumps(studio(tasks)))
    if to == "coco":  # As CVAT writes it.
        content = json.loads(tasks.read_text())
        content["annotations"] = [{**row, "iscrowd": 1} for row in content["annotations"]]
        tasks.write_text(json.dumps(content))
    found = review(root, selection, tasks, truth_out=tmp_path / "truth.json")
    assert found.total is not None
    assert (found.reviewed, found.sampled, found.population) == (8, 8, 13)
    assert found.total.precision.value == found.total.recall.value == 1
    assert all(each.hits == 0 for each in found.total.kinds.values())
    assert any("does not say which images" in note for note in found.notes) == (to != "label-studio")
    assert found.total.objects == found.total.detections >= 21
    picked = {each.key for each in Selection.read(selection).chosen}
    objects = {key: [(c, counts) for c, _, counts in image.found] for key, image in redact().items()}
    truth = json.loads((tmp_path / "truth.json").read_text())
    names = {row["id"]: row["file_name"] for row in truth["images"]}
    masks: dict[str, list[tuple[int, str]]] = {key: [] for key in picked}
    for row in truth["annotations"]:
        masks[names[row["image_id"]]].append((row["category_id"], row["segmentation"]["counts"]))
    assert masks == {key: objects[key.removeprefix("a b/é")] for key in picked}
    scores = evaluate(root, tmp_path / "truth.json", allow_unlisted=True).scores
    assert (scores["segm"].ap, scores["bbox"].ap) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize("to", ["label-studio", "cvat", "coco"])
def test_blind_tasks_show_no_labels_and_what_is_drawn_from_nothing_is_matched_by_its_mask(
    root: str, tmp_path: Path, to: str
) -> None:
    selection, shown_tasks, tasks = (tmp_path / name for name in ("s.json", "shown", "blind"))
    select(root, {"random": 13}, to=to, tasks=shown_tasks)
    picked = select(root, {"random": 13}, out=selection, to=to, tasks=tasks, blind=True)
    assert Selection.read(selection).blind
    content, told = tasks.read_text(), shown_tasks.read_text()
    for trace in ('predictions": [{', '"predictions":[{', "brushlabels", "<mask", "counts", "score"):
        assert trace not in content
    assert any(trace in told for trace in ("brushlabels", "<mask", "counts"))
    assert content.count("coco_url" if to == "coco" else "<image " if to == "cvat" else "image_key") == 13

    drawn = {  # Boxes a pixel beside those of the labels; then a tv in place of one bottle.
        each.key: [
            (c, box(3 if i == 0 else 31, 2, 20, [20, 12][i]) if i < 2 else counts)
            for i, (c, _, counts) in enumerate(redact()[each.key.removeprefix("a b/é")].found)
        ]
        for each in picked.chosen
    }
    drawn[max(key for key in drawn if drawn[key])][2] = (72, box(0, 50, 9, 9))
    rows = [{"id": i, "file_name": key, "height": SIZE_HW[0], "width": SIZE_HW[1]} for i, key in enumerate(drawn)]
    annotations = [
        {"id": 0, "image_id": i, "category_id": c, "segmentation": {"size": list(SIZE_HW), "counts": counts}}
        for i, objects in enumerate(drawn.values())
        for c, counts in objects
    ]
    categories = [{"id": c, "name": name} for c, name in NAMES.items()]
    everything = {"images": rows, "annotations": annotations, "categories": categories}
    (tmp_path / "drawn.json").write_text(json.dumps(everything))
    found = review(root, selection, tmp_path / "drawn.json")
    assert found.total is not None
    hits = {name: {kind: each.hits for kind, each in errors.kinds.items() if each.hits}
            for name, errors in found.classes.items()}  # fmt: skip
    assert hits == {"stop sign": {}, "bottle": {"spurious": 1}, "tv": {"missed": 1}}
    assert found.total.precision.hits == found.total.recall.hits == 35
    assert not any("--blind" in note for note in found.notes)


def test_a_review_of_labels_that_people_saw_says_so(drawn: Chosen, tmp_path: Path) -> None:
    assert any("--blind" in note for note in reviewed(drawn, tmp_path).notes)


def result_of(row: dict[str, Any], name: str, counts: str) -> dict[str, Any]:
    value = {"format": "rle", "rle": encode_brush(row_runs(counts, SIZE_HW)).tolist(), "brushlabels": [name]}
    return {**row, "id": "new", "value": value}


def test_planted_corrections_are_told_by_kind_and_class(drawn: Chosen, tmp_path: Path) -> None:
    def change(content: Any) -> None:
        results = [task["annotations"][0]["result"] for task in content if task["annotations"][0]["result"]]
        del results[0][0]  # a spurious stop sign
        results[1][2]["value"]["brushlabels"] = ["kite"]  # a bottle that is a kite
        results[2].append(result_of(results[2][0], "tv", box(60, 2, 9, 9)))  # a missed tv
        results[3][1] = result_of(results[3][1], "stop sign", box(40, 2, 20, 12))  # a third of its mask is right

    found = reviewed(drawn, tmp_path, change)
    assert found.total is not None
    hits = {name: {kind: each.hits for kind, each in errors.kinds.items() if each.hits}
            for name, errors in found.classes.items()}  # fmt: skip
    assert hits == {"stop sign": {"spurious": 1, "poor mask": 1}, "bottle": {"wrong class": 1}, "tv": {"missed": 1},
                    "kite": {}}  # fmt: skip
    n = found.total.detections // 3
    sign, bottle = found.classes["stop sign"], found.classes["bottle"]
    assert (sign.precision.hits, sign.precision.of) == (2 * n - 2, 2 * n)
    assert (sign.recall.hits, sign.recall.of) == (2 * n - 2, 2 * n - 1)
    assert (bottle.precision.value, bottle.recall.value) == ((n - 1) / n, 1)
    assert (found.classes["kite"].precision.value, found.classes["kite"].recall.value) == (None, 0)
    assert (found.total.precision.hits, found.total.recall.of) == (3 * n - 3, 3 * n)
    assert found.total.precision.low < (3 * n - 3) / (3 * n) < found.total.precision.high


def test_only_the_random_images_tell_the_errors_and_all_become_truth(root: str, tmp_path: Path) -> None:
    _, selection, tasks = chosen(root, tmp_path, "label-studio", {"random": 2, "diverse": 3, "rare": 13})
    picked = Selection.read(selection)

    def change(content: Any) -> None:
        for task in content:
            if task["data"]["image_key"] not in picked.sample:
                task["annotations"][0]["result"] = []

    found = reviewed((root, selection, tasks), tmp_path, change, truth_out=tmp_path / "truth.json")
    assert found.total is not None
    assert (found.sampled, found.total.precision.value) == (2, 1)
    assert (
        found.reviewed == len(json.loads((tmp_path / "truth.json").read_text())["images"]) == len(picked.chosen) >= 12
    )


def test_cvats_polygons_are_masks(root: str, tmp_path: Path) -> None:
    _, selection, tasks = chosen(root, tmp_path, "cvat", {"random": 13})
    tree = ET.fromstring(tasks.read_text())
    for image in tree.iter("image"):
        for mask in list(image):
            image.remove(mask)
    image = next(tree.iter("image"))
    ET.SubElement(image, "tag", {"label": "bottle"})
    ET.SubElement(image, "polygon", {"label": "stop sign", "points": "2.0,2.0;22.0,2.0;22.0,22.0;2.0,22.0"})
    tasks.write_text(ET.tostring(tree, "unicode"))
    found = review(root, selection, tasks)
    assert (found.classes["stop sign"].recall.value, found.classes["stop sign"].objects) == (1, 1)
    assert found.total is not None
    assert (found.total.precision.hits, found.total.precision.of) == (1, 36)
    ET.SubElement(image, "box", {"label": "stop sign", "xtl": "1", "ytl": "1", "xbr": "9", "ybr": "9"})
    tasks.write_text(ET.tostring(tree, "unicode"))
    with pytest.raises(SourceError, match=r"box of class stop sign of .* is no mask"):
        review(root, selection, tasks)


def test_label_studios_own_strokes_with_literals_and_soft_edges_are_read() -> None:
    alpha = np.array([[0, 255, 100], [200, 0, 0]], np.uint8)
    pixels = np.repeat(alpha[:, :, None], 4, axis=2)
    pixels[:, :, 0] = 7  # colour
    words = pixels.ravel().tolist()
    bits = f"{len(words):032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    bits += "0" + "01" + f"{14:04b}" + "".join(f"{word:08b}" for word in words[:15])
    for word in words[15:]:
        bits += "1" + "00" + "000" + f"{word:08b}"
    data = [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]
    assert annotation_import.decode_brush(data, (2, 3)).tolist() == [[False, True, False], [True, False, False]]
    for broken, size_hw in ((data[:20], (2, 3)), (data, (3, 3))):
        with pytest.raises(ValueError, match="brush stroke"):
            annotation_import.decode_brush(broken, size_hw)


def by_name(path: Path, names: list[str], corrected: list[str]) -> dict[str, Any]:
    """Read corrections of images under other names."""
    rows = [{"id": i, "file_name": name, "height": 4, "width": 4} for i, name in enumerate(corrected)]
    path.write_text(json.dumps({"images": rows, "annotations": [], "categories": []}))
    images = [selecting.SelectedImage(name, f"/data/{name}", (4, 4), {}) for name in names]
    return annotation_import.read(path, images, {13: "stop sign"}, allow_unfinished=True)


def test_composed_and_decomposed_names_of_one_image_meet(tmp_path: Path) -> None:
    composed, decomposed = "sc\u00e8ne/\ud55c.jpg", "sce\u0300ne/\u1112\u1161\u11ab.jpg"
    for name, other in ((composed, decomposed), (decomposed, composed)):
        assert list(by_name(tmp_path / "c.json", [name, "b.jpg"], [other])) == [name]
    both = [composed, decomposed]
    assert list(by_name(tmp_path / "c.json", both, both)) == sorted(both)
    with pytest.raises(SourceError, match="outside the selection"):
        by_name(tmp_path / "c.json", both, ["sce\u0300ne/\ud55c.jpg"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_coco_without_sizes_and_with_words_as_ids_is_read(root: str, tmp_path: Path, encoding: str) -> None:
    _, selection, tasks = chosen(root, tmp_path, "coco")
    content = json.loads(tasks.read_text())
    for row in content["images"]:
        del row["width"], row["height"]
        row["id"] = f"image {row['id']}"
    for row in content["annotations"]:
        row |= {"image_id": f"image {row['image_id']}", "segmentation": row["segmentation"]["counts"]}
    (tmp_path / "corrected.json").write_text(json.dumps(content), encoding=encoding)
    found = review(root, selection, tmp_path / "corrected.json")
    assert found.total is not None
    assert found.total.precision.value == found.total.recall.value == 1
    assert found.total.objects >= 21


def test_images_under_other_folders_are_found_where_one_alone_can_be_meant(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b/1.jpg", "2.jpg"]
    for name, key in (("images\\a\\1.jpg", "a/1.jpg"), ("C:\\x\\2.jpg", "2.jpg"), ("media/b/1.jpg", "b/1.jpg")):
        assert list(by_name(tmp_path / "c.json", names, [name])) == [key]
    for name in ("1.jpg", "x1.jpg", "c/1.jpg"):
        with pytest.raises(SourceError, match="outside the selection"):
            by_name(tmp_path / "c.json", names, [name])


def cvat(shapes: str, size: str = 'width="64" height="48"') -> str:
    return f'<annotations><image name="1.jpg" {size}>{shapes}</image></annotations>'


def cvat_polygon(points: str) -> str:
    return cvat(f'<polygon label="stop sign" points="{points}"/>')


def cvat_mask(runs: str) -> str:
    return cvat(f'<mask label="stop sign" rle="{runs}" left="0" top="0" width="4" height="4"/>')


def studio_shape(kind: str, value: dict[str, Any], side: Any = 64) -> str:
    shape = {"type": kind, "original_width": side, "original_height": 48, "value": {kind: ["stop sign"], **value}}
    return json.dumps([{"data": {"image": "1.jpg"}, "annotations": [{"result": [shape]}]}])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (cvat_polygon("8,10;nan,10;28,30"), "nan is no place"),
        (cvat_polygon("8,10;28,1e8;28,30"), "an outline of"),
        (cvat_polygon("8,10;-inf,10;28,30"), "-inf is no place"),
        (cvat_polygon(";".join(["1e6,-1e6", "-1e6,1e6"] * 3000)), "an outline of"),
        (cvat_polygon("1,2,3;4,5,6;7,8,9"), "no x and y"),
        (cvat_mask("0, 1000000000000"), "cover 1000000000000 pixels"),
        (cvat_mask("-5, 21"), "cover 16 pixels"),
        (cvat("", 'width="1000000000" height="1000000000"'), "another size"),
        (studio_shape("polygonlabels", {"points": [[1, 1], [float("nan"), 5], [50, 50]]}), "nan is no place"),
        (studio_shape("polygonlabels", {"points": [[1, 1], [None, 5], [50, 50]]}), "nan is no place"),
        (studio_shape("polygonlabels", {"points": [[1, 1], [1e300, 5], [50, 50]]}), "is no place"),
        (studio_shape("polygonlabels", {"points": [[1, 1], [9, 1], [9, 9]]}, 10**9), "another size"),
        (studio_shape("polygonlabels", {"points": [[1, 1], [9, 1], [9, 9]]}, 10**400), "another size"),
        (studio_shape("brushlabels", {"rle": [-1, 300]}), "cannot be read"),
        (studio_shape("brushlabels", {}), r"task number 1 of [\s\S]*no 'rle'"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_hostile_numbers_of_corrections_reach_no_kernel(tmp_path: Path, text: str, says: str) -> None:
    """NaN, infinity and far points ended the process; a mask of many pixels took all memory."""
    (tmp_path / "corrected").write_text(text)
    images = [selecting.SelectedImage("1.jpg", "/data/1.jpg", (48, 64), {})]
    with pytest.raises(SourceError, match=says):
        annotation_import.read(tmp_path / "corrected", images, {13: "stop sign"}, allow_unfinished=True)


def skip_one(content: Any) -> None:
    content[0]["annotations"] = content[0]["annotations"][1:]


def rename(content: Any) -> None:
    content[0]["data"]["image_key"] = "other.jpg"


def misname(content: Any) -> None:
    next(task for task in content if task["annotations"][0]["result"])["annotations"][0]["result"][0]["value"][
        "brushlabels"
    ] = ["unicorn"]


def shrink(content: Any) -> None:
    first = next(task for task in content if task["annotations"][0]["result"])["annotations"][0]["result"]
    for row in first:
        row["original_width"] //= 2


def cut_off(content: Any) -> None:
    stroke = next(task for task in content if task["annotations"][0]["result"])["annotations"][0]["result"][0]["value"]
    stroke["rle"] = stroke["rle"][:12]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (skip_one, "not all images of the selection are done"),
        (lambda content: content.pop(), "not all images of the selection are done"),
        (rename, "outside the selection"),
        (lambda content: content.append(content[0]), "an image twice"),
        (misname, "class that the labels' model lacks"),
        (shrink, "another size"),
        (cut_off, "ends too early"),
        (lambda content: content.clear(), "no images"),
        (lambda content: content.insert(0, 7), "cannot be read"),
    ],
)
def test_bad_corrections_are_refused_and_nothing_is_written(
    drawn: Chosen, tmp_path: Path, change: Callable[[Any], None], says: str
) -> None:
    with pytest.raises(SourceError, match=says):
        reviewed(drawn, tmp_path, change, truth_out=tmp_path / "truth.json")
    assert {each.name for each in tmp_path.iterdir()} == {"corrected.json"}


@pytest.mark.parametrize("text", ["", "{}", "[", "<a/>", "<annotations>", "[]", "<annotations/>"])
def test_what_is_no_export_is_refused(drawn: Chosen, tmp_path: Path, text: str) -> None:
    root, selection, _ = drawn
    (tmp_path / "bad").write_text(text)
    with pytest.raises(SourceError):
        review(root, selection, tmp_path / "bad")
    with pytest.raises(SourceError, match="no such corrections"):
        review(root, selection, tmp_path / "nothing")
    with pytest.raises(SourceError, match="this is no selection"):
        review(root, tmp_path / "bad", selection)


def test_unfinished_images_are_left_out_when_asked_and_said(drawn: Chosen, tmp_path: Path) -> None:
    found = reviewed(drawn, tmp_path, skip_one, allow_unfinished=True)
    assert (found.reviewed, found.sampled) == (7, 7)
    assert any("1 selected images are not done" in note for note in found.notes)


def test_a_selection_of_another_label_set_and_a_truth_that_is_there_are_refused(drawn: Chosen, planted: str) -> None:
    root, selection, tasks = drawn
    with pytest.raises(UserError, match="not of this label set"):
        review(planted, selection, tasks)
    with pytest.raises(UserError, match="there already"):
        review(root, selection, tasks, truth_out=tasks)


def test_a_selection_is_not_held_against_another_models_labels(drawn: Chosen, tmp_path: Path) -> None:
    root, selection, tasks = drawn
    other = Path(shutil.copytree(root, tmp_path / "v2"))
    record = other / "_segray" / "label_set.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "fingerprint": "of v2"}))
    (tmp_path / "CURRENT").write_text("v2")
    for place in (other, tmp_path / "CURRENT"):
        with pytest.raises(UserError, match=r"not of this label set(.|\n)*another model's(.|\n)*" + root):
            reviewed((str(place), selection, tasks), tmp_path)


@pytest.mark.integration
def test_what_became_of_the_labels_since_changes_no_review(drawn: Chosen, tmp_path: Path) -> None:
    root, selection, tasks = drawn
    picked = {each.key for each in Selection.read(selection).chosen}
    left = min({f"a b/é{key}" for key in redact()} - picked)
    before = reviewed(drawn, tmp_path)

    def again(labels: str) -> Review:
        return replace(reviewed((labels, selection, tasks), tmp_path), root=root)

    for changed in (left, min(picked)):
        here = str(shutil.copytree(root, tmp_path / f"without {changed}"))
        label_sets.write(here, {changed: Image(SIZE_HW, [(90, 0.9, box(60, 2, 9, 9))])})
        assert again(here) == before
        maintenance.maintain(here, StorageOptions(), grace_hours=0)
        if changed == left:
            assert again(here) == before
        else:
            with pytest.raises(LabelSetError, match="can no longer be read"):
                again(here)


# ---- intervals ------------------------------------------------------------------------------------


def test_wilsons_interval_is_that_of_the_tables() -> None:
    assert wilson(0.8, 10) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0.0, 20) == (0, pytest.approx(0.1611, abs=1e-4))
    assert wilson(1.0, 20)[1] == 1


def test_images_of_one_instance_each_give_wilsons_own_interval() -> None:
    found = estimate([1] * 30 + [0] * 10, [1] * 40)
    assert (found.low, found.high) == (
        pytest.approx(found.naive_low, abs=0.01),
        pytest.approx(found.naive_high, abs=0.01),
    )
    assert (found.hits, found.of, found.value) == (30, 40, 0.75)


def test_what_was_all_seen_is_known_and_what_was_not_at_all_is_not() -> None:
    found = estimate([3, 1], [4, 4], fraction=1)
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)
    nothing = estimate([0, 0], [0, 0])
    assert (nothing.value, nothing.low, nothing.high) == (None, 0, 1)
    agreed = estimate([3, 3, 3], [3, 3, 3])
    assert (agreed.low, agreed.high) == wilson(1, 3)
    part, none = estimate([3, 1, 2], [4, 4, 4], fraction=0.5), estimate([3, 1, 2], [4, 4, 4])
    assert none.low < part.low < part.high < none.high


def test_intervals_hold_where_instances_of_an_image_fail_together() -> None:
    """400 label sets whose images are good or bad as a whole: 95 % should hold about as often as they say."""
    rng, share = np.random.default_rng(7), 0.8
    held = naive = 0
    for _ in range(400):
        sizes = rng.integers(1, 12, 50)
        hits = rng.binomial(sizes, rng.beta(0.8, 0.2, 50))
        found = estimate(hits.tolist(), sizes.tolist())
        held += found.low <= share <= found.high
        naive += found.naive_low <= share <= found.naive_high
    assert held / 400 >= 0.93
    assert naive / 400 < 0.8


def test_an_interval_is_about_as_wide_as_resampled_images_say() -> None:
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 9, 80)
    hits = rng.binomial(sizes, rng.beta(4, 2, 80))
    drawn = rng.integers(0, 80, (2000, 80))
    low, high = np.quantile(hits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [0.025, 0.975])
    found = estimate(hits.tolist(), sizes.tolist())
    assert found.high - found.low == pytest.approx(high - low, rel=0.15)


# ---- commands -------------------------------------------------------------------------------------


def test_the_two_commands(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    selection, tasks, truth = (str(tmp_path / name) for name in ("s.json", "tasks.xml", "truth.json"))
    asked = ["--take", "random=6", "--take", "rare=2", "--to", "cvat", "--tasks", tasks]
    assert main.run(["select", root, selection, *asked]) == 0
    assert "of 13 images with 36 instances: 6 random, 2 rare" in capsys.readouterr().out
    assert main.run(["review", root, "--selection", selection, "--corrected", tasks, "--truth", truth]) == 0
    out = capsys.readouterr().out
    assert "6 of them a random sample of 13" in out
    assert "1.000 (" in out
    assert main.run(["review", root, "--selection", selection, "--corrected", tasks, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sampled"] == 6
    assert main.run(["select", root, selection, "--take", "random"]) == 2
    assert main.run(["select", root, selection, "--take", "random=2"]) == 2  # it is there


@pytest.mark.integration
def test_the_commands_of_the_page_run(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "analytics.md").read_text(encoding="utf-8")
    lines = page.split("## What people say")[1].split("```sh\n")[1].split("```")[0].splitlines()
    commands = [shlex.split(line)[1:] for line in lines]
    assert [command[0] for command in commands] == ["select", "review"]
    for name in ("labels", "labels-v2"):
        shutil.copytree(root, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main.run(commands[0]) == 0
    Path("corrected.json").write_text(json.dumps(studio(Path("tasks.json"))))
    assert main.run(commands[1]) == 0
    assert main.run(["evaluate", "labels", "--truth", "truth.json", "--allow-unlisted"]) == 0
