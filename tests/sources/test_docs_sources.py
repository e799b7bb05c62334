"""docs/sources.md: every example is a configuration that gives images."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import shapes
import yaml
from shapes import Shaped

from segray import config
from segray.sources import listing
from segray.storage.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "sources.md").read_text()
SECTIONS = dict(zip(*[iter(re.split(r"^## (.*)$", PAGE, flags=re.M)[1:])] * 2, strict=True))
EXAMPLES = {name: found[1] for name, text in SECTIONS.items() if (found := re.search(r"```yaml\n(.*?)```", text, re.S))}


def image() -> bytes:
    return cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


def shards(files: dict[str, bytes], at: Path) -> Shaped:
    return shapes.tar({f"sub/{name}": data for name, data in files.items()}, at)


def drives(files: dict[str, bytes], at: Path) -> Shaped:
    shapes.video(at / "drive.mp4", frames=30)
    return Shaped(str(at), {"0": "drive.mp4#t=0.000", "1": "drive.mp4#t=2.000"})


def report(files: dict[str, bytes], at: Path) -> Shaped:
    found = shapes.inventory({f"photos/{name}": data for name, data in files.items()}, at)
    (part,) = (at / "data").iterdir()
    text = shapes.gzip.decompress(part.read_bytes()).replace(b"raw/photos", b"photos")
    part.write_bytes(shapes.gzip.compress(text))
    return Shaped(found.uri, {name: name for name in files})


MAKERS: dict[str, Callable[[dict[str, bytes], Path], Shaped]] = {
    "Tar and WebDataset shards": shards,
    "Zip archives": shapes.zipped,
    "Parquet columns": shapes.hugging_face,
    "Videos": drives,
    "S3 Inventory": report,
}


def test_every_shape_has_an_example() -> None:
    assert set(MAKERS) <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_configuration(name: str) -> None:
    least: dict[str, Any] = {"source": {"uri": "a"}, "output": {"root": "labels"}, "model": {"name": "stickers"}}
    given: dict[str, Any] = yaml.safe_load(EXAMPLES[name])
    both = {section: {**least.get(section, {}), **values} for section, values in given.items()}
    config.validate({**least, **both}, "docs/sources.md")


@pytest.mark.parametrize("name", MAKERS)
def test_an_example_gives_the_keys_that_the_page_says(name: str, tmp_path: Path) -> None:
    given: dict[str, Any] = yaml.safe_load(EXAMPLES[name])
    shaped = MAKERS[name]({"a.jpg": image(), "b.jpg": image()}, tmp_path)
    source = config.validate(
        {**given, "output": {"root": "labels"}, "model": {"name": "stickers"}}, "docs/sources.md"
    ).source.model_copy(update={"uri": shaped.uri})
    found = [ref.key for batch in listing.configured(source, Store()) for ref in listing.refs(batch)]
    assert found == sorted(shaped.keys.values())
