"""The page in a real browser, by a user's clicks and keys. Needs Chromium and the package playwright."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import label_sets
import numpy as np
import pytest
from label_sets import Image

import segray
from segray import rle
from segray.imaging.drawing import png
from segray.synthetic.dataset import scene_at
from segray.view.serve import View, view

CHROMIUM = shutil.which(os.environ.get("CHROMIUM", "chromium"))
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path, and none named by CHROMIUM"),
]
HOSTILE = "<img src=x onerror=document.title='struck'>"
SCENES = 30


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    images, names = {}, {85: "clock", 44: "bottle"}
    for number, image in enumerate(label_sets.stickers(SCENES).values()):
        (folder / f"{number}.png").write_bytes(png(scene_at(0, number).image))
        key = f"{HOSTILE}.png" if number == 0 else f"day/{number:03d}.png"
        images[key] = Image(image.size_hw, image.found, uri=str(folder / f"{number}.png"))
        names |= {class_id: f"class {class_id} {HOSTILE}" for class_id, _, _ in image.found if class_id not in names}
    label_sets.write(folder / "labels", images, classes=names)
    return folder / "labels"


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[View]:
    with view(root, judgements=root.parent / "said.jsonl") as page:
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, served: View) -> Iterator[Any]:
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.set_default_timeout(60_000)
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.goto(served.address)
    tab.wait_for_selector(".tile")
    yield tab
    tab.close()
    assert errors == []


def total(page: Any) -> int:
    return int(page.inner_text("#total").split()[0].replace(",", ""))


def test_filters_change_the_grid_and_a_link_shows_the_same(page: Any, root: Path) -> None:
    labels = segray.open_label_set(root)
    assert total(page) == SCENES
    page.check("#class-85")
    page.wait_for_url("**class=85**")
    with_clock = labels.sql("SELECT count(DISTINCT image_key) FROM instances WHERE class_id = 85").fetchall()[0][0]
    page.wait_for_selector(f'#total:text-is("{with_clock} images")')
    page.fill("#score-low", "0.9")
    page.press("#score-low", "Enter")
    sure = "SELECT count(DISTINCT image_key) FROM instances WHERE class_id = 85 AND score >= 0.9"
    wanted = labels.sql(sure).fetchall()[0][0]
    page.wait_for_selector(f'#total:text-is("{wanted} images")')
    page.select_option("#order", "score")
    page.wait_for_url("**order=score**")
    page.wait_for_selector(".tile")
    keys = page.eval_on_selector_all(".tile", "tiles => tiles.map((tile) => tile.title)")
    best = "SELECT image_key FROM instances WHERE class_id = 85 AND score >= 0.9 GROUP BY 1 ORDER BY max(score) DESC"
    assert keys == [key for (key,) in labels.sql(best).fetchall()][: len(keys)]
    other = page.context.browser.new_page()
    other.goto(page.url)
    other.wait_for_selector(".tile")
    assert other.eval_on_selector_all(".tile", "tiles => tiles.map((tile) => tile.title)") == keys
    other.close()
    page.click("#clear")
    page.wait_for_selector(f'#total:text-is("{SCENES} images")')


def test_a_wrong_condition_is_a_sentence_on_the_page_and_the_rest_works(browser: Any, served: View) -> None:
    tab = browser.new_page()
    tab.goto(f"{served.address}?where=score%20%3E")
    tab.wait_for_selector("#notice:not([hidden])")
    assert "the condition in SQL is wrong" in tab.inner_text("#notice")
    tab.close()


def test_masks_decoded_in_the_browser_are_those_of_segray(page: Any) -> None:
    rng = np.random.default_rng(0)
    for size_hw in ((1, 1), (7, 5), (40, 33), (64, 1)):
        for density in (0.0, 0.02, 0.5, 1.0):
            mask = rng.random(size_hw) < density
            decoded = page.evaluate(
                """async ([counts, width, height]) => {
                  const { decode } = await import("/static/rle.js");
                  const found = decode(counts, width, height);
                  return { ...found, bits: [...found.bits] };
                }""",
                [rle.encode(mask), size_hw[1], size_hw[0]],
            )
            full = np.zeros(size_hw, bool)
            box = np.s_[decoded["top"] : decoded["top"] + decoded["height"],
                        decoded["left"] : decoded["left"] + decoded["width"]]  # fmt: skip
            full[box] = np.array(decoded["bits"], bool).reshape(decoded["height"], decoded["width"])
            assert (full == mask).all()


def test_an_image_is_judged_by_keys_and_its_mask_is_taken_away_exactly(page: Any, root: Path, tmp_path: Path) -> None:
    labels = segray.open_label_set(root)
    page.click('.tile[title="day/003.png"]')
    page.wait_for_selector("#list tbody tr")
    rows = [row for row in labels.to_arrow().to_pylist() if row["image_key"] == "day/003.png"]
    assert len(page.query_selector_all("#list tbody tr")) == len(rows)
    page.keyboard.press("j")
    page.wait_for_selector("tr.chosen")
    number = int(page.get_attribute("tr.chosen", "data-instance"))
    page.keyboard.press("n")
    page.wait_for_selector("tr.chosen .verdict-wrong")
    page.select_option("#judge-class", "bottle")
    page.wait_for_selector("tr.chosen .verdict-class")
    said = [json.loads(line) for line in (root.parent / "said.jsonl").read_text().splitlines()]
    assert [(one["image_key"], one["instance"], one["verdict"]) for one in said] == [
        ("day/003.png", number, "wrong"), ("day/003.png", number, "class"),
    ]  # fmt: skip
    with page.expect_download() as download:
        page.click("#download-mask")
    download.value.save_as(tmp_path / "mask.png")
    mask = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_GRAYSCALE)
    (row,) = [row for row in rows if row["instance"] == number]
    assert (mask == 255 * rle.decode(row["rle"], (row["height"], row["width"]))).all()
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**004.png**")
    page.keyboard.press("Escape")
    page.wait_for_selector(".tile")


def test_a_click_on_a_mask_chooses_its_row_and_the_threshold_hides_instances(page: Any, root: Path) -> None:
    page.click('.tile[title="day/005.png"]')
    page.wait_for_selector("#list tbody tr")
    rows = [row for row in segray.open_label_set(root).to_arrow().to_pylist() if row["image_key"] == "day/005.png"]
    best = max(rows, key=lambda row: row["area"])
    ys, xs = np.nonzero(rle.decode(best["rle"], (best["height"], best["width"])))
    middle = np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2)
    frame = page.query_selector("#stage").bounding_box()
    scale = min(frame["width"] / best["width"], frame["height"] / best["height"])
    left = frame["x"] + (frame["width"] - scale * best["width"]) / 2
    top = frame["y"] + (frame["height"] - scale * best["height"]) / 2
    page.mouse.click(left + (xs[middle] + 0.5) * scale, top + (ys[middle] + 0.5) * scale)
    page.wait_for_selector("tr.chosen")
    page.eval_on_selector("#least", "input => { input.value = 1; input.dispatchEvent(new Event('input')); }")
    page.wait_for_selector(f'#list h2:text-is("0 of {len(rows)} instances")')


def test_names_are_text_and_never_markup(page: Any) -> None:
    assert page.query_selector(f'.tile[title="{HOSTILE}.png"]') is not None
    page.click(f'.tile[title="{HOSTILE}.png"]')
    page.wait_for_selector("#list tbody tr")
    assert page.title() != "struck"
    assert page.query_selector("img[onerror]") is None


@pytest.mark.parametrize("width", [390, 1600])
def test_the_page_fits_its_window_and_works_by_keyboard(browser: Any, served: View, width: int) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 800})
    tab.goto(served.address)
    tab.wait_for_selector(".tile")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.focus(".tile")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.dataset.index") == "1"
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#list tbody tr")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.close()
