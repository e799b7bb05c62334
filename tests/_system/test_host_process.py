"""segray called as a library, in real processes: what the process was before a call, it is after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clusters import marked
from command import here

from segray.synthetic import dataset

pytestmark = pytest.mark.integration

IMAGES = 24


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=11)
    return folder / "images"


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quickstart: scenes with their truth, and a label set of them."""
    folder = tmp_path_factory.mktemp("quickstart")
    done = here("quickstart", folder, "--count", 8)
    assert done.returncode == 0, done.stderr
    return folder


def environment(mark: dict[str, str]) -> dict[str, str]:
    """Nothing of Ray's, which a user's program does not set, and where the tests' own modules lie."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SEGRAY_"))}
    path = os.pathsep.join(filter(None, [*sys.path, kept.get("PYTHONPATH")]))
    return {**kept, **mark, "PYTHONPATH": path}


def run(program: str, *arguments: object, mark: dict[str, str] | None = None) -> str:
    """The output of a Python program, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment(mark or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# ---- importing ------------------------------------------------------------------------------------

IMPORTS = """
import importlib, pkgutil, sys
import numpy, polars, ray, s3fs, PIL.Image  # what they change themselves is theirs
from host_state import changes, snapshot
first = snapshot()
import segray
OURS = frozenset({"threads of OpenCV", "log level of OpenCV", "truncated images"})
print(*changes(first, snapshot(), OURS))
LEFT = ("__main__",)
for found in pkgutil.walk_packages(segray.__path__, "segray."):
    if found.name.rpartition(".")[2] in LEFT:  # these run something
        continue
    before = snapshot()
    importlib.import_module(found.name)
    print(*(f"{found.name}: {line}" for line in changes(before, snapshot(), OURS)))
"""


def test_importing_changes_nothing() -> None:
    assert not run(IMPORTS).strip()


# ---- reading and judging --------------------------------------------------------------------------

READS = """
import asyncio, sys, threading
from pathlib import Path
import cv2, duckdb, PIL.Image, PIL.ImageFile, numpy as np
import segray
from host_state import changes, snapshot
from segray import config
from segray.monitoring import console
from segray.imaging import decode as image
from segray.conversion import inspect_model as inspection
from segray.label_set import maintenance as maintain, validation as verify
from segray.cli import quickstart
from segray.models import engine as runtime, resolve as zoo
from segray.storage import store as storage
from segray.analytics.reports import statistics as census, diff, report, contact_sheet as sheet
from segray.analytics.evaluation import evaluate
from segray.analytics.export import export
from segray.analytics.review import review, sampling as select
from segray.errors import SegrayError
from segray.execution.estimate import estimate
from segray.sources.reader import by_uri

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
root, truth = str(folder / "labels"), folder / "scenes" / "truth.json"
first = next((folder / "scenes" / "images").iterdir())
asked = config.validate({"source": {"uri": str(folder / "scenes" / "images")}, "output": {"root": str(out / "new")},
                         "model": {"name": "stickers"}, "plan": {"sample_images": 4, "sample_s": 1}}, "test")
CALLS = {
    "scan": lambda: segray.scan(root).to_table(),
    "images": lambda: segray.images(root).to_table(),
    "sql": lambda: segray.sql(duckdb.connect(), root),
    "rle": lambda: segray.rle.area(segray.scan(root).to_table()["rle"].to_pylist()),
    "image": lambda: image.decode(first.read_bytes()),
    "verify": lambda: verify.verify(root, storage.StorageOptions()),
    "maintain": lambda: maintain.maintain(root, storage.StorageOptions(), grace_hours=24),
    "evaluate": lambda: evaluate.evaluate(root, truth),
    "report": lambda: report.report(root, truth=str(truth)),
    "diff": lambda: diff.diff(root, root),
    "sheet": lambda: sheet.contact_sheet(root, out / "sheet.png", read=by_uri(storage.Store()), title="t"),
    "plan": lambda: estimate(asked, console.Plain()),
    "signature": lambda: runtime.signature(zoo.resolve("stickers", None, None, None).path),
    "inspect": lambda: inspection.inspect(zoo.resolve("stickers", None, None, None).path),
    "export": lambda: export.export(root, "coco", out / f"{len(list(out.iterdir()))}.json"),
    "select": lambda: select.select(root, {"random": 4}, out=out / f"{len(list(out.iterdir()))}.csv"),
    "nowhere": lambda: segray.scan(str(out / "nowhere")),
    "no query": lambda: segray.sql(duckdb.connect(), str(out / "nowhere")),
    "no model": lambda: segray.decode("nothing", {}, (4, 4)),
    "no image": lambda: image.decode(b"nothing"),
}

def interrupt():
    raise KeyboardInterrupt

def judged(name, how):
    before, failed = snapshot(), ""
    try:
        how(CALLS[name])
    except (SegrayError, Exception) as error:
        failed = type(error).__name__
    print(*(f"{name}: {line}" for line in changes(before, snapshot())))
    if bool(failed) != name.startswith("no"):
        print(name, "ended with", failed or "nothing")

def in_a_thread(call):
    raised = []
    def run():
        try:
            call()
        except BaseException as error:
            raised.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]

def in_a_loop(call):
    async def main():
        call()
    asyncio.run(main())

how = {"directly": lambda call: call(), "in a thread": in_a_thread, "in a loop": in_a_loop}[sys.argv[3]]
for name in CALLS:
    if name != "plan" or how is not in_a_loop:  # It takes seconds.
        judged(name, how)
"""


@pytest.mark.parametrize(
    "how",
    [
        "in a thread",
        pytest.param("directly", marks=pytest.mark.chaos),
        pytest.param("in a loop", marks=pytest.mark.chaos),
    ],
)
def test_reading_and_judging_change_nothing(labels: Path, tmp_path: Path, how: str) -> None:
    assert not [line for line in run(READS, labels, tmp_path, how).splitlines() if line.strip() and line[2] != ":"]


# ---- labelling ------------------------------------------------------------------------------------

# `label(root)` labels the images of argv[1]; `same(call)` prints what a call changes.
LABEL = """
import _thread, asyncio, ctypes, os, signal, sys, threading, time
from pathlib import Path
import segray
from host_state import changes, snapshot
from segray import config
from segray.monitoring import console, session as observe
from segray.execution import run
from segray.cli.main import start_workers
from segray.errors import Interrupted, SegrayError

images, out = sys.argv[1], Path(sys.argv[2])

def chosen(root, **more):
    return config.validate({"source": {"uri": images}, "output": {"root": str(root)}, "model": {"name": "stickers"},
                            "unit_images": 2, "report": False, **more}, "test")

def label(root, **more):
    asked = chosen(root, **more)
    with observe.observed(asked, console.Plain()) as listener:
        summary = run.label(asked, listener, start_workers)
    print("labelled", summary.tally.images, flush=True)

def same(name, call):
    before, raised = snapshot(), None
    try:
        call()
    except SegrayError as error:
        raised = error
        print("raised", type(error).__name__, flush=True)
    print(*(f"CHANGED by {name}: {line}" for line in changes(before, snapshot())), sep="\\n", flush=True)
    return raised

# What processes leave behind comes to this one, whatever has become of its environment: PR_SET_CHILD_SUBREAPER.
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)

def others():
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.append((path.parent / "cmdline").read_text())
        except OSError:
            pass
    return found
"""


def judged(program: str, scenes: Path, out: Path, mark: dict[str, str]) -> str:
    """What the program printed; nothing has changed in it, and nothing that it started is left when it ends."""
    output = run(LABEL + program, scenes, out, mark=mark)
    assert "CHANGED" not in output, output
    assert not list(marked(mark))
    return output


def test_labelling_in_the_main_thread(scenes: Path, tmp_path: Path, mark: dict[str, str]) -> None:
    program = """
same("labelling", lambda: label(out / "first"))
print("left", others(), flush=True)
"""
    output = judged(program, scenes, tmp_path, mark)
    assert f"labelled {IMAGES}" in output.splitlines()
    assert output.splitlines()[-1] == "left []"


@pytest.mark.chaos
def test_labelling_and_quickstart_in_the_main_thread(scenes: Path, tmp_path: Path, mark: dict[str, str]) -> None:
    program = """
from segray.cli.quickstart import quickstart
for call in lambda: label(out / "first"), lambda: quickstart(out / "quick", 8, console.Plain(), start_workers):
    same("labelling", call)
    print("left", others(), flush=True)
print(segray.images(str(out / "quick" / "labels")).count_rows())
"""
    output = judged(program, scenes, tmp_path, mark)
    assert f"labelled {IMAGES}" in output.splitlines()
    assert output.splitlines()[-1] == "8"
    assert output.count("left []") == 2


@pytest.mark.chaos
def test_labelling_in_a_thread_and_within_a_running_loop(scenes: Path, tmp_path: Path, mark: dict[str, str]) -> None:
    program = """
def in_a_thread():
    thread = threading.Thread(target=label, args=[out / "thread"])
    thread.start()
    thread.join()

async def in_a_loop():
    ticks = 0
    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.05)
    ticking = asyncio.create_task(tick())
    same("a loop", lambda: label(out / "loop"))
    await asyncio.to_thread(label, out / "loop's thread")
    ticking.cancel()
    print("ticked", ticks > 10)

same("a thread", in_a_thread)
same("asyncio", lambda: asyncio.run(in_a_loop()))
print("left", others(), flush=True)
"""
    output = judged(program, scenes, tmp_path, mark)
    assert output.split("\n").count(f"labelled {IMAGES}") == 3
    assert "ticked True" in output
    assert "left []" in output


@pytest.mark.chaos
def test_a_host_that_has_started_ray_keeps_it(scenes: Path, tmp_path: Path, mark: dict[str, str]) -> None:
    program = """
import ray
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
signal.signal(signal.SIGTERM, lambda number, frame: None)
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)

@ray.remote(num_cpus=0)
class Kept:
    def says(self):
        return "still here"

kept = Kept.remote()
address = ray.get_runtime_context().gcs_address

def threaded(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

same("no address", lambda: threaded(lambda: label(out / "thread")))
same("its address", lambda: label(out / "address", cluster={"address": address}))
error = same("another", lambda: label(out / "another", cluster={"address": "127.0.0.1:1"}))
print(error)
same("reading", lambda: threaded(lambda: segray.scan(str(out / "thread")).to_table()))
print(ray.get(kept.says.remote()), ray.cluster_resources()["CPU"] == ray.available_resources()["CPU"])
ray.shutdown()
"""
    output = judged(program, scenes, tmp_path, mark)
    assert output.split("\n").count(f"labelled {IMAGES}") == 2
    assert "this process is connected to another Ray cluster" in output
    assert "still here True" in output


@pytest.mark.chaos
def test_runs_at_the_same_time_share_the_connection(scenes: Path, tmp_path: Path, mark: dict[str, str]) -> None:
    program = """
workers = [{"count": 1, "num_cpus": 0.5}]
def told(root):
    try:
        label(root, workers=workers)
    except SegrayError as error:
        print(error, flush=True)

def both():
    threads = [threading.Thread(target=told, args=[out / str(i)]) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

same("both", both)
print("left", others(), flush=True)
"""
    output = judged(program, scenes, tmp_path, mark)
    assert output.split("\n").count(f"labelled {IMAGES}") == 2, output
    assert "left []" in output


@pytest.mark.chaos
def test_errors_and_ctrl_c(scenes: Path, tmp_path: Path, mark: dict[str, str]) -> None:
    program = """
same("before Ray", lambda: label(out / "model", model={"name": "nothing"}))
same("with Ray", lambda: label(out / "gpu", workers=[{"device": "GPU", "num_cpus": 1, "resources": {"gpus": 1}}]))
print("left", others(), flush=True)

def interrupted(root, moment):
    def watch():
        while not moment():
            time.sleep(0.01)
        _thread.interrupt_main()
    threading.Thread(target=watch, daemon=True).start()
    same(root, lambda: label(out / root))
    print("left", others(), flush=True)

interrupted("labelling", lambda: list(out.glob("labelling/_segray/runs/*/staged/*.arrow")))
interrupted("starting", lambda: any("raylet" in each for each in others()))
same("again", lambda: label(out / "labelling"))
"""
    output = judged(program, scenes, tmp_path, mark)
    lines = output.split("\n")
    assert lines.count("raised ConfigError") == 2, output
    assert lines.count("raised Interrupted") == 2, output
    assert lines.count("left []") == 3, output
    assert "labelled" in output.rpartition("left []")[2], output


@pytest.mark.chaos
def test_sigterm_while_ray_starts_goes_to_the_programs_own_handler(
    scenes: Path, tmp_path: Path, mark: dict[str, str]
) -> None:
    program = """
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
def watch():
    while not any("gcs_server" in each for each in others()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=watch, daemon=True).start()
same("SIGTERM", lambda: label(out / "labels"))
print("heard", heard)
print("left", others(), flush=True)
"""
    output = judged(program, scenes, tmp_path, mark)
    assert "raised Interrupted" in output
    assert f"heard [{int(signal.SIGTERM)}]" in output
    assert "left []" in output


@pytest.mark.chaos
def test_a_program_ends_of_sigterm_as_if_segray_were_not_there(
    scenes: Path, tmp_path: Path, mark: dict[str, str]
) -> None:
    program = LABEL + "\nlabel(out / 'labels')\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(scenes), str(tmp_path)],
        env=environment(mark),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("labels/_segray/runs/*/staged/*.arrow")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
