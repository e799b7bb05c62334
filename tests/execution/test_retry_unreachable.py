"""A link that did not answer is labelled by a later run, once its host answers and its row is old enough."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trouble_server
from command import segray as command
from command import write_config
from ports import free_port

import segray
from segray.synthetic import dataset

pytestmark = pytest.mark.chaos

VOLATILE = ("batch", "run_id", "labelled_at", "attempts")


@contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """Serve a folder at this port."""
    with ThreadingHTTPServer(("127.0.0.1", port), partial(SimpleHTTPRequestHandler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def rows(root: Path) -> list[dict[str, Any]]:
    """Both tables, without what tells one run from another."""
    tables = (segray.images(str(root)).to_table(), segray.scan(str(root)).to_table())
    found = [row for table in tables for row in table.drop_columns([*{*VOLATILE} & {*table.column_names}]).to_pylist()]
    return sorted(found, key=lambda row: (row["image_key"], row.get("instance", -1)))


def test_a_link_that_did_not_answer_is_tried_again_by_a_later_run(tmp_path: Path, ray_address: str) -> None:
    dataset.write(tmp_path / "photos", 6, seed=5)
    photos, port, ray = (
        sorted((tmp_path / "photos" / "images").iterdir()),
        free_port(set()),
        {"RAY_ADDRESS": ray_address},
    )
    with trouble_server.serve() as web:
        links = [web.put(path.name, path.read_bytes()) for path in photos[1:]]
        source = tmp_path / "links.txt"
        source.write_text("\n".join([f"http://127.0.0.1:{port}/{photos[0].name}", *links]))
        config = write_config(tmp_path / "run.yaml", source, tmp_path / "labels", max_failed_fraction=0.5)
        first = command("label", "--config", config, env=ray)
        assert first.returncode == 0, first.stderr
        (failed,) = (row for row in rows(tmp_path / "labels") if row.get("status") == "failed")
        assert (failed["stage"], failed["error"]) == ("read", "Unreachable")
        with serving(photos[0].parent, port):
            second = command("label", "--config", config, env=ray)
            assert "1 of them as failed. Failed: 1 at read" in second.stderr
            assert "Unreachable: 1, tried again from " in second.stderr
            third = command("label", "--config", config, "--set", "source.retry_unreachable_after=1 s", env=ray)
            assert third.returncode == 0, third.stderr
            assert "1 of 6 images to label, 1 of them failed before" in third.stderr
            fresh = write_config(tmp_path / "fresh.yaml", source, tmp_path / "fresh")
            assert command("label", fresh, env=ray).returncode == 0
    assert rows(tmp_path / "labels") == rows(tmp_path / "fresh")
