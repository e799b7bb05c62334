"""A run on a cluster seen from outside: `segray submit` that starts it, `segray status`, and a real Prometheus.

Prometheus is taken from SEGRAY_PROMETHEUS or from PATH, promtool from beside it or from PATH; without them their tests
are skipped.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import heads
import pytest
import yaml
from command import segray as command
from command import write_config
from heads import Head
from ports import free_port

import segray
from segray import config
from segray.cli import main, ray_jobs
from segray.errors import AccessError, ConfigError
from segray.synthetic import dataset

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:ssl=None:DeprecationWarning")]  # Ray's own

INFRA = Path(__file__).parents[2] / "infra" / "prometheus"
IMAGES = 16
NO_PROMETHEUS = "no prometheus in SEGRAY_PROMETHEUS or PATH"


@dataclass(frozen=True)
class Run:
    """A submitted run that has ended. prometheus: the address of one that scraped meanwhile; None without one."""

    head: Head
    config: Path
    root: str
    job: str
    result: dict[str, Any]
    log: list[str]
    prometheus: str | None


@pytest.fixture(scope="module")
def run(token_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("run")
    dataset.write(folder / "scenes", IMAGES, seed=7)
    root = str(folder / "labels")
    chosen = write_config(folder / "run.yaml", folder / "scenes" / "images", root, unit_images=4)
    with ExitStack() as stack:
        binary = find("prometheus")
        served = stack.enter_context(prometheus(binary, token_head, folder)) if binary else None
        done = command(
            *send(token_head, chosen, "--log-format", "json", "--metadata", "team=vision"),
            env=elsewhere(token_head),
            timeout_s=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(done.stdout)
        yield Run(token_head, chosen, root, told["job"], told["result"], done.stderr.splitlines(), served)


def send(head: Head, chosen: Path, *arguments: str) -> list[str]:
    """`segray submit`."""
    asked = [
        "submit",
        "--config",
        str(chosen),
        "--address",
        head.address,
        "--python",
        sys.executable,
        "--start-timeout",
        "200",
    ]
    return [*asked, "--json", *arguments]


def elsewhere(head: Head) -> dict[str, str]:
    """An environment that names another cluster: the address that is given counts."""
    return {**head.env, "RAY_ADDRESS": "http://127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}


def find(name: str) -> Path | None:
    given = os.environ.get("SEGRAY_PROMETHEUS")
    beside = Path(given).with_name(name) if given else None
    found = str(beside) if beside is not None and beside.exists() else shutil.which(name)
    return Path(found) if found else None


@contextmanager
def prometheus(binary: Path, head: Head, folder: Path) -> Iterator[str]:
    """infra's configuration, looking every second, at the nodes that this head tells of."""
    text = (INFRA / "prometheus.yml").read_text()
    targets = head.folder / "prom_metrics_service_discovery.json"
    for old, new in (
        ("/tmp/ray/prom_metrics_service_discovery.json", str(targets)),
        ("scrape_interval: 10s", "scrape_interval: 1s"),
        ("refresh_interval: 30s", "refresh_interval: 1s"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    shutil.copy(INFRA / "alerts.yml", folder)
    (folder / "prometheus.yml").write_text(text)
    log = folder / "prometheus.log"
    address = f"127.0.0.1:{free_port(set())}"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address={address}"],
            stdout=out, stderr=out, cwd=folder,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not ready(f"http://{address}/-/ready"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait(60)


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(address: str, query: str) -> dict[str, float]:
    """What Prometheus answers, by the value of the one label that is left."""
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        found = json.load(answer)["data"]["result"]
    return {",".join(each["metric"].values()): float(each["value"][1]) for each in found}


def test_the_submitted_run_labels_and_tells_how_it_went(run: Run) -> None:
    assert segray.images(run.root).count_rows() == sum(run.result["images"].values()) == IMAGES
    assert run.result["tally"]["ok"] + run.result["tally"]["empty"] == IMAGES
    lines = [json.loads(line) for line in run.log if line.startswith("{")]
    assert sum(line["ok"] + line["empty"] for line in lines if line["event"] == "unit") == IMAGES
    info = ray_jobs.Dashboard(run.head.address, run.head.env).job(run.job)
    assert info["metadata"] == {"segray": segray.__version__, "label_set": run.root, "team": "vision"}
    assert run.head.env["RAY_AUTH_TOKEN"] not in json.dumps(info) + "".join(run.log)


def test_its_status_is_told_by_the_label_set_alone(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["status", run.root, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["beat"]["done"], found["beat"]["images"]) == ("done", IMAGES, IMAGES)
    assert found["beat"]["driver"]["job"] == run.job


def test_prometheus_counts_the_images(run: Run) -> None:
    if run.prometheus is None:
        pytest.skip(NO_PROMETHEUS)
    deadline = time.monotonic() + 300
    query = "sum by (status) (ray_segray_images_total)"
    while sum(ask(run.prometheus, query).values()) < IMAGES:
        assert time.monotonic() < deadline, ask(run.prometheus, query)
        time.sleep(0.5)
    tally = run.result["tally"]
    assert ask(run.prometheus, query) == {name: tally[name] for name in ("ok", "empty") if tally[name]}
    assert ask(run.prometheus, "sum(ray_segray_instances_total)") == {"": tally["instances"]}
    assert ask(run.prometheus, "sum(ray_segray_read_bytes_total)") == {"": tally["bytes_read"]}
    stages = ask(run.prometheus, "sum by (stage) (ray_segray_stage_seconds_total)")
    assert stages == pytest.approx(tally["seconds"])
    assert ask(run.prometheus, "sum(ray_segray_units_total)") == {"": 4}


_START = """
import os, sys
from pathlib import Path
from segray import config
from segray.cli import ray_jobs as submit

path, job = Path(sys.argv[1]), sys.argv[2]
dashboard = submit.Dashboard(os.environ["RAY_API_SERVER_ADDRESS"], os.environ)
submit.start(submit.Request(path, config.load(path), python=sys.executable), dashboard, job)
"""


@pytest.mark.thorough
def test_another_job_of_the_same_label_set_is_refused_while_one_is_under_way(run: Run) -> None:
    dashboard = ray_jobs.Dashboard(run.head.address, run.head.env)
    request = ray_jobs.Request(run.config, config.load(run.config), python=sys.executable)
    following = ray_jobs.check(request, dashboard)
    assert (run.job, following) == (f"{request.stem}-1", f"{request.stem}-2")
    # In processes of their own, like all of Ray's clients: Ray remembers the token mode that it met first.
    sleeps = [heads.RAY, "job", "submit", "--no-wait", "--submission-id", following, "--", "sleep", "600"]
    subprocess.run(sleeps, env=run.head.env, check=True, capture_output=True, timeout=300)
    try:
        started = subprocess.run(
            [sys.executable, "-c", _START, run.config, following],
            env=run.head.env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert "ConflictError" in started.stderr
        assert "label set runs" in started.stderr
        done = command(*send(run.head, run.config), env=elsewhere(run.head))
        assert done.returncode == 3, done.stderr
        assert f"ray job stop --address {run.head.address} {following}" in done.stderr
    finally:
        dashboard.stop(following)


def begin(run: Run, chosen: Path) -> subprocess.Popen[str]:
    """`segray submit` of a run that has staged images, and goes on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "segray", *send(run.head, chosen)], env={**os.environ, **elsewhere(run.head)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    root, deadline = Path(config.load(chosen).output.root), time.monotonic() + 300
    staged = set(root.glob("_segray/runs/*/staged/*.arrow"))
    while not set(root.glob("_segray/runs/*/staged/*.arrow")) - staged:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


@pytest.mark.chaos
def test_a_job_that_is_left_and_stopped_is_told_once_and_rings_no_alarm(run: Run, tmp_path: Path) -> None:
    """Its hints are run as they stand. The run takes minutes, unless it is stopped."""
    source = dataset_of_copies(run.config.parent / "scenes" / "images", tmp_path / "scenes", 400)
    chosen = write_config(tmp_path / "run.yaml", source, tmp_path / "stopped", unit_images=1)
    left = begin(run, chosen)
    left.send_signal(signal.SIGINT)
    _, told = left.communicate(timeout=120)
    assert left.returncode == 130
    assert "not followed any more; the job goes on" in told
    assert "interrupted" not in told
    following, stopping = re.findall(r"`(ray job [^`]*)`", told)
    # Without the variable that comes before the hint's address.
    env = {name: value for name, value in run.head.env.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    env["PATH"] = f"{heads.RAY.parent}:{os.environ['PATH']}"
    followed = subprocess.Popen(["bash", "-c", following], env=env, stdout=subprocess.PIPE, text=True)
    stop = subprocess.run(["bash", "-c", stopping], env=env, capture_output=True, text=True, timeout=300)
    assert stop.returncode == 0, stop.stdout + stop.stderr
    log = followed.communicate(timeout=300)[0]
    assert log.count("error: interrupted") == 1
    assert "run the same command again to resume" in log
    check_no_alarm(run, "stopped")

    resumed = begin(run, chosen)
    subprocess.run(["bash", "-c", stopping[:-1] + "2"], env=env, check=True, capture_output=True, timeout=300)
    _, told = resumed.communicate(timeout=300)
    assert resumed.returncode == 130, told
    assert (told.count("error:"), told.count("the same command")) == (1, 1), told


def dataset_of_copies(folder: Path, copies: Path, count: int) -> Path:
    copies.mkdir()
    for number, path in zip(range(count), itertools.cycle(sorted(folder.iterdir())), strict=False):
        (copies / f"{number:03}{path.suffix}").symlink_to(path)
    return copies


def check_no_alarm(run: Run, name: str) -> None:
    """The rule for runs that ended early is silent, and had something to judge by."""
    if run.prometheus is None:
        return
    (rule,) = [
        rule
        for group in yaml.safe_load((INFRA / "alerts.yml").read_text())["groups"]
        for rule in group["rules"]
        if rule["alert"] == "SegrayRunEndedEarly"
    ]
    label = f'label_set=~"{name}-.*"'
    deadline = time.monotonic() + 120
    while ask(run.prometheus, f"count(ray_segray_left_images{{{label}}})"):  # Until the driver's series have ended.
        assert time.monotonic() < deadline
        time.sleep(1)
    assert ask(run.prometheus, f"max(max_over_time(ray_segray_left_images{{{label}}}[1h]))")[""] > 0
    assert ask(run.prometheus, f"max(last_over_time(ray_segray_left_images{{{label}}}[1h]))")[""] == 0
    assert not [labels for labels in ask(run.prometheus, rule["expr"]) if f"{name}-" in labels]


@pytest.mark.thorough
def test_a_missing_model_ends_with_the_runs_own_exit_code(run: Run, tmp_path: Path) -> None:
    model = {"name": "yolact-resnet50-fpn-pytorch", "path": "/nowhere/model.xml"}
    source = run.config.parent / "scenes" / "images"
    chosen = write_config(tmp_path / "run.yaml", source, tmp_path / "labels", model=model)
    done = command(*send(run.head, chosen), env=elsewhere(run.head))
    assert done.returncode == 2, done.stderr
    assert "/nowhere/model.xml" in done.stderr
    assert json.loads(done.stdout)["status"] == "FAILED"


def test_a_wrong_token_none_and_too_large_a_driver_are_refused_at_once(run: Run) -> None:
    wrong = {**run.head.env, "RAY_AUTH_TOKEN": "0" * 64}
    with pytest.raises(AccessError, match="refuses the token"):
        ray_jobs.Dashboard(run.head.address, wrong).check()
    with pytest.raises(AccessError, match="asks for a token"):
        ray_jobs.Dashboard(run.head.address, {}).check()
    large = ray_jobs.Request(run.config, config.load(run.config), cpus=64)
    with pytest.raises(ConfigError, match="no node of the cluster can hold the driver"):
        ray_jobs.check(large, ray_jobs.Dashboard(run.head.address, run.head.env))


def test_the_alerts_are_valid_and_ring_when_they_should() -> None:
    promtool = find("promtool")
    if promtool is None:
        pytest.skip(NO_PROMETHEUS)
    for arguments in (
        ["check", "rules", INFRA / "alerts.yml"],
        ["test", "rules", Path(__file__).with_name("alerts.yml")],
    ):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
