"""Standard streams that are closed, full or have lost their reader: no command ends by them, and none is silent on lost
results."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import every_command
import pytest
from command import ENV, here, write_config

import segray as reader
from segray._system import streams
from segray.errors import UserError
from segray.synthetic import dataset

LOST = "error: the results could not be written"
IMAGES = 8


@dataclass(frozen=True)
class Ended:
    """How a command ended. Of its streams, what a reader of the outer ones got."""

    code: int
    out: str
    err: str


# In each, {} is the command. The shell ends with the command's own code.
ERR_BROKEN = {
    "stderr closed": "{} 2>&-",
    "stderr full": "{} 2>/dev/full",
    "stderr without a reader": "{{ {} 2>&1 1>&3 | true; }} 3>&1; exit ${{PIPESTATUS[0]}}",
}
OUT_UNWANTED = {
    "stdout closed": "{} >&-",
    "stdout without a reader": "{} | true; exit ${{PIPESTATUS[0]}}",
    "both closed": "{} >&- 2>&-",
    "all three closed": "{} <&- >&- 2>&-",
    "both without a reader": "{} 2>&1 | true; exit ${{PIPESTATUS[0]}}",
    "both read for one line": "{} 2>&1 | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}",
    "stdout closed, stderr full": "{} >&- 2>/dev/full",
}
OUT_FULL = {
    "stdout full": "{} >/dev/full",
    "both full": "{} >/dev/full 2>&1",
    "stdout full, stderr closed": "{} >/dev/full 2>&-",
    "stdout full, stderr without a reader": "{} 2>&1 >/dev/full | true; exit ${{PIPESTATUS[0]}}",
}


def run(shape: str, *arguments: object, env: Mapping[str, str] | None = None) -> Ended:
    """`segray ARGUMENTS` in a shell line of this shape."""
    command = shlex.join([sys.executable, "-m", "segray", *map(str, arguments)])
    done = subprocess.run(
        ["bash", "-c", shape.format(command)], env={**os.environ, **ENV, **(env or {})}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


EVERY = (*ERR_BROKEN, *OUT_UNWANTED, *OUT_FULL)
# Of each kind those that break most: of what the others show one command can do for all.
FEW = ("stderr full", "all three closed", "both read for one line", "stdout full")


def check(arguments: str, places: Mapping[str, object], chosen: Collection[str]) -> None:
    """Run one command in the chosen shapes. {new} in it is a path that does not exist."""
    number = 0

    def ended(shape: str) -> Ended:
        nonlocal number
        number += 1
        new = f"{places['folder']}/new-{number}"
        return run(shape, *(part.format(new=new, **places) for part in arguments.split()))

    own = ended("{}")
    assert "Traceback" not in own.err
    for name, shape in of(ERR_BROKEN, chosen):
        found = ended(shape)
        assert (found.code, found.err) == (own.code, ""), name
        assert len(found.out.splitlines()) == len(own.out.splitlines()), name
    for name, shape in of(OUT_UNWANTED, chosen):
        found = ended(shape)
        assert found.code == own.code, (name, found)
        assert "Traceback" not in found.err, (name, found)
        assert LOST not in found.err, (name, found)
    for name, shape in of(OUT_FULL, chosen):
        found = ended(shape)
        assert found.code == (3 if own.out else own.code), (name, found)
        assert "Traceback" not in found.err, (name, found)
        if name == "stdout full" and own.out:
            check_loss_is_told(found.err, as_records="--log-format json" in arguments)


def check_loss_is_told(err: str, *, as_records: bool) -> None:
    if as_records:
        error = json.loads(err.splitlines()[-1])
        assert (error["event"], f"error: {error['message']}", error["where"]) == ("error", LOST, "standard output")
        assert error["do"]
    else:
        assert LOST in err
        assert "where: standard output" in err
        assert "do:  " in err
    assert "No space left on device" in err


def of(shapes: Mapping[str, str], chosen: Collection[str]) -> list[tuple[str, str]]:
    return [(name, shape) for name, shape in shapes.items() if name in chosen]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    return every_command.places(tmp_path_factory.mktemp("streams"))


@pytest.mark.integration
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param("version", marks=pytest.mark.thorough),
        pytest.param("--help", marks=pytest.mark.chaos),
        pytest.param("label", marks=pytest.mark.chaos),
    ],
)
def test_what_only_says_something_in_every_shape(arguments: str, tmp_path: Path) -> None:
    check(arguments, {"folder": tmp_path}, EVERY)


# One that fails and one that answers; then one of each kind.
COMMON = ("nonsense", "status {a}")
FURTHER = ("models list", "label {config}")


@pytest.mark.integration
@pytest.mark.parametrize("arguments", every_command.tried(COMMON, FURTHER))
def test_every_command(arguments: str, places: Mapping[str, object]) -> None:
    check(arguments, places, FEW)


@pytest.mark.chaos
def test_a_reader_that_has_gone_never_changes_the_exit_code(places: Mapping[str, object]) -> None:
    arguments = ("evaluate", places["a"], "--truth", places["truth"])
    codes = {run("{} | head -1; exit ${{PIPESTATUS[0]}}", *arguments).code for _ in range(20)}
    assert codes == {0}


@pytest.mark.chaos
def test_a_command_that_reads_a_label_set_in_every_shape(places: Mapping[str, object]) -> None:
    check("verify {a}", places, EVERY)


# ---- a run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=11)
    return folder / "images"


def whole(root: Path) -> bool:
    """Whether the run labelled everything and its record says so."""
    (run_folder,) = (root / "_segray" / "runs").iterdir()
    record = json.loads((run_folder / "run.json").read_text())
    beat = json.loads((run_folder / "heartbeat.json").read_text())
    page = (run_folder / "report.html").read_text()
    done = (record["state"], record["images"], beat["ended"], beat["done"]) == ("done", IMAGES, True, IMAGES)
    return done and "</html>" in page and reader.images(str(root)).count_rows() == IMAGES


ALL_CLOSED = "{} <&- >&- 2>&-"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("shape", "cluster"),
    [
        pytest.param(ALL_CLOSED, "shared", id="all closed"),
        pytest.param(ALL_CLOSED, "private", id="all closed, private cluster", marks=pytest.mark.thorough),
        pytest.param("{} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}", "private", id="one line", marks=pytest.mark.chaos),
        pytest.param("{} 2>/dev/full", "private", id="stderr full", marks=pytest.mark.chaos),
        pytest.param("{} 2>&1 | true; exit ${{PIPESTATUS[0]}}", "private", id="no reader", marks=pytest.mark.chaos),
    ],
)
def test_a_run_labels_everything_whoever_listens(
    shape: str, cluster: str, scenes: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels", unit_images=2, report=True)
    env = {"RAY_ADDRESS": request.getfixturevalue("ray_address")} if cluster == "shared" else None
    found = run(shape, "label", "--config", config, env=env)
    assert (found.code, found.err) == (0, "")
    assert whole(tmp_path / "labels")
    assert here("verify", tmp_path / "labels").returncode == 0


@pytest.mark.integration
@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize(
    ("shape", "code"),
    [
        pytest.param("{} 2>{log} | true; exit ${{PIPESTATUS[0]}}", 0, marks=pytest.mark.thorough),
        ("{} 2>{log} >/dev/full", 3),
    ],
)
def test_a_log_that_can_be_written_is_complete(shape: str, code: int, scenes: Path, tmp_path: Path) -> None:
    config, log = (
        write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels", unit_images=2, report=True),
        tmp_path / "log",
    )
    found = run(shape.replace("{log}", str(log)), "label", "--config", config, "--log-format", "json", "--json")
    assert found.code == code, log.read_text()
    told = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert sum(each["ok"] + each["empty"] for each in told if each["event"] == "unit") == IMAGES
    assert [each["event"] for each in told].count("summary") == 1
    errors = [(each["message"], each["exit_code"]) for each in told if each["event"] == "error"]
    assert errors == ([("the results could not be written", 3)] if code else [])
    assert whole(tmp_path / "labels")


# ---- the mechanism --------------------------------------------------------------------------------


def python(program: str, shape: str = "{}") -> Ended:
    done = subprocess.run(
        ["bash", "-c", shape.format(shlex.join([sys.executable, "-c", program]))], capture_output=True, text=True
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("shape", ["{} <&- >&- 2>&-", "{} >&-", "{} 2>&-", "{} <&-"])
def test_no_file_gets_the_number_of_a_closed_stream(shape: str, tmp_path: Path) -> None:
    file = tmp_path / "data"
    program = f"""
