"""Joining and starting Ray clusters: addresses, temporary folders, and clusters that do not answer."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import ENV
from heads import Head
from ports import free_port

from segray import _compat
from segray._system import child_processes
from segray.errors import ConfigError, InfrastructureError
from segray.execution.ray_address import address_to_join
from segray.execution.ray_temp_folder import temp_folder

# ---- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "variable", "expected"),
    [
        (None, None, None),
        (None, "", None),
        ("", "", None),
        (None, "10.0.0.5:6379", "10.0.0.5:6379"),
        ("auto", "10.0.0.5:6379", "10.0.0.5:6379"),
        ("head:6379", "10.0.0.5:6379", "head:6379"),
        ("head:6379", None, "head:6379"),
    ],
)
def test_the_configuration_comes_before_the_environment_and_an_empty_value_is_no_address(
    monkeypatch: pytest.MonkeyPatch, configured: str | None, variable: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert address_to_join(configured) == expected


@pytest.mark.parametrize("address", ["http://head:8265", "https://example.com/ray", "ray://head:10001"])
def test_a_url_is_refused_and_the_error_names_where_it_was_set(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="segray submit") as caught:
        address_to_join(None)
    assert caught.value.where == f"RAY_ADDRESS={address}"
    with pytest.raises(ConfigError) as caught:
        address_to_join(address)
    assert caught.value.where == f"cluster.address={address}"


def test_auto_never_joins_the_private_cluster_of_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    raylet = ["raylet", "--gcs-address=127.0.0.1:1001", "--num=1"]
    monkeypatch.setattr(child_processes, "commands_with_variable", lambda name: [raylet])
    monkeypatch.setattr(_compat, "ray_addresses_here", lambda: ["127.0.0.1:1001", "127.0.0.1:1002"])
    assert address_to_join("auto") == "127.0.0.1:1002"
    monkeypatch.setattr(_compat, "ray_addresses_here", lambda: ["127.0.0.1:1001"])
    with pytest.raises(
        InfrastructureError, match=r"(?s)no Ray cluster runs.*private clusters of other runs: 127\.0\.0\.1:1001"
    ):
        address_to_join("auto")


def test_processes_are_known_by_a_variable_of_their_environment() -> None:
    sleeper = subprocess.Popen(["sleep", "60"], env={**os.environ, "SEGRAY_TEST_VARIABLE": "of any value"})
    try:
        assert ["sleep", "60", ""] in child_processes.commands_with_variable("SEGRAY_TEST_VARIABLE")
        assert child_processes.commands_with_variable("SEGRAY_TEST_VARIABL") == []
    finally:
        sleeper.kill()
        sleeper.wait()


# ---- temporary folders ----------------------------------------------------------------------------


def test_the_temporary_folder_is_rays_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert temp_folder() == Path("/tmp/ray")


def test_a_default_that_does_not_serve_is_replaced_by_a_short_folder_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    assert temp_folder() == Path(f"/tmp/segray-ray-{os.getuid()}")


def test_a_setting_that_does_not_serve_is_refused_with_its_length(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 60)))
    with pytest.raises(
        ConfigError, match=r"(?s)too long for Ray's sockets.*set RAY_TMPDIR to a folder .* at most 39 bytes"
    ):
        temp_folder()
    file = Path("/tmp") / f"segray-{os.getpid()}"
    file.touch()
    try:
        monkeypatch.setenv("RAY_TMPDIR", str(file))
        with pytest.raises(ConfigError, match="is not a folder"):
            temp_folder()
    finally:
        file.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_folder_of_another_user_is_refused_with_its_owner() -> None:
    code = "import os; from segray.execution.ray_temp_folder import temp_folder; os.setuid(65534); temp_folder()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "RAY_TMPDIR": "/usr"}, capture_output=True, text=True
    )
    assert "/usr cannot be written to; user 0 owns it, this process is user 65534" in done.stderr


# ---- clusters that do not answer ------------------------------------------------------------------

_JOIN = """
import sys, time
from segray.config import ClusterSettings
from segray.errors import SegrayError
from segray._system import signals
from segray.execution import ray_connection
signals.listen()
print("joins", flush=True)
for _ in range(2):
    begin_s = time.monotonic()
    try:
        ray_connection.connect(ClusterSettings(address=sys.argv[1], head_timeout_s=float(sys.argv[2])))
    except SegrayError as error:
        print(error.exit_code, round(time.monotonic() - begin_s, 1), error, flush=True)
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def _join(address: str, timeout_s: float, **env: str) -> subprocess.Popen[str]:
    """Two tries to join a cluster, each with the exit code and the seconds after which it failed."""
    return subprocess.Popen(
        [sys.executable, "-c", _JOIN, address, str(timeout_s)],
        env={**os.environ, **ENV, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["silent", pytest.param("closed", marks=pytest.mark.thorough)])
def test_a_cluster_that_does_not_answer_is_given_up_in_time_and_the_process_ends(silent: str, kind: str) -> None:
    with _join(silent if kind == "silent" else f"127.0.0.1:{free_port(set())}", 3) as process:
        out, err = process.communicate(timeout=60)
    first, second = (line for line in out.splitlines() if line[:2] == "3 ")
    assert 3.0 <= float(first.split()[1]) < 10, "Ray itself waits a minute"
    assert "cannot join the Ray cluster" in out, err
    assert "no answer within 3 s (`cluster.head_timeout_s`)" in out
    assert float(second.split()[1]) < 10
    assert process.returncode == 0, err


@pytest.mark.integration
def test_a_token_without_its_mode_is_told_as_such(silent: str) -> None:
    with _join(silent, 3, RAY_AUTH_TOKEN="x" * 32, RAY_AUTH_MODE="disabled") as process:
        out, err = process.communicate(timeout=60)
    assert out.startswith("joins\n2 "), err
    assert "set RAY_AUTH_MODE=token" in out


def _join_with_token(head: Head, home: Path, mode: str, token: str) -> tuple[int, str, str]:
    """Exit code, output and errors of _JOIN, whose home folder holds no token."""
    env = {"HOME": str(home), "RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
    with _join(head.gcs_address, 40, **env) as process:
        out, err = process.communicate(timeout=100)
    return process.returncode, out, err


RIGHT, WRONG = "right", "ab" * 32


@pytest.mark.integration
@pytest.mark.parametrize(
    ("mode", "token", "words"),
    [
        pytest.param("disabled", "", "the cluster asks for a token(?s:.*)no token is set", id="missing"),
        pytest.param("token", WRONG, "the cluster refuses the token", id="wrong"),
        pytest.param(
            "", RIGHT, "a token is set, but RAY_AUTH_MODE=token is not", id="unused", marks=pytest.mark.thorough
        ),
        pytest.param(
            "token", "", "RAY_AUTH_MODE is token, but there is no token", id="mode alone", marks=pytest.mark.thorough
        ),
    ],
)
def test_a_missing_an_unused_and_a_wrong_token_are_refused_at_once_with_words(
    token_head: Head, tmp_path: Path, mode: str, token: str, words: str
) -> None:
    given = token_head.env["RAY_AUTH_TOKEN"] if token == RIGHT else token
    _, out, err = _join_with_token(token_head, tmp_path / "nobody", mode, given)
    assert re.search(words, out), (out, err)
    code, seconds = out.split()[1:3]
    assert code == "2", out
    assert float(seconds) < 20, "head_timeout_s is 40"


@pytest.mark.integration
def test_the_right_token_joins(token_head: Head, tmp_path: Path) -> None:
    code, out, err = _join_with_token(token_head, tmp_path / "nobody", "token", token_head.env["RAY_AUTH_TOKEN"])
    assert (code, "token" in out) == (0, False), err


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)])
def test_a_signal_ends_the_wait_for_a_cluster_at_once(silent: str, number: signal.Signals) -> None:
    process = _join(silent, 40)
    assert process.stdout is not None
    assert process.stdout.readline() == "joins\n"
    time.sleep(0.5)
    begin_s = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begin_s < 20, err
    assert "KeyboardInterrupt" in err
    assert not out
