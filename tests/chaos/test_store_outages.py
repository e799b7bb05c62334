"""A run over 512 images whose store dies for a minute, or refuses the credentials, in mid-run.

On two S3 servers, Azure, Google Cloud Storage and a plain web server. No image becomes a failed row, the same command
completes, and the rows equal those of an undisturbed run.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import store_places
from command import segray as command
from command import start, write_config
from fault_proxy import FaultPlan
from fault_proxy import serve as serve_proxy
from store_places import Place, rows

from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join
from segray.synthetic import dataset

pytestmark = pytest.mark.chaos

IMAGES, OUTAGE_S = 512, 60.0
STAGED_BEFORE = 3  # tasks that are staged before the fault


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=16)
    return folder / "images"


@pytest.fixture(scope="module")
def undisturbed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = command("label", "--config", write_config(folder / "run.yaml", scenes, folder / "labels"), timeout_s=900)
    assert done.returncode == 0, done.stderr
    return rows(str(folder / "labels"), {})


@pytest.fixture(params=store_places.KINDS)
def place(
    request: pytest.FixtureRequest, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    with store_places.serve(request.param, scenes, tmp_path, monkeypatch) as made:
        yield made


def configuration(folder: Path, place: Place, storage: dict[str, Any]) -> Path:
    more = {"unit_images": 16, "cluster": {"stall_timeout_s": 120}, "max_failed_fraction": 0.0}
    return write_config(folder / "run.yaml", place.source, place.root, storage=storage, **more)


def wait_until_some_are_staged(place: Place, process: subprocess.Popen[str]) -> None:
    store = Store(StorageOptions(**place.storage))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            keys = [entry.key for entry in store.list(join(place.root, "_segray", "runs"))]
        except FileNotFoundError:
            keys = []
        if sum("/staged/" in key for key in keys) >= STAGED_BEFORE:
            return
        time.sleep(0.2)
    raise AssertionError(f"nothing is staged: {process.communicate(timeout=60)[0]}")


def check_completes(
    place: Place, config: Path, undisturbed: tuple[list[Any], list[Any]], env: dict[str, str] | None = None
) -> None:
    """The same command completes, and all its rows are those of an undisturbed run."""
    done = command("label", "--config", config, env=env, timeout_s=900)
    assert done.returncode == 0, done.stderr
    found = rows(place.root, place.storage)
    assert not [row for row in found[0] if row["status"] == "failed"]
    assert len(found[0]) == IMAGES
    assert found == undisturbed


def test_a_server_that_is_killed_for_a_minute_costs_no_row(
    place: Place, tmp_path: Path, undisturbed: tuple[list[Any], list[Any]]
) -> None:
    config = configuration(tmp_path, place, place.storage)
    process = start("label", "--config", config)
    wait_until_some_are_staged(place, process)
    place.stop()
    time.sleep(OUTAGE_S)
    place.start()
    output = process.communicate(timeout=900)[0]
    assert process.returncode in (0, 3), output
    assert "Traceback" not in output
    check_completes(place, config, undisturbed)


def test_credentials_that_are_refused_in_mid_run_cost_no_row(
    place: Place, tmp_path: Path, undisturbed: tuple[list[Any], list[Any]]
) -> None:
    upstream, env, storage = place.proxied
    with serve_proxy(upstream) as proxy:
        env = {name: value.format(proxy=proxy.endpoint_url) for name, value in env.items()}
        storage = {name: value.format(proxy=proxy.endpoint_url) for name, value in storage.items()}
        place.point(proxy.endpoint_url)
        config = configuration(tmp_path, place, storage)
        process = start("label", "--config", config, env=env)
        wait_until_some_are_staged(place, process)
        proxy.change(FaultPlan(place.refusal))
        output = process.communicate(timeout=900)[0]
        assert proxy.faults > 0
        proxy.change()
        assert process.returncode in (2, 3), output
        assert "refuse" in output
        assert "Traceback" not in output
        check_completes(place, config, undisturbed, env)