import os, subprocess, sys
from segray._system import signals, streams
streams.take_over()
signals.listen()
with open({str(file)!r}, "w") as data:
    assert data.fileno() > 2
    print("to standard output")
    print("to standard error", file=sys.stderr)
    os.write(1, b"by a library")
    os.write(2, b"by a library")
    sys.stdin.read()
    subprocess.run([sys.executable, "-c", "import sys; print(1); print(2, file=sys.stderr); sys.stdin.read()"], check=True)
    data.write("data")
"""  # noqa: E501
    assert python(program, shape + " 0</dev/null" * ("<&-" not in shape)).code == 0
    assert file.read_text() == "data"


def test_once_the_reader_has_gone_libraries_and_children_write_to_nowhere() -> None:
    program = """
import os, subprocess, sys, time
from segray._system import streams
streams.take_over()
while not streams.reader_gone():
    streams.show("line")
    time.sleep(0.01)
os.write(1, b"by a library")
child = subprocess.run([sys.executable, "-c", "print('by a child', flush=True)"], stderr=subprocess.PIPE)
sys.exit(7 if child.returncode == 0 and not child.stderr else 1)
"""
    found = python(program, "{} | head -1; exit ${{PIPESTATUS[0]}}")
    assert (found.code, found.out, found.err) == (7, "line\n", "")


def test_lines_wait_for_a_reader_that_is_slow() -> None:
    program = """
