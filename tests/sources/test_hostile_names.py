"""Names that break programs, through whole runs: as files, as S3 keys and in manifests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from swift_server import Swift
from watchers import Notes

import segray
from segray import config
from segray.execution import run
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import build
from segray.storage.uris import join

pytestmark = pytest.mark.integration

NAMES = (
    "a b.jpg",
    "a%20b.jpg",
    "a+b.jpg",
    "100%.jpg",
    "naïve & é=;'(#).jpg",
    "nai\u0308ve.jpg",  # the same letters, composed otherwise
    "日本語/🙂.jpg",
    "line\nbreak.jpg",
    "tab\tand\rreturn.jpg",
    'quote"back\\slash.jpg',
    "A.jpg",
    "a.jpg",
    "class=dog/[x]*?.jpg",
    "a../b...jpg",
    "-rf.jpg",
    " lead and trail /x.jpg",
)
# What no file can be called, but a key can.
KEYS_ONLY = ("up/../down.jpg", "./here.jpg", "two//slashes.jpg", "k" * 1015 + ".jpg", "?query=1&x.jpg")


def picture(width: int) -> bytes:
    """A small image that its width tells from all others."""
    return cv2.imencode(".png", np.full((16, width, 3), 90, np.uint8))[1].tobytes()


def label(source: str, root: str, **more: object) -> run.Summary:
    """A whole run with the embedded model in this process."""
    values = {"source": {"uri": source}, "output": {"root": root}, "model": {"name": "stickers"}, "unit_images": 4}
    chosen = config.validate({**values, "max_failed_fraction": 1.0, **more}, "test")
    return run.label(chosen, Notes(), lambda spec, c: InProcess(*build(spec, "CPU", 1)))


def widths(root: str, **options: str) -> dict[str, int]:
    rows = segray.images(root, **options).to_table().to_pylist()
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_key"]: row["width"] for row in rows}


def test_files_of_any_name_are_labelled_under_that_name(tmp_path: Path) -> None:
    deep = "/".join(["d" * 200] * 5) + "/x.jpg"
    wanted = {key: 20 + i for i, key in enumerate((*NAMES, deep))}
    for key, width in wanted.items():
        path = tmp_path / "photos" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(width))
    root = str(tmp_path / "odd root, 100%")
    assert label(str(tmp_path / "photos"), root).images.get("failed", 0) == 0
    assert widths(root) == wanted
    assert label(str(tmp_path / "photos"), root).tally.images == 0


def test_keys_of_any_name_are_labelled_under_that_name(swift_env: Swift) -> None:
    bucket, client = swift_env.bucket(), swift_env.client()
    wanted = {key: 20 + i for i, key in enumerate((*NAMES, *KEYS_ONLY))}
    for key, width in wanted.items():
        client.put_object(Bucket=bucket, Key=f"raw/{key}", Body=picture(width))
    root, storage = f"s3://{bucket}/odd root, 100%", {"endpoint_url": swift_env.endpoint_url}
    summary = label(f"s3://{bucket}/raw", root, storage=storage)
    assert summary.failures == ()
    assert widths(root, **storage) == wanted
    assert label(f"s3://{bucket}/raw", root, storage=storage).tally.images == 0


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_manifest_as_people_write_them(tmp_path: Path, start: bytes, end: str) -> None:
    wanted = {"a b.jpg": 20, "sub/../naïve.jpg": 21, str(tmp_path / "abs%20.jpg"): 22}
    (tmp_path / "sub").mkdir()
    for key, width in wanted.items():
        (tmp_path / key).write_bytes(picture(width))
    lines = ["", *wanted, "", "   ", *wanted, "gone.jpg", "sub", ""]
    manifest = tmp_path / "list.txt"
    manifest.write_bytes(start + end.join(lines).encode())
    root = str(tmp_path / "labels")
    summary = label(str(manifest), root)
    assert summary.images.get("failed") == 2
    rows = {row["image_key"]: row for row in segray.images(root).to_table().to_pylist()}
    assert {key: row["width"] for key, row in rows.items() if row["status"] != "failed"} == wanted
    for key in ("gone.jpg", "sub"):
        assert (rows[key]["status"], rows[key]["stage"]) == ("failed", "read")


def test_objects_that_are_gone_by_the_time_they_are_read_are_failed_rows(swift_env: Swift) -> None:
    bucket, client = swift_env.bucket(), swift_env.client()
    client.put_object(Bucket=bucket, Key="there.jpg", Body=picture(20))
    uris = [join(f"s3://{bucket}", key) for key in ("there.jpg", "gone.jpg", "a folder/", "up/../gone.jpg")]
    client.put_object(Bucket=bucket, Key="list.txt", Body="\n".join(uris).encode())
    root, storage = f"s3://{bucket}/labels", {"endpoint_url": swift_env.endpoint_url}
    label(f"s3://{bucket}/list.txt", root, storage=storage)
    rows = segray.images(root, **storage).to_table().to_pylist()
    assert {row["image_key"]: row["stage"] for row in rows} == {uris[0]: None, **dict.fromkeys(uris[1:], "read")}
