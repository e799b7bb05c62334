"""label(): its configuration, what it shows and logs, its errors; and a run in real processes."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yolo_network
from clusters import marked

import segray
from segray import config
from segray._system import logger
from segray.api import label as labelling
from segray.errors import ConfigError, SourceError, TooManyFailedError, UserError
from segray.execution.progress import Counters
from segray.execution.run import Summary
from segray.monitoring import console, library
from segray.synthetic import dataset


def configured(model: Any = "stickers", settings: Mapping[str, Any] | None = None, **arguments: Any) -> config.Config:
    return labelling._config("photos", Path("labels"), model, arguments.get("address"), settings or {})


# ---- configuration --------------------------------------------------------------------------------


def test_arguments_and_dotted_keys_make_the_configuration_of_the_command() -> None:
    settings = {"source.tiles.size": 1024, "workers": [{"count": 2}], "workers.0.threads": 1, "unit_images": 8}
    made = configured(settings=settings, address="auto")
    overrides = ["source.uri=photos", "output.root=labels", "model.name=stickers", "source.tiles.size=1024",
                 "workers=[{count: 2, threads: 1}]", "unit_images=8", "cluster.address=auto"]  # fmt: skip
    assert made == config.validate({}, "test", overrides)


def test_a_section_may_be_a_mapping_and_arguments_win() -> None:
    source = {"uri": "other", "deleted": "retire"}
    made = configured(settings={"source": source, "output.root": "elsewhere"})
    assert (made.source.uri, made.source.deleted, made.output.root) == ("photos", "retire", "labels")
    assert source == {"uri": "other", "deleted": "retire"}


def test_a_model_object_gives_its_settings_and_device(tmp_path: Path) -> None:
    folder = yolo_network.write(tmp_path / "best_openvino_model")
    model = segray.load_model(folder, score_threshold=0.3, threads=1, tiles={"size": 640}, labels={3: "a", 4: "b"})
    made = configured(model, {"unit_images": 8})
    assert made.model.path == str(folder / "best.xml")
    assert (made.model.score_threshold, made.model.labels) == (0.3, {3: "a", 4: "b"})
    assert made.source.tiles is not None
    assert (made.source.tiles.size, made.workers[0].threads, made.workers[0].device) == (640, 1, "CPU")
    assert configured("stickers").model == config.ModelSettings(name="stickers")
    assert configured(folder).model == config.ModelSettings(path=str(folder))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"unit_image": 5}, "did you mean unit_images"), ({"source.tiles.sise": 5}, "did you mean source.tiles.size"),
        ({"unit_images": "many"}, "unit_images"), ({"unit_images": 5, "unit_images.x": 1}, "holds a single value"),
        ({"workers": [], "workers.3.count": 1}, "no such entry"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_the_error_of_a_wrong_configuration(settings: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        configured(settings=settings)
    assert "segray.label" in caught.value.where


def test_errors_come_before_any_cluster_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean stickers"):
        segray.label(tmp_path, tmp_path / "labels", model="stikers", progress=False)
    with pytest.raises(SourceError):
        segray.label(tmp_path / "nowhere", tmp_path / "labels", model="stickers", progress=False)
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_too_many_failed_images_are_an_error_with_the_first_reasons() -> None:
    failures = (("a.jpg", "decode", "not an image\n  do: x"),)
    summary = Summary("root", {}, {}, Counters(), 1, 1, 4, 0, (), failures, 3, {"ok": 3, "failed": 1})
    error = labelling._too_many_failed(summary, 0.01)
    assert isinstance(error, TooManyFailedError)
    assert (error.exit_code, error.where, error.found) == (3, "root", "a.jpg: decode: not an image")
    assert "1 of 4 images failed" in error.what
    assert "retry_failed" in error.hint


# ---- progress and log -----------------------------------------------------------------------------


@pytest.fixture
def info() -> Iterator[Callable[[], None]]:
    """A function that lets the logger take records of level INFO until the end of the test."""
    yield lambda: logger.LOGGER.setLevel(logging.INFO)
    logger.LOGGER.setLevel(logging.NOTSET)


def test_the_logger_is_heard_where_a_handler_takes_its_records(
    info: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert not logger.is_heard()
    root, handler = logging.getLogger(), logging.StreamHandler(io.StringIO())
    root.addHandler(handler)
    assert not logger.is_heard(), "the root logger is at WARNING"
    info()
    assert logger.is_heard()
    handler.setLevel(logging.ERROR)
    assert not logger.is_heard()


def test_lines_of_a_run_are_records_of_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "segray")
    clock = iter([0.0, 0.0, 20.0])
    lines = library.LogLines(clock=lambda: next(clock))
    lines.note("100%d images to label")
    lines.begin(4, 0)
    lines.advance(1, 5, 0)
    lines.advance(3, 9, 0)
    assert [(record.name, record.levelname) for record in caplog.records] == [("segray", "INFO")] * 2
    assert caplog.messages[0] == "100%d images to label"
    assert caplog.messages[1].startswith("3/4 images, 9 instances, 0 failed")


def test_a_program_gets_a_bar_lines_or_records_alone(info: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(library.listener(progress=True)) is console.Plain
    assert type(library.listener(progress=False)) is library.LogLines
    logging.getLogger().addHandler(logging.StreamHandler(io.StringIO()))
    info()
    assert type(library.listener(progress=True)) is library.LogLines
    monkeypatch.setattr(console, "redraws", lambda out: True)
    assert type(library.listener(progress=True)) is console.Bar


class Handle:
    """What IPython's display gives."""

    def __init__(self, pages: list[str]) -> None:
        self.pages = pages

    def update(self, page: str) -> None:
        self.pages.append(page)