import os
from segray._system import streams
os.set_blocking(1, False)
streams.take_over()
for number in range(50_000):
    print(number)
streams.check()
"""
    found = python(program, "{} | {{ sleep 0.5; cat; }}; exit ${{PIPESTATUS[0]}}")
    assert (found.code, found.err) == (0, "")
    assert found.out == "".join(f"{number}\n" for number in range(50_000))


def test_what_an_encoding_lacks_is_written_all_the_same() -> None:
    program = r"""
from segray._system import streams
streams.take_over()
streams.show("a \u2192 b \udcff")
"""
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (0, "a \\u2192 b \\udcff\n"), done.stderr


def test_a_terminal_obeys_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    streams.show("red\x1b[31m.jpg\t1\nc1\x9b2J\r\u0440")
    streams.tell_error(UserError("no such class", found="\x1b]0;title\x07"))
    shown = capsys.readouterr()
    assert shown.out == "red\\x1b[31m.jpg\t1\nc1\\x9b2J\\x0d\u0440\n"
    assert shown.err == "error: no such class\n  found: \\x1b]0;title\\x07\n"


def test_a_watched_status_ends_when_nobody_reads_it_any_more() -> None:
    program = """
import os, sys
from segray.cli import main as cli
from segray.monitoring import status
from segray._system import streams
streams.take_over()
live = status.Status("labels", "live", "r", None, None, {}, {"every_s": 0.01, "images": 2, "done": 1,
    "images_per_s": 1.0, "eta_s": 1.0, "labelled": {"ok": 1, "empty": 0, "failed": 0}, "retries": 0,
    "lost_workers": 0, "workers": 0})
status.status = lambda root, options: live
os._exit(cli.run(["status", "labels", "--watch"]))
"""
    found = python(program, "timeout 60 {} | head -1; exit ${{PIPESTATUS[0]}}")
    assert (found.code, found.err) == (0, "")
    assert "run r" in found.out


# ---- terminals ------------------------------------------------------------------------------------

PROGRESS = """
from segray.monitoring import console
from segray._system import streams
streams.take_over()
with console.listener() as listener:
    listener.note("begins")
    listener.begin(100, 0)
    for done in range(1, 101):
        listener.advance(done, done, 0)
    listener.note("ends")
"""


@pytest.fixture(params=[{}, {"JPY_PARENT_PID": "1"}, {"CI": "true"}, {"TERM": "dumb"}], ids=str)
def terminal(request: pytest.FixtureRequest) -> tuple[Mapping[str, str], str]:
    """What was set besides, and what a terminal showed of PROGRESS."""
    theirs, ours = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name not in ("CI", "JPY_PARENT_PID", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRESS], stdin=ours, stdout=ours, stderr=ours,
        env={**plain, "TERM": "xterm", **request.param},
    )  # fmt: skip
    os.close(ours)
    shown = b""
    while True:
        try:
            shown += os.read(theirs, 65536)
        except OSError:  # EIO: the other end is closed
            break
    os.close(theirs)
    assert process.wait() == 0
    return request.param, shown.decode()


def test_a_bar_is_drawn_where_a_line_can_be_drawn_again(terminal: tuple[Mapping[str, str], str]) -> None:
    besides, shown = terminal
    if besides:
        assert [line.split(" ", 1)[1] for line in shown.splitlines()] == ["begins", "ends"]
    else:
        assert "100/100" in shown
        assert "\x1b[" in shown


def test_a_terminal_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    """Of no session, so that no SIGHUP tells the process."""
    theirs, ours = pty.openpty()
    done = tmp_path / "done"
    program = f"import sys; sys.stdin.readline()\n{PROGRESS}\nopen({str(done)!r}, 'w').close()"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=ours, stderr=ours,
        env={**os.environ, "TERM": "xterm"}, start_new_session=True,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    process.communicate(b"\n", timeout=60)
    assert process.returncode == 0
    assert done.exists()
