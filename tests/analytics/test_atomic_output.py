from __future__ import annotations

from pathlib import Path
from typing import Any

import label_sets
import numpy as np
import pytest
from label_sets import Image

from segray import rle
from segray.analytics.export.export import export
from segray.analytics.query.atomic_output import atomic_output
from segray.analytics.reports.diff import diff
from segray.analytics.review.sampling import select
from segray.cli import main
from segray.errors import UserError

SQUARE = rle.encode_crop(np.ones((3, 2), np.bool_), 1, 1, (8, 10))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return label_sets.write(tmp_path_factory.mktemp("labels"), {"a.jpg": Image((8, 10), [(13, 0.9, SQUARE)])})


def test_what_cannot_become_whole_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new" / "a[1]*.json"

    def write(end: str) -> None:
        with atomic_output(out) as unfinished:
            unfinished.with_name(unfinished.name + end).write_text("a")
            raise OSError("full")

    for end in ("", ".part"):
        with pytest.raises(OSError, match="full"):
            write(end)
    assert list((tmp_path / "new").iterdir()) == []
    with atomic_output(out) as unfinished:
        unfinished.write_text("b")
        assert not out.exists()
    assert [each.read_text() for each in (tmp_path / "new").iterdir()] == ["b"]


@pytest.mark.parametrize("place", ["s3://bucket/out", "gs://b/o", "file:///tmp/segray-out"])
@pytest.mark.parametrize(
    "command",
    [
        "export ROOT OUT --to coco",
        "export ROOT OUT --to yolo",
        "select ROOT OUT --take random=1",
        "select ROOT mine.json --take random=1 --to cvat --tasks OUT",
        "diff ROOT ROOT --draw OUT",
        "review ROOT --selection s.json --corrected c.json --truth OUT",
    ],
)
def test_an_address_is_no_local_folder(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, place: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main.run([{"ROOT": root, "OUT": place}.get(word, word) for word in command.split()]) == 2
    assert "local files only" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_written_where_a_folder_is_and_that_is_said_first(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*_: Any, **__: Any) -> None:
        raise AssertionError("the label set is read")

    monkeypatch.setattr("segray.label_set.snapshot.snapshot", unread)
    for call in (
        lambda: export(root, "coco", tmp_path),
        lambda: select(root, {"random": 1}, out=tmp_path),
        lambda: select(root, {"random": 1}, out=tmp_path / "s.json", to="cvat", tasks=tmp_path),
        lambda: diff(root, root, draw=tmp_path),
    ):
        with pytest.raises(UserError, match="a folder is there already"):
            call()
    with pytest.raises(UserError, match="would be one file"):
        select(root, {"random": 1}, out=tmp_path / "s.json", to="cvat", tasks=tmp_path / "s.json")
