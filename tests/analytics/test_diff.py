from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import label_sets
import numpy as np
import pytest
from label_sets import Image

from segray import rle
from segray.analytics.query import key_ranges
from segray.analytics.reports import diff as comparison
from segray.analytics.reports.diff import KINDS, Gate, class_drift, diff, score_drift
from segray.cli import main
from segray.errors import LabelSetError, UserError
from segray.label_set.commit import create_tables
from segray.label_set.snapshot import Snapshot
from segray.storage.store import StorageOptions

SIZE_HW = (120, 160)


def box(x: int, y: int, w: int, h: int, size_hw: tuple[int, int] = SIZE_HW) -> str:
    return rle.encode_crop(np.ones((h, w), np.bool_), x, y, size_hw)


def redact() -> dict[str, Image]:
    """Six images with three instances each: a small, a medium and a large one."""
    found = [(13, 0.9, box(0, 0, 20, 20)), (44, 0.8, box(30, 0, 50, 50)), (90, 0.7, box(30, 10, 120, 100))]
    return {f"{i}.jpg": Image(SIZE_HW, found) for i in range(6)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return label_sets.write(tmp_path_factory.mktemp("a"), redact())


def test_a_label_set_does_not_differ_from_itself(root: str) -> None:
    found = diff(root, root, fail_if=["changed>0", "gained>=1", "class_drift>0", "score_drift>0"])
    assert found.kinds == {"kept": 18, "moved": 0, "renamed": 0, "gained": 0, "lost": 0}
    assert (found.images, found.only_a, found.only_b, found.instances) == (6, 0, 0, (18, 18))
    assert (found.renamed, found.most_changed, found.failed_gates) == ([], [], ())
    assert (found.class_drift.p, found.score_drift.p) == (1, 1)


def test_planted_changes_of_each_kind_are_found(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_ranges.KeySampler.cut, "__defaults__", (6,))
    images = redact()
    small, medium, large = images["0.jpg"].found
    images["0.jpg"] = Image(SIZE_HW, [(13, 0.9, box(5, 0, 20, 20)), medium, large])  # moved
    images["1.jpg"] = Image(SIZE_HW, [small, (88, 0.8, medium[2]), large])  # renamed
    images["2.jpg"] = Image(SIZE_HW, [small, medium])  # lost
    images["3.jpg"] = Image(SIZE_HW, [small, medium, large, (13, 0.2, box(100, 0, 20, 10))])  # gained
    images["4.jpg"] = Image((0, 0), failed=True)
    images["6.jpg"] = images.pop("5.jpg")
    found = diff(root, label_sets.write(tmp_path, images))
    assert found.kinds == {"kept": 9, "moved": 1, "renamed": 1, "gained": 1, "lost": 4}
    assert (found.images, found.only_a, found.only_b, found.newly_failed) == (5, 1, 1, 1)
    assert found.renamed == [("bottle", "teddy bear", 1)]
    assert found.by_class["stop sign"] == {"kept": 3, "moved": 1, "renamed": 0, "gained": 1, "lost": 1}
    assert found.by_size["large"] == {"kept": 3, "moved": 0, "renamed": 0, "gained": 0, "lost": 2}
    assert {each.key: each.weight for each in found.most_changed} == {
        "0.jpg": pytest.approx(1 - 15 / 25), "1.jpg": 1, "2.jpg": 1, "3.jpg": 1, "4.jpg": 3,
    }  # fmt: skip
    assert found.most_changed[0].key == "4.jpg"
    assert found.most_changed[0].kinds == {"lost": 3}


def test_instances_of_one_class_find_each_other_first() -> None:
    def side(*found: tuple[str, str]) -> comparison._Side:
        names, rles = [name for name, _ in found], [counts for _, counts in found]
        boxes = rle.bbox(rles, SIZE_HW)
        return comparison._Side(names, np.ones(len(names)), boxes, np.asarray(rle.area(rles)), SIZE_HW, rles)

    a = side(("cat", box(0, 0, 10, 10)), ("dog", box(0, 0, 10, 12)))
    b = side(("dog", box(0, 0, 10, 10)), ("cat", box(0, 0, 10, 14)), ("cat", box(50, 50, 5, 5)))
    assert [pair[:2] for pair in comparison.matches(a, b)] == [(1, 0), (0, 1)]


def test_an_image_of_another_size_loses_all(root: str, tmp_path: Path) -> None:
    images = redact() | {"0.jpg": Image((60, 160), [(13, 0.9, box(0, 0, 20, 20, (60, 160)))])}
    images["1.jpg"] = Image((60, 160))
    found = diff(root, label_sets.write(tmp_path, images))
    assert (found.resized, found.kinds["lost"], found.kinds["gained"]) == (2, 6, 1)


@pytest.mark.parametrize(
    ("gate", "fails"),
    [("lost>15%", True), ("lost>17%", False), ("lost>=3", True), ("changed[stop sign]>0", False), ("kept<100%", True),
     ("lost[toothbrush]>49%", True), ("gained[zebra]>0%", False), ("only_b>0", False), ("class_drift > 0.1", True)],
)  # fmt: skip
def test_gates(root: str, tmp_path: Path, gate: str, fails: bool) -> None:
    found = Gate.parse(gate)
    kinds = dict.fromkeys(KINDS, 0)
    by_class = {
        "stop sign": kinds | {"kept": 6},
        "bottle": kinds | {"kept": 6},
        "toothbrush": kinds | {"kept": 3, "lost": 3},
    }
    made = comparison.LabelSetDifference(
        6, 0, 0, 0, 0, 0, (18, 15), kinds | {"kept": 15, "lost": 3}, by_class, {}, [], [],
        comparison.Drift(1, 0.5, 0.15), comparison.Drift(0, 1, 0),
    )  # fmt: skip
    assert found.fails(made) == fails


@pytest.mark.parametrize("text", ["lost", "lost>", "found>2", "lost>1.2.3", "only_a[person]>2", "lost=3"])
def test_what_is_no_gate_is_an_error(root: str, text: str) -> None:
    with pytest.raises(UserError, match="no gate"):
        diff(root, root, fail_if=[text])


@pytest.mark.parametrize("name", ["a>b", "a>=3", ">", "a]b"])
def test_a_gate_may_name_a_class_with_any_character(name: str) -> None:
    gate = comparison.Gate.parse(f"lost[{name}]>2%")
    assert (gate.class_name, gate.limit, gate.percent) == (name, 2.0, True)


def test_each_label_set_is_read_with_its_own_storage_options(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options_of = list[dict[str, Any]]()
    snapshot_of = comparison.snapshot.snapshot

    def snapshot(place: str, version: int | None = None, as_of: datetime | None = None, **options: Any) -> Snapshot:
        options_of.append(options)
        return snapshot_of(place, version=version, as_of=as_of)

    monkeypatch.setattr(comparison.snapshot, "snapshot", snapshot)
    diff(root, root, storage_options_b={"endpoint_url": "http://b"}, endpoint_url="http://a")
    diff(root, root, endpoint_url="http://a")
    assert [options["endpoint_url"] for options in options_of] == ["http://a", "http://b", "http://a", "http://a"]


def test_a_gates_class_is_found_by_name_or_value_and_must_be_there(root: str, tmp_path: Path) -> None:
    images = redact() | {"0.jpg": Image(SIZE_HW, redact()["0.jpg"].found[1:])}
    other = label_sets.write(tmp_path, images)
    gates = ["lost[stop sign]>0", "lost[stop_sign]>0", "lost[Stop Sign]>0"]
    assert list(diff(root, other, fail_if=gates).failed_gates) == gates
    with pytest.raises(UserError, match=r"neither label set has(.|\n)*such as stop sign"):
        diff(root, other, fail_if=["lost[stop sing]>0"])
    assert diff(root, other, fail_if=["lost[zebra]>0"]).failed_gates == ()  # It is known, and in no image.


def test_label_sets_without_a_common_image_or_batch_are_an_error(root: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image in common"):
        diff(root, label_sets.write(tmp_path / "b", {"x": Image(SIZE_HW)}))
    create_tables(str(tmp_path / "young"), StorageOptions())
    with pytest.raises(LabelSetError, match="committed yet"):
        diff(root, str(tmp_path / "young"))


def test_drift_is_small_between_samples_and_large_between_others() -> None:
    rng = np.random.default_rng(0)
    a, b = ({str(k): int(n) for k, n in enumerate(rng.multinomial(5000, [0.5, 0.3, 0.2]))} for _ in range(2))
    assert class_drift(a, b).p > 0.05
    other = class_drift(a, {"0": 4000, "1": 1000})
    assert other.p < 1e-6
    assert other.effect > 0.2
    first, second = (np.bincount((rng.random(4000) * 1000).astype(int), minlength=1000) for _ in range(2))
    assert score_drift(first, second).p > 0.05
    shifted = score_drift(first, np.bincount((rng.random(4000) ** 2 * 1000).astype(int), minlength=1000))
    assert shifted.p < 1e-6
    assert shifted.effect == pytest.approx(0.25, abs=0.03)


@pytest.mark.integration
def test_a_label_set_against_its_own_past(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = label_sets.write(tmp_path, redact())
    time.sleep(0.01)
    moment = datetime.now(UTC).isoformat()
    time.sleep(0.01)
    label_sets.write(tmp_path, {"0.jpg": Image(SIZE_HW)})
    for state in (["--version-a", "1"], ["--as-of-a", moment]):
        assert main.run(["diff", root, root, "--json", *state]) == 0
        assert json.loads(capsys.readouterr().out)["kinds"]["lost"] == 3
    assert main.run(["diff", root, root, "--json", "--as-of-b", moment]) == 0
    assert json.loads(capsys.readouterr().out)["kinds"]["gained"] == 3


@pytest.mark.integration
def test_the_command_draws_and_ends_with_four_when_a_gate_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), np.full((*SIZE_HW, 3), 200, np.uint8))
    images = {"0.png": Image(SIZE_HW, redact()["0.jpg"].found, uri=str(tmp_path / "0.png"))}
    a = label_sets.write(tmp_path / "a", images)
    b = label_sets.write(tmp_path / "b", {"0.png": Image(SIZE_HW, images["0.png"].found[:2], uri=images["0.png"].uri)})
    assert main.run(["diff", a, b, "--fail-if", "lost>50%", "--draw", str(tmp_path / "most.png")]) == 0
    assert cv2.imread(str(tmp_path / "most.png")) is not None
    assert "1 lost (33.3 %)" in capsys.readouterr().out
    assert main.run(["diff", a, b, "--fail-if", "lost>2%", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["failed_gates"] == ["lost>2%"]


@pytest.mark.integration
def test_a_picture_that_cannot_be_drawn_costs_neither_the_numbers_nor_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size_hw in (("0.png", SIZE_HW), ("1.png", (10, 10))):
        cv2.imwrite(str(tmp_path / name), np.full((*size_hw, 3), 200, np.uint8))
    (tmp_path / "2.png").write_bytes(b"no image")
    names = ["0.png", "1.png", "2.png", "3.png", "4.png"]
    found = redact()["0.jpg"].found
    images = {name: Image(SIZE_HW, found, uri=str(tmp_path / name)) for name in names}
    less = {name: Image(SIZE_HW, found[:2], uri=str(tmp_path / name)) for name in names[:4]}
    a, b = label_sets.write(tmp_path / "a", images), tmp_path / "b"
    label_sets.write(b, {**less, "4.png": Image((0, 0), failed=True)})
    assert main.run(["diff", a, str(b), "--fail-if", "lost>2%", "--draw", str(tmp_path / "new" / "most.png")]) == 4
    out = capsys.readouterr().out
    assert [line.split(":")[1].strip() for line in out.splitlines() if line.startswith("not drawn")] == [
        "4.png", "1.png", "2.png", "3.png",
    ]  # fmt: skip
    assert "7 lost" in out
    assert cv2.imread(str(tmp_path / "new" / "most.png")) is not None
    (tmp_path / "0.png").unlink()
    assert set(diff(a, str(b), draw=tmp_path / "none.png").undrawn) == set(names)
    assert not (tmp_path / "none.png").exists()


# ---- label sets of two models ---------------------------------------------------------------------


def two_families(tmp_path: Path) -> tuple[str, str]:
    """The same pictures by two models with other ids, spellings and classes.

    A: 13 stop sign, 44 bottle, 90 toothbrush. B: 1 Stop_Sign, 2 bottle, 3 vehicle. Both see the stop signs of three
    images alike, a bottle of one, and a toothbrush that B takes for a bottle. B lacks toothbrushes.
    """
    sign, bottle, brush = box(0, 0, 20, 20), box(30, 0, 50, 50), box(30, 60, 50, 50)
    a = {f"{i}.jpg": Image(SIZE_HW, [(13, 0.9, sign), (44, 0.8, bottle)]) for i in range(3)}
    a["2.jpg"] = Image(SIZE_HW, [(13, 0.9, sign), (44, 0.8, bottle), (90, 0.7, brush)])
    b = {
        "0.jpg": Image(SIZE_HW, [(1, 0.9, sign), (2, 0.8, bottle)]),
        "1.jpg": Image(SIZE_HW, [(1, 0.9, box(0, 0, 20, 10)), (3, 0.9, box(100, 100, 9, 9))]),
        "2.jpg": Image(SIZE_HW, [(1, 0.9, sign), (2, 0.8, brush)]),
    }
    classes = {1: "Stop_Sign", 2: "bottle", 3: "vehicle"}
    return label_sets.write(tmp_path / "a", a), label_sets.write(tmp_path / "b", b, classes=classes)


@pytest.mark.parametrize(
    ("roots", "names"),
    [
        (("/data/labels", "/data/labels-tiled"), ("labels", "labels-tiled")),
        (("/data/v1/labels", "/data/v2/labels"), ("v1/labels", "v2/labels")),
        (("s3://bucket/a", "/data/a"), ("s3://bucket/a", "/data/a")),
        (("/data/a", "/mnt/a"), ("/data/a", "/mnt/a")),
        (("/data/labels", "/data/labels"), ("/data/labels, batch 1", "batch 2")),
    ],
)
def test_a_drawing_names_the_label_sets_shortly(roots: tuple[str, str], names: tuple[str, str]) -> None:
    old, new = (SimpleNamespace(root=root, batch=batch) for batch, root in enumerate(roots, 1))
    assert comparison._names(old, new) == names


def test_label_sets_of_two_models_are_compared_by_name(tmp_path: Path) -> None:
    found = diff(*two_families(tmp_path))
    assert found.kinds == {"kept": 3, "moved": 1, "renamed": 1, "gained": 1, "lost": 2}
    assert found.renamed == [("toothbrush", "bottle", 1)]
    assert found.agreement == comparison.Agreement(4, 3, 2, round(4 / 9, 6), (3 + 0.5) / 4)
    assert found.agreement_by_class == {
        "stop sign": comparison.Agreement(3, 0, 0, 1.0, round(2.5 / 3, 6)),
        "bottle": comparison.Agreement(1, 2, 1, 0.25, 1.0),
        "toothbrush": comparison.Agreement(0, 1, 0, 0.0, None),
        "vehicle": comparison.Agreement(0, 0, 1, 0.0, None),
    }
    assert found.other_classes == ({"toothbrush": 1}, {"vehicle": 1})
    assert found.notes == ("classes are compared by name; spelled otherwise in B: 'Stop_Sign' for 'stop sign'",)
    assert [change.key for change in found.most_changed] == ["1.jpg", "2.jpg"]


def test_classes_of_one_label_set_can_be_left_out(tmp_path: Path) -> None:
    found = diff(*two_families(tmp_path), shared_classes=True)
    assert found.kinds == {"kept": 3, "moved": 1, "renamed": 0, "gained": 1, "lost": 2}
    assert (found.instances, found.left_out) == ((6, 5), True)
    assert set(found.by_class) == {"stop sign", "bottle"}
    assert found.other_classes == ({"toothbrush": 1}, {"vehicle": 1})


def test_a_class_map_joins_classes(tmp_path: Path) -> None:
    a, b = two_families(tmp_path)
    found = diff(a, b, class_map={"toothbrush": "bottle", "44": "2"})
    assert found.by_class["bottle"]["kept"] == 2  # Both of A's classes bear the name of the one class of B.
    assert found.kinds["renamed"] == 0
    assert found.agreement_by_class["bottle"] == comparison.Agreement(2, 2, 0, 0.5, 1.0)
    backwards = diff(b, a, class_map={"bottle": ["bottle", "toothbrush"]})
    assert backwards.agreement_by_class["bottle"] == comparison.Agreement(2, 0, 2, 0.5, 1.0)
    assert diff(a, b, class_map={"toothbrush": "bottle"}, fail_if=["lost[toothbrush]>=0"]).failed_gates
    with pytest.raises(UserError, match=r"label set B lacks[\s\S]*zebra[\s\S]*--class-map A=B"):
        diff(a, b, class_map={"bottle": "zebra"})


def test_a_gate_names_a_class_as_either_label_set_does(tmp_path: Path) -> None:
    gates = ["changed[Stop_Sign]>0", "changed[stop sign]>0", "changed[stop_sign]>0"]
    assert list(diff(*two_families(tmp_path), fail_if=gates).failed_gates) == gates


def test_spellings_that_fit_two_classes_are_told(tmp_path: Path) -> None:
    mask = box(0, 0, 20, 20)
    a = label_sets.write(tmp_path / "a", {"0": Image(SIZE_HW, [(1, 0.9, mask)])}, classes={1: "a-b", 2: "a b"})
    b = label_sets.write(tmp_path / "b", {"0": Image(SIZE_HW, [(7, 0.9, mask)])}, classes={7: "A_B"})
    found = diff(a, b)
    assert found.kinds["renamed"] == 1
    assert "--class-map A=B: A_B" in found.notes[0]
    assert diff(a, b, class_map={"a-b": "A_B"}).kinds["kept"] == 1


def test_the_command_tells_what_both_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = two_families(tmp_path)
    assert main.run(["diff", a, b]) == 0
    shown = capsys.readouterr().out
    assert "both see 4 alike (same class, mask IoU 0.5 and more), 3 in A alone, 2 in B alone" in shown
    assert "agreement 0.444, mean IoU 0.875" in shown
    assert "classes of A alone, with 1 instances: toothbrush (1)" in shown
    mapped = ["--class-map", "toothbrush=bottle", "--class-map", "bottle=bottle"]
    assert main.run(["diff", a, b, "--shared-classes", "--json", *mapped]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["agreement"]["share"] == round(5 / 7, 6)
    assert record["notes"][0] == "by the class map, toothbrush is bottle, bottle is bottle"