def test_a_notebook_gets_a_bar_that_is_updated_and_the_latest_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []

    def display(page: str, display_id: bool) -> Handle:
        assert display_id
        pages.append(page)
        return Handle(pages)

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    monkeypatch.setitem(
        sys.modules,
        "IPython.display",
        SimpleNamespace(HTML=lambda page: page, display=display),  # type: ignore[arg-type]
    )
    screen = library.listener(progress=True)
    assert type(screen) is library.Notebook
    with screen:
        screen.note("worker ready: <vm>")
        screen.begin(8, 2)
        screen.advance(5, 12, 1)
    assert pages[0] == "planning"
    assert pages[1] == "worker ready: &lt;vm&gt;"
    assert '<progress value="2" max="8">' in pages[2]
    assert pages[-1].startswith('<progress value="5" max="8"></progress> 5/8 12 instances, 1 failed<br>')
    shell.kernel = None
    assert library.notebook_output() is None


# ---- real processes -------------------------------------------------------------------------------

PROGRAM = """
import asyncio, logging, os, sys
from pathlib import Path
import segray
from segray.errors import SegrayError, TooManyFailedError

images, out = sys.argv[1], Path(sys.argv[2])
settings = {"unit_images": 4, "report": False}

def label(root, **more):
    keys = {**settings, **more.pop("settings", {})}
    return segray.label(images, out / root, model="stickers", settings=keys, **more)
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, 8, seed=11)
    (folder / "images" / "broken.jpg").write_bytes(b"<html>")
    return folder / "images"


@pytest.fixture
def run(scenes: Path, tmp_path: Path, mark: dict[str, str]) -> Callable[..., str]:
    def call(program: str, **env: str) -> str:
        command = [sys.executable, "-c", PROGRAM + program, str(scenes), str(tmp_path)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SEGRAY_"))}
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environ = {**kept, **mark, **paths, **env}
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environ)
        assert done.returncode == 0, done.stderr
        assert not list(marked(mark)), "processes are left"
        return done.stdout + done.stderr

    return call


@pytest.mark.integration
def test_a_run_in_an_event_loop_gives_the_label_set_and_errors_of_the_command(
    run: Callable[..., str], ray_address: str
) -> None:
    output = run(
        """
logging.basicConfig(level=logging.INFO, format="LOG %(name)s %(message)s", stream=sys.stdout)
allowed = {"max_failed_fraction": 0.5}

async def main():
    labels = label("labels", limit=5, settings=allowed)
    print(labels.summary.tally.images, labels.images().count_rows(), labels.version, flush=True)
    labels = await asyncio.to_thread(label, "labels", settings=allowed)
    print(labels.summary.tally.images, labels.images().count_rows(), labels.version, flush=True)
    try:
        label("labels", retry_failed=["all"])
    except TooManyFailedError as error:
        print(error.what, flush=True)
    print(label("labels").summary.tally.images, flush=True)

asyncio.run(main())
""",
        RAY_ADDRESS=ray_address,
    )
    lines = output.splitlines()
    plain = [line for line in lines if not line.startswith("LOG ")]
    assert plain == [
        "5 5 1", "4 9 2", "1 of 1 images failed, more than max_failed_fraction (0.01) allows", "0",
    ], output  # fmt: skip
    assert any(line.startswith("LOG segray worker ready") for line in lines)


@pytest.mark.chaos
def test_ctrl_c_keeps_what_is_committed_and_leaves_nothing_running(run: Callable[..., str]) -> None:
    output = run("""
import _thread, threading, time
from segray.errors import Interrupted

def watch():
    while not list(out.glob("labels/_segray/runs/*/staged/*.arrow")):
        time.sleep(0.01)
    _thread.interrupt_main()

threading.Thread(target=watch, daemon=True).start()
try:
    label("labels", progress=False)
except Interrupted as error:
    print("interrupted", error.exit_code)
print(label("labels", progress=False, settings={"max_failed_fraction": 1}).images().count_rows())
""")
    assert output.splitlines() == ["interrupted 130", "9"], output


@pytest.mark.chaos
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_run_works_in_a_forked_and_in_a_spawned_process(run: Callable[..., str], tmp_path: Path, method: str) -> None:
    program = tmp_path / "labels_in_a_child.py"
    program.write_text(
        PROGRAM
        + f"""
import multiprocessing

def child():
    return label("labels", progress=False, settings={{"max_failed_fraction": 1}}).images().count_rows()

if __name__ == "__main__":
    from concurrent.futures import ProcessPoolExecutor
    with ProcessPoolExecutor(1, multiprocessing.get_context({method!r})) as pool:
        print(pool.submit(child).result())
"""
    )
    output = run(f"os.execv(sys.executable, [sys.executable, {str(program)!r}, *sys.argv[1:]])")
    assert output.split() == ["9"], output
