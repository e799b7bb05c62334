"""`--log-format json`: both streams of a command hold JSON lines alone, whoever writes them and however it ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command import ENV, segray, write_config

from segray.__main__ import logs_as_json
from segray.synthetic import dataset

IMAGES = 6
# Ray's native part then writes its log to standard error.
RAY_TALKS = {"RAY_BACKEND_LOG_LEVEL": "info", "RAY_LOG_TO_STDERR": "1"}


@dataclass(frozen=True)
class Ended:
    """How a process ended. records: the lines of its standard error. results: those of its standard output."""

    code: int
    records: list[dict[str, Any]]
    results: list[dict[str, Any]]

    def messages(self, event: str) -> list[str]:
        return [record["message"] for record in self.records if record["event"] == event]


def parsed(code: int, out: str | bytes, err: str | bytes) -> Ended:
    """Every line of both streams parses, and each line of the log has the keys of a record."""
    results, records = ([json.loads(line) for line in stream.splitlines()] for stream in (out, err))
    assert all({"at", "level", "event", "run", "stage"} <= set(record) for record in records), records
    return Ended(code, records, results)


# ---- the mechanism --------------------------------------------------------------------------------


def python(program: str, shape: str = "{}") -> Ended:
    """A program that has begun as a command does, in a shell line of this shape."""
    text = "import os, sys\nfrom segray._system import streams\nstreams.take_over(as_records=True)\n"
    command = shlex.join([sys.executable, "-c", text + textwrap.dedent(program)])
    done = subprocess.run(["bash", "-c", shape.format(command)], capture_output=True, timeout=60)
    return parsed(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "line",
    [
        "print('a line')",
        "print('a line', file=sys.stderr)",
        "os.write(2, b'a line\\n')",
        "os.write(1, b'a line')",
        "import subprocess; subprocess.run(['sh', '-c', 'echo a line >&2'])",
        "import ctypes; ctypes.CDLL(None).perror(b'a line'); print('a line')",
        "import warnings; warnings.warn('a line'); print('a line')",
        "os.write(2, b'\\x1b[36m(raylet)\\x1b[0m spilled\\r10 %\\r\\r\\na line\\n\\n')",
    ],
)
@pytest.mark.parametrize("end", ["streams.end(5)", "os._exit(5)"])
def test_a_line_of_anyone_becomes_a_record(line: str, end: str) -> None:
    done = python(f"{line}\n{end}")
    assert done.code == 5
    assert "a line" in done.messages("output")
    assert not any("\x1b" in message for message in done.messages("output"))
    assert done.results == []


def test_bytes_that_are_not_text_and_lines_without_end_become_records() -> None:
    done = python("os.write(2, b'caf\\xe9\\n'); os.write(2, b'x' * 200_000); streams.end(0)")
    assert done.messages("output")[0] == "caf\\xe9"
    assert "".join(done.messages("output")[1:]) == "x" * 200_000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGSEGV, -11), (signal.SIGABRT, -6), (signal.SIGKILL, -9)])
def test_a_crash_and_its_traceback_are_records(number: int, code: int) -> None:
    program = f"import faulthandler; faulthandler.enable(); print('before'); os.kill(os.getpid(), {number})"
    done = python(program, "exec {}")
    assert done.code == code
    messages = done.messages("output")
    assert messages[0] == "before"
    if number != signal.SIGKILL:
        assert any(message.startswith("Fatal Python error") for message in messages)
        assert any(message.lstrip().startswith('File "<string>"') for message in messages)


def test_results_go_to_standard_output_and_records_of_one_run_keep_their_run() -> None:
    done = python("""
        from segray._system import log_records
        streams.show('{"result": 1}')
        streams.log().write(log_records.record("unit", "info", "r1", "labelling", {}) + "\\n")
        streams.log().flush()
        import time; time.sleep(0.2)
        print("a line")
        streams.end(0)
        """)
    assert done.results == [{"result": 1}]
    assert [(record["event"], record["run"], record["stage"]) for record in done.records] == [
        ("unit", "r1", "labelling"),
        ("output", "r1", "labelling"),
    ]


def test_many_writers_mix_no_line() -> None:
    done = python("""
        import subprocess, threading
        from segray._system import log_records
        text = "x" * 9_000
        child = subprocess.Popen([sys.executable, "-c", "for _ in range(300): print('y' * 9_000)"])
        def write():
            for _ in range(300):
                streams.tell(text)
        threads = [threading.Thread(target=write) for _ in range(3)]
        [thread.start() for thread in threads]; [thread.join() for thread in threads]; child.wait()
        streams.end(0)
        """)
    assert sum(map(len, done.messages("note"))) == 3 * 300 * 9_000
    assert sum(map(len, done.messages("output"))) == 300 * 9_000


def test_no_secret_of_the_environment_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pAsSwOrD/4711")
    assert python("print('key pAsSwOrD/4711'); streams.end(0)").messages("output") == ["key ***"]


@pytest.mark.parametrize("shape", ["{} 2>/dev/full", "{} 2>&-", "{} 2>&1 >/dev/null | true; exit ${{PIPESTATUS[0]}}"])
def test_a_log_that_cannot_be_written_ends_nothing(shape: str) -> None:
    done = python("[print('x' * 1000) for _ in range(2000)]; streams.tell('end'); streams.end(7)", shape)
    assert (done.code, done.records) == (7, [])


def test_a_process_left_behind_keeps_nobody_waiting() -> None:
    begin_s = time.monotonic()
    done = python("import subprocess; print('a line'); subprocess.Popen(['sleep', '60']); streams.end(0)")
    assert done.messages("output") == ["a line"]
    assert time.monotonic() - begin_s < 10


def test_signals_to_all_processes_leave_the_log_whole() -> None:
    program = """
        import signal, time
        from segray._system import signals
        signals.listen()
        try:
            os.kill(0, signal.SIGTERM)
            time.sleep(30)
        except KeyboardInterrupt:
            streams.tell_error(signals.INTERRUPTED)
        streams.end(130)
        """
    done = python(program, "setsid -w {}")
    assert done.code == 130
    (error,) = [record for record in done.records if record["event"] == "error"]
    assert (error["message"], error["do"], error["exit_code"]) == ("interrupted", "run the same command again", 130)


def test_a_signal_that_ends_the_process_at_once_is_a_record() -> None:
    done = python("""
        import signal
        from segray._system import signals
        signals.listen()
        with signals.ending_at_once():
            os.kill(os.getpid(), signal.SIGINT)
        """)
    assert (done.code, done.records[-1]["event"], done.records[-1]["exit_code"]) == (130, "error", 130)


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        (["label", "run.yaml", "--log-format", "json"], {}, True),
        (["label", "--log-format=json", "run.yaml"], {}, True),
        (["label", "run.yaml"], {"SEGRAY_LOG_FORMAT": "json"}, True),
        (["submit", "run.yaml", "--log-format", "json"], {}, True),
        (["label", "run.yaml", "--log-format", "text"], {"SEGRAY_LOG_FORMAT": "json"}, False),
        (["label", "--log-format"], {}, False),
        (["label", "--help", "--log-format", "json"], {}, False),
        (["verify", "root"], {"SEGRAY_LOG_FORMAT": "json"}, False),
        ([], {"SEGRAY_LOG_FORMAT": "json"}, False),
    ],
)
def test_arguments_and_environment_ask_for_records(
    arguments: list[str], environ: Mapping[str, str], expected: bool
) -> None:
    assert logs_as_json(arguments, environ) == expected


# ---- commands -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=11)
    return folder / "images"


def labelled(*arguments: object, env: Mapping[str, str] | None = None) -> Ended:
    done = segray("label", *arguments, "--log-format", "json", env=env)
    return parsed(done.returncode, done.stdout, done.stderr)


def check_whole_run(done: Ended) -> None:
    events = [record["event"] for record in done.records]
    assert (done.code, events.count("summary"), events[-1]) == (0, 1, "summary"), done.records
    assert sum(record["ok"] + record["empty"] for record in done.records if record["event"] == "unit") == IMAGES
    (result,) = done.results
    assert result == {**done.records[-1]["result"], "report": None}


@pytest.mark.chaos
def test_a_run_on_a_private_cluster(scenes: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels", unit_images=2)
    check_whole_run(labelled(config, "--json", env=RAY_TALKS))


@pytest.mark.integration
@pytest.mark.usefixtures("shared_ray")
def test_a_run_on_a_cluster_that_it_joins(scenes: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels", unit_images=2)
    done = labelled(config, "--json", env=RAY_TALKS)
    check_whole_run(done)
    assert any("core_worker" in message for message in done.messages("output"))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["nowhere.yaml"], "cannot read the configuration", marks=pytest.mark.chaos),
        (["{config}", "--set", "unit_image=5"], "unknown configuration key unit_image"),
        pytest.param(["{config}", "--limit", "no"], None, marks=pytest.mark.chaos),
        pytest.param([], "the command names no images", marks=pytest.mark.thorough),
        pytest.param(
            ["{config}", "--set", "source.uri=/nowhere"], "No such folder or file", marks=pytest.mark.thorough
        ),
        pytest.param(["{config}", "--set", "cluster.address=http://127.0.0.1:9"], None, marks=pytest.mark.thorough),
    ],
)
def test_an_error_of_the_user_is_a_record(
    arguments: list[str], message: str | None, scenes: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels")
    done = labelled(*(argument.format(config=config) for argument in arguments))
    (error,) = [record for record in done.records if record["event"] == "error"]
    assert (done.code, error["exit_code"], done.results) == (2, 2, [])
    assert error["do"]
    if message is not None:
        assert error["message"] == message


@pytest.mark.integration
def test_a_submission_writes_records_too(scenes: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels")
    done = segray("submit", "--config", config, "--address", "http://127.0.0.1:9", "--log-format", "json")
    (error,) = parsed(done.returncode, done.stdout, done.stderr).records
    assert (done.returncode, error["message"]) == (2, "no Ray dashboard answers at this address")


@pytest.mark.integration
def test_an_error_of_segray_is_a_record_with_its_traceback(scenes: Path, tmp_path: Path) -> None:
    """A module that is broken on disk, as in a damaged installation."""
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels")
    (tmp_path / "openvino.py").write_text("raise TypeError('broken')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = labelled(config, env={"PYTHONPATH": path})
    (error,) = [record for record in done.records if record["event"] == "error"]
    assert (done.code, error["exit_code"], error["message"]) == (1, 1, "TypeError: broken")
    assert error["traceback"].startswith("Traceback (most recent call last):")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("moment", "number"),
    [("import", signal.SIGINT), pytest.param("labelling", signal.SIGTERM, marks=pytest.mark.chaos),
     pytest.param("import", signal.SIGTERM, marks=pytest.mark.chaos),
     pytest.param("labelling", signal.SIGINT, marks=pytest.mark.chaos)],
)  # fmt: skip
def test_a_stopped_run_says_so_in_records(number: int, moment: str, scenes: Path, tmp_path: Path) -> None:
    config, root = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels", unit_images=1), tmp_path / "labels"
    process = subprocess.Popen(
        [sys.executable, "-m", "segray", "label", "--config", str(config), "--log-format", "json"],
        env={**os.environ, **ENV}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (moment == "import" and threads_or_modules(process.pid)) or list(root.glob("_segray/runs/*/run.json")):
            break
        time.sleep(0.005)
    os.killpg(process.pid, number)  # As a terminal does: also to Ray's processes and to the one that writes the log.
    out, err = process.communicate(timeout=60)
    done = parsed(process.returncode, out, err)
    (error,) = [record for record in done.records if record["event"] == "error"]
    assert (done.code, error["exit_code"]) == (130, 130)
    assert "run the same command again" in error["do"]


def threads_or_modules(pid: int) -> bool:
    """Whether the process has begun to import a library with native code, which comes after its first lines."""
    return "pydantic_core" in Path(f"/proc/{pid}/maps").read_text()
