"""Short faults of each kind, at each moment of a run, on each kind of store: never a failed row, always all rows.

A proxy makes the faults. The runs are in this process, with the embedded model.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import store_places
from fault_proxy import Fault, FaultPlan, Proxy, Reply, Reset, Stall, Truncate
from fault_proxy import serve as serve_proxy
from store_places import Place, rows
from watchers import Notes

from segray import config
from segray.errors import InfrastructureError, SegrayError
from segray.execution import run
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import build
from segray.synthetic import dataset

pytestmark = pytest.mark.chaos

IMAGES, OUTAGE_S, TIMEOUT_S, MAX_COMMANDS = 24, 4.0, 1.0, 6
FAULTS: tuple[Fault, ...] = (
    Reply(503, "SlowDown"),
    Reply(500, "InternalError"),
    Reply(429, "TooManyRequests"),
    Reply(401, "Unauthorized"),
    Reply(403, "AccessDenied"),
    Reset(),
    Reset(late=True),
    Stall(3 * TIMEOUT_S),
    Truncate(),
)
LISTINGS = r"list-type|comp=list|/o\?|/o$"
IMAGE = r"GET .*raw(/|%2F)[^/?&]+|GET /[^/?]+$"
# Requests that meet the fault, as in FaultPlan, and how many of them are spared.
MOMENTS = {
    "listing": (LISTINGS, 0),
    "first read": (IMAGE, 0),
    "later read": (IMAGE, 9),
    "staging": (r"(PUT|POST) .*(staged|/upload/)", 0),
    "commit": (r"_delta_log", 0),
    "everything": ("", 30),
}
FAULTS_OF_A_TEST = 3


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=17)
    return folder / "images"


@pytest.fixture(scope="module")
def undisturbed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Any]]:
    root = tmp_path_factory.mktemp("undisturbed") / "labels"
    label(str(scenes), str(root), {})
    return rows(str(root), {})


def label(source: str, root: str, storage: dict[str, Any]) -> run.Summary:
    values = {
        "source": {"uri": source},
        "output": {"root": root},
        "model": {"name": "stickers"},
        "unit_images": 4,
        "publish": {"batch_images": 8},
        "max_failed_fraction": 0.0,
        "cluster": {"stall_timeout_s": 20},
        "report": False,
        "storage": {"timeout_s": TIMEOUT_S, "retries": 2, **storage},
    }
    chosen = config.validate(values, "test")
    return run.label(chosen, Notes(), lambda spec, _: InProcess(*build(spec, "CPU", 1)), retry_s=0.3)


@pytest.fixture(params=store_places.KINDS)
def place(
    request: pytest.FixtureRequest, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Place, Proxy, dict[str, Any]]]:
    """A place, a proxy before it, and the storage settings through the proxy. The environment names the proxy too."""
    with store_places.serve(request.param, scenes, tmp_path, monkeypatch) as made:
        upstream, env, storage = made.proxied
        with serve_proxy(upstream) as proxy:
            for name, value in env.items():
                monkeypatch.setenv(name, value.format(proxy=proxy.endpoint_url))
            made.point(proxy.endpoint_url)
            yield made, proxy, {name: value.format(proxy=proxy.endpoint_url) for name, value in storage.items()}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_short_fault_costs_no_row(
    place: tuple[Place, Proxy, dict[str, Any]], moment: str, undisturbed: tuple[list[Any], list[Any]]
) -> None:
    made, proxy, storage = place
    wanted, skip = MOMENTS[moment]
    if made.source.endswith(".csv") and moment not in ("first read", "later read"):
        pytest.skip("links are neither listed nor written")
    dice = random.Random(f"{os.environ['SEGRAY_SEED']} {made.root} {moment}")
    for number, fault in enumerate(dice.sample(FAULTS, FAULTS_OF_A_TEST)):
        root = f"{made.root}-{number}"
        proxy.change(FaultPlan(fault, wanted, skip, seconds=OUTAGE_S))
        for _ in range(MAX_COMMANDS):
            try:
                summary = label(made.source, root, storage)
            except SegrayError as error:
                is_refusal = isinstance(fault, Reply) and fault.status in (401, 403)
                assert isinstance(error, InfrastructureError) or is_refusal, (fault, error)
            else:
                break
        else:
            raise AssertionError(f"{fault} at {moment}: no command ends well")
        assert proxy.faults > 0, (fault, moment)
        assert summary.exit_code == 0, fault
        proxy.change()
        assert rows(root, storage) == undisturbed, fault
