"""Stores with and without conditional PUT, and the warning of a run."""

from __future__ import annotations

from pathlib import Path

import plain_s3
import pytest
from swift_server import Swift
from test_run import start
from watchers import Notes

import segray
from segray import config
from segray.execution import run
from segray.label_set.conditional_put import has_conditional_put
from segray.storage.store import StorageOptions, Store


def chosen(images: Path, root: str, endpoint_url: str) -> config.Config:
    images.mkdir(exist_ok=True)
    for name in ("a.jpg", "b.jpg"):
        (images / name).write_bytes(b"x")
    values = {"source": {"uri": str(images)}, "output": {"root": root}, "model": {"name": "stickers"}}
    return config.validate({**values, "storage": {"endpoint_url": endpoint_url, "retries": 0}}, "test")


@pytest.mark.integration
def test_a_store_without_conditional_put_gives_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with plain_s3.serve() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)  # for the workers of the test
        settings, listener = chosen(tmp_path / "images", "s3://b/labels", server.endpoint_url), Notes()
        run.label(settings, listener, start(), dry_run=True)
        assert not server.objects
        run.label(settings, listener, start())
        assert segray.images("s3://b/labels", endpoint_url=server.endpoint_url).count_rows() == 2
        (warning,) = [note for note in listener.notes if "conditional PUT" in note]
        assert warning.startswith("warning: ")
        probes = [request for request in server.requests if "probe-" in request[1]]
        assert [method for method, _ in probes] == ["PUT", "PUT", "GET", "DELETE"]
        assert not [key for key in server.objects if "probe-" in key]
        run.label(settings, again := Notes(), start())  # Nothing to do, so nothing is asked.
        assert not [note for note in again.notes if "conditional PUT" in note]


@pytest.mark.integration
def test_a_store_with_conditional_put_gives_no_warning(swift_env: Swift) -> None:
    store, bucket = Store(StorageOptions(endpoint_url=swift_env.endpoint_url)), f"s3://{swift_env.bucket()}"
    assert has_conditional_put(store, f"{bucket}/labels")
    assert not list(store.list(bucket))


def test_local_folders_are_not_probed(tmp_path: Path) -> None:
    assert has_conditional_put(Store(), str(tmp_path / "labels"))
    assert not list(tmp_path.iterdir())
