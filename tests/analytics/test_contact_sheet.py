from __future__ import annotations

import io
import time
from pathlib import Path

import cv2
import label_sets
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from PIL import Image, ImageDraw

from segray import rle
from segray.analytics.reports.contact_sheet import (
    LabelledPicture,
    SheetCandidate,
    choose,
    colours_of,
    contact_sheet,
    pictures_of,
)
from segray.cli import main
from segray.errors import UserError
from segray.imaging.drawing import PALETTE, Label, _coverage, _find_tag_box, draw
from segray.instances import image_id
from segray.label_set import schema, snapshot

SIZE_HW = (120, 160)


def label(x: int, y: int, w: int, h: int, class_id: int = 13, score: float = 0.9) -> Label:
    mask = np.zeros(SIZE_HW, bool)
    mask[y : y + h, x : x + w] = True
    return Label(class_id, f"class {class_id}", score, (x, y, w, h), rle.encode(mask))


def png(size_hw: tuple[int, int] = SIZE_HW, level: int = 100) -> bytes:
    return cv2.imencode(".png", np.full((*size_hw, 3), level, np.uint8))[1].tobytes()


def picture(key: str, labels: int = 1, score: float = 0.9) -> LabelledPicture:
    return LabelledPicture(
        key, key, SIZE_HW, tuple(label(10 + 12 * k, 40, 10, 10, 13 + k, score) for k in range(labels))
    )


def test_draw_tints_the_mask_and_leaves_the_rest_alone() -> None:
    image = np.full((*SIZE_HW, 3), 100, np.uint8)
    overlay = draw(image, [label(60, 50, 40, 40)], {13: (255, 0, 0)}, tags=False)
    assert overlay.shape == image.shape
    assert overlay[70, 80, 0] > 150
    assert overlay[70, 80, 1] < 70
    assert (overlay[100:] == 100).all()
    assert (overlay[:, :40] == 100).all()
    assert (image == 100).all()


def test_draw_outlines_in_the_colour_of_the_class() -> None:
    overlay = draw(np.full((*SIZE_HW, 3), 100, np.uint8), [label(60, 50, 40, 40)], {13: (0, 200, 255)}, tags=False)
    edge = overlay[70, 58:63].astype(int)
    assert np.abs(edge - (0, 200, 255)).sum(axis=1).min() < 30


def test_draw_paints_small_masks_over_large_ones() -> None:
    colours = {13: (255, 0, 0), 90: (0, 0, 255)}
    nested = [label(70, 60, 20, 20, 90, 0.2), label(20, 20, 110, 90, 13, 0.9)]
    overlay = draw(np.full((*SIZE_HW, 3), 100, np.uint8), nested, colours, tags=False)
    assert overlay[70, 80, 2] > overlay[70, 80, 0]


def test_draw_gives_the_size_asked_for_and_follows_the_mask() -> None:
    image, red = np.full((*SIZE_HW, 3), 100, np.uint8), {13: (255, 0, 0)}
    overlay = draw(image, [label(0, 60, 80, 60)], red, size_wh=(80, 60), tags=False)
    assert overlay.shape == (60, 80, 3)
    assert overlay[50, 20, 0] > 150
    assert (overlay[45:, 50:] == 100).all()


def test_draw_puts_tags_inside_the_image_and_never_one_over_another() -> None:
    image = np.full((*SIZE_HW, 3), 100, np.uint8)
    crowd = [label(5 * k, 5 * k, 30, 30, 13, 0.5 + 0.01 * k) for k in range(18)]
    with_tags, without = (draw(image, crowd, {13: (255, 255, 255)}, tags=tags) for tags in (True, False))
    assert (with_tags != without).any()
    taken: list[tuple[int, int, int, int]] = []
    for shown in crowd:
        spot = _find_tag_box((60, 17), shown.bbox_xywh, (1, 1), (160, 120), taken)
        if spot is not None:
            assert 0 <= spot[0] < spot[2] <= 160
            assert 0 <= spot[1] < spot[3] <= 120
            assert all(a[2] < spot[0] or spot[2] < a[0] or a[3] < spot[1] or spot[3] < a[1] for a in taken)
            taken.append(spot)
    assert 4 <= len(taken) < len(crowd)


def test_colours_are_distinct_and_independent_of_order() -> None:
    pictures = [picture("a", 12), picture("b", 3)]
    colours = colours_of(pictures)
    assert len(set(colours.values())) == 12 == len(PALETTE)
    assert colours == colours_of(pictures[::-1])


