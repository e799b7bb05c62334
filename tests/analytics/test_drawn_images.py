"""`segray sheet` and `segray draw`: which images are drawn, and what becomes of those that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import label_sets
import numpy as np
import pytest
from label_sets import Image
from PIL import Image as Pillow

from segray import rle
from segray.analytics.reports.drawn_images import draw_images
from segray.cli import main
from segray.errors import UserError

SIZE_HW = (60, 80)
MASK = np.zeros(SIZE_HW, np.bool_)
MASK[10:50, 20:60] = True


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Four images, with names that would collide as JPEG; one is damaged later and one is removed."""
    (tmp_path / "photos" / "day").mkdir(parents=True)
    images = {}
    for key in ("a.png", "a.jpg", "day/b.png", "gone.png"):
        path = tmp_path / "photos" / key
        Pillow.new("RGB", SIZE_HW[::-1], (9, 9, 9)).save(path)
        images[key] = Image(SIZE_HW, [(1, 0.9, rle.encode(MASK)), (44, 0.2, rle.encode(~MASK))], uri=str(path))
    made = label_sets.write(tmp_path / "labels", images)
    (tmp_path / "photos" / "day" / "b.png").write_bytes(b"damaged")
    (tmp_path / "photos" / "gone.png").unlink()
    return made


def test_each_image_is_drawn_and_the_others_are_named(root: str, tmp_path: Path) -> None:
    drawn = draw_images(root, tmp_path / "drawn")
    assert sorted(drawn.files) == ["a.jpg", "a.png"]
    assert drawn.left_out.keys() == {"day/b.png", "gone.png"}
    names = {str(path.relative_to(drawn.folder)) for path in drawn.folder.rglob("*") if path.is_file()}
    assert names == set(drawn.files.values()) == {"a.jpg", "a~2.jpg"}
    pixels = np.asarray(Pillow.open(drawn.folder / "a.jpg"))
    assert pixels.shape == (*SIZE_HW, 3)
    assert pixels[30, 40].max() > 60 > pixels[55, 5].max(), "the mask is tinted, the rest is not"


def test_chosen_images_classes_and_scores_are_drawn(root: str, tmp_path: Path) -> None:
    drawn = draw_images(root, tmp_path / "drawn", keys=["a.png"], classes=["bottle"], min_score=0.1)
    pixels = np.asarray(Pillow.open(drawn.folder / drawn.files["a.png"]))
    assert pixels[57, 3].max() > 60 > pixels[14, 24].max()


@pytest.mark.parametrize(
    ("options", "said"),
    [({"keys": ["a.jpeg"]}, "did you mean 'a.jpg'"), ({"classes": ["fish"]}, "no such class")],
)
def test_what_is_not_there_is_an_error_and_leaves_no_folder(
    root: str, tmp_path: Path, options: dict[str, list[str]], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        draw_images(root, tmp_path / "drawn", **options)
    assert not (tmp_path / "drawn").exists()


def test_the_commands_tell_what_they_drew(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet, folder = tmp_path / "sheet.png", tmp_path / "drawn"
    assert main.run(["sheet", root, str(sheet), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (set(record["images"]), set(record["left_out"])) == ({"a.jpg", "a.png"}, {"day/b.png", "gone.png"})
    assert Pillow.open(sheet).size[0] > 2 * 440
    folder.mkdir()
    assert main.run(["draw", root, str(folder)]) == 0
    told = capsys.readouterr().out
    assert f"{folder}: 2 images, instances of score 0.3 and more (--min-score 0 draws all)\nnot drawn: 2\n" in told
    assert "gone.png" in told
    assert main.run(["draw", root, str(folder)]) == 2
    assert "the folder is not empty" in capsys.readouterr().err


def test_a_sheet_of_images_that_are_all_gone_is_an_error(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "photos").rglob("*.*"):
        path.unlink()
    assert main.run(["sheet", root, str(tmp_path / "sheet.png")]) == 2
    assert "no image of the label set can be drawn" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()
    assert main.run(["draw", root, str(tmp_path / "drawn")]) == 2
    assert "no image can be drawn" in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()
