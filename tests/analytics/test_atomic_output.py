from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import cv2
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
from segray.errors import LastingError, UserError

SQUARE = rle.encode_crop(np.ones((3, 2), np.bool_), 1, 1, (8, 10))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    image = tmp_path_factory.mktemp("images") / "a.png"
    cv2.imwrite(str(image), np.zeros((8, 10, 3), np.uint8))
    images = {"a.jpg": Image((8, 10), [(13, 0.9, SQUARE)], uri=str(image))}
    return label_sets.write(tmp_path_factory.mktemp("labels"), images)


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


@pytest.mark.parametrize(
    "command",
    [
        "export ROOT OUT --to coco",
        "export ROOT OUT --to yolo",
        "draw ROOT OUT",
        "sheet ROOT OUT",
        "report ROOT --out OUT",
        "select ROOT OUT --take random=1",
        "quickstart OUT",
    ],
)
@pytest.mark.parametrize("place", ["/proc/segray-output", "FILE/output"])
def test_a_place_that_refuses_output_is_an_error_of_the_user(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, place: str
) -> None:
    (tmp_path / "file").write_text("")
    out = place.replace("FILE", str(tmp_path / "file"))
    assert main.run([{"ROOT": root, "OUT": out}.get(word, word) for word in command.split()]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert out.rpartition("/")[0] in error
    assert "  do: " in error


@pytest.mark.parametrize("command", ["sheet ROOT OUT", "report ROOT --out OUT", "select ROOT OUT --take random=1"])
def test_a_pipe_is_not_replaced_by_a_file(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert main.run([{"ROOT": root, "OUT": str(pipe)}.get(word, word) for word in command.split()]) == 2
    assert "there" in capsys.readouterr().err
    assert pipe.is_fifo()


def test_a_full_disk_is_a_lasting_error_and_other_errors_pass(tmp_path: Path) -> None:
    def write(error: OSError) -> None:
        with atomic_output(tmp_path / "out.json"):
            raise error

    with pytest.raises(LastingError, match="no room"):
        write(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(FileNotFoundError):
        write(FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/image.jpg"))