def test_choose_takes_crowded_unsure_typical_and_large_in_turn() -> None:
    usual = [SheetCandidate(f"usual-{i}", 3, 0.8, 100) for i in range(9)]
    odd = [
        SheetCandidate("crowded", 9, 0.8, 100),
        SheetCandidate("unsure", 2, 0.1, 100),
        SheetCandidate("large", 2, 0.8, 900),
    ]
    chosen = choose([*usual, *odd], 4)
    assert (chosen[0], chosen[1], chosen[3]) == ("crowded", "unsure", "large")
    assert chosen[2].startswith("usual")


def test_choose_does_not_depend_on_the_order_given_and_repeats_nothing() -> None:
    candidates = [SheetCandidate(str(i), i % 4, 0.5 + i % 3 / 10, 100) for i in range(30)]
    chosen = choose(candidates, 20)
    assert chosen == choose(candidates[::-1], 20)
    assert len(set(chosen)) == 20


def test_choose_shows_empty_images_last() -> None:
    candidates = [
        SheetCandidate("empty", 0, 1.0, 10_000),
        SheetCandidate("a", 1, 0.9, 10),
        SheetCandidate("b", 2, 0.9, 10),
    ]
    assert choose(candidates, 2) in (["a", "b"], ["b", "a"])
    assert choose(candidates, 9)[-1] == "empty"
    assert choose([], 4) == []


def test_contact_sheet_is_a_whole_png_of_the_chosen_images(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    pictures = [picture(f"{i}.png", i % 4) for i in range(6)]
    keys = contact_sheet(pictures, out, read=lambda uri: png(), columns=3, count=5)
    assert len(keys) == 5
    with Image.open(io.BytesIO(out.read_bytes())) as sheet:
        assert sheet.format == "PNG"
        narrow = sheet.size
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    contact_sheet([picture("a.png")], out, read=lambda uri: png(), columns=3)
    with Image.open(out) as sheet:
        assert sheet.width < narrow[0]
        assert sheet.height < narrow[1]


def test_the_heading_says_which_scores_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = list[str]()
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, place, text, *rest, **more: texts.append(text))
    image = tmp_path / "a.png"
    image.write_bytes(png())
    counts = rle.encode_crop(np.ones((30, 20), np.bool_), 5, 5, (120, 160))
    found = [(13, 0.9, counts), (13, 0.2, counts)]
    root = label_sets.write(tmp_path / "labels", {"a.png": label_sets.Image((120, 160), found, uri=str(image))})
    for arguments, heading in (([], "1 instances of score 0.3 and more"), (["--min-score", "0"], "2 instances, ")):
        assert main.run(["sheet", root, str(tmp_path / "s.png"), *arguments]) == 0
        assert any(heading in text for text in texts), texts
        texts.clear()
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("1 images, instances of score 0.3 and more (--min-score 0 draws all)")
    assert second.endswith("1 images")


@pytest.mark.integration
def test_contact_sheet_is_the_same_each_time(tmp_path: Path) -> None:
    pictures = [picture(f"{'long-' * 30}{i}.png", i) for i in range(4)]
    for name in ("a.png", "b.png"):
        contact_sheet(pictures, tmp_path / name, read=lambda uri: png(), title="twice")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_an_image_that_has_changed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="found: 60x50, labelled as 160x120"):
        contact_sheet([picture("a.png")], tmp_path / "s.png", read=lambda uri: png((50, 60)))


def test_nothing_to_show_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no labelled image"):
        contact_sheet([], tmp_path / "s.png", read=lambda uri: png())


def test_pictures_of_a_label_set_are_its_rows_above_the_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [picture("a.png", 3), picture("b.png", 0), picture("c.png", 1, score=0.1), picture("bad.png", 0)]
    instances = [
        {
            "image_id": image_id(p.key), "image_key": p.key, "instance": k, "class_id": shown.class_id,
            "class_name": shown.class_name, "score": shown.score,
            **dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), map(float, shown.bbox_xywh), strict=True)),
            "area": 1, "height": SIZE_HW[0], "width": SIZE_HW[1], "rle": shown.rle, "batch": 1,
        }
        for p in pictures for k, shown in enumerate(p.labels)
    ]  # fmt: skip
    images = [
        {"image_key": p.key, "uri": f"s3://b/{p.key}", "status": "failed" if p.key == "bad.png" else "ok",
         "height": SIZE_HW[0], "width": SIZE_HW[1]}
        for p in pictures
    ]  # fmt: skip
    both = ds.dataset(pa.Table.from_pylist(instances, schema.INSTANCES)), ds.dataset(pa.Table.from_pylist(images))
    monkeypatch.setattr(snapshot, "snapshot", lambda root: snapshot.Snapshot(root, 1, *both, {}))
    found = {p.key: p for p in pictures_of("root", 9, score_threshold=0.3)}
    assert {key: len(p.labels) for key, p in found.items()} == {"a.png": 3, "b.png": 0, "c.png": 0}
    assert found["a.png"].uri == "s3://b/a.png"
    assert found["a.png"].size_hw == SIZE_HW
    assert [shown.rle for shown in found["a.png"].labels] == [shown.rle for shown in pictures[0].labels]


@pytest.mark.parametrize("canvas_wh", [(220, 166), (1003, 777), (1000, 90), (1, 1)])
def test_a_mask_of_a_large_image_is_drawn_on_its_own_part_as_on_the_whole(canvas_wh: tuple[int, int]) -> None:
    """The reference makes the whole mask and shrinks it; 1003x777 is no multiple of the canvas."""
    size_hw = (777, 1003)
    mask = np.zeros(size_hw, np.uint8)
    cv2.ellipse(mask, (700, 300), (120, 70), 30, 0, 360, 1, -1)
    cv2.ellipse(mask, (700, 300), (60, 20), 30, 0, 360, 0, -1)
    mask[:, 480:483] = 1  # Touches both edges, so a run goes on in the next column.
    whole = cv2.resize(mask.astype(np.float64), canvas_wh, interpolation=cv2.INTER_AREA)
    coverage, (left, top) = _coverage(rle.encode(mask), size_hw, canvas_wh)
    placed = np.zeros_like(whole)
    placed[top : top + coverage.shape[0], left : left + coverage.shape[1]] = coverage
    assert np.abs(placed - whole).max() < 2e-3  # OpenCV leaves out shares below a thousandth.


def test_an_empty_mask_covers_nothing() -> None:
    coverage, _ = _coverage(rle.encode(np.zeros((777, 1003), bool)), (777, 1003), (220, 166))
    assert coverage.size == 0


def test_a_mask_that_is_thinner_than_a_pixel_of_the_drawing_is_drawn() -> None:
    size_hw = (1200, 1600)
    mask = np.zeros(size_hw, bool)
    mask[600, 800:900] = True
    thin = Label(13, "wire", 0.9, (800, 600, 100, 1), rle.encode(mask))
    image = np.full((120, 160, 3), 100, np.uint8)
    drawing = draw(image, [thin], {13: (255, 0, 0)}, size_wh=(160, 120), size_hw=size_hw, tags=False)
    assert (drawing[58:63, 82:88] != 100).any()


def test_a_picture_of_the_shown_size_keeps_its_pixels_where_no_mask_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), np.uint8)
    drawing = draw(image, [label(0, 0, 20, 20)], {13: (255, 0, 0)}, tags=False)
    assert (drawing[:, 30:] == image[:, 30:]).all()


def test_twelve_pictures_of_24_megapixels_take_less_time_than_four_of_them_take_to_decode(tmp_path: Path) -> None:
    size_hw = (4000, 6000)
    file = cv2.imencode(".jpg", np.full((*size_hw, 3), 90, np.uint8))[1].tobytes()
    labels = []
    for i in range(10):
        mask = np.zeros(size_hw, np.uint8)
        cv2.circle(mask, (400 + 550 * i, 2000), 300, 1, -1)
        labels.append(Label(13, "stop sign", 0.9, (100 + 550 * i, 1700, 600, 600), rle.encode(mask)))
    pictures = [LabelledPicture(f"{i}.jpg", f"{i}.jpg", size_hw, tuple(labels)) for i in range(12)]
    begin_s = time.process_time()
    for _ in range(4):
        cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    decoded_s = time.process_time()
    contact_sheet(pictures, tmp_path / "s.png", read=lambda uri: file)
    # 0.4 s of CPU beside 1 s; 34 s when each label was resized over the whole frame, 1.6 s over its own box.
    assert time.process_time() - decoded_s < decoded_s - begin_s
