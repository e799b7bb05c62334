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

import heads
import pytest
from command import ENV
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
for _ in range(2):
    begin_s = time.monotonic()
    try:
        ray_connection.connect(ClusterSettings(address=sys.argv[1], head_timeout_s=3))
    except SegrayError as error:
        print(error.exit_code, round(time.monotonic() - begin_s, 1), error, flush=True)
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def _join(address: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _JOIN, address],
        env={**os.environ, **ENV, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["silent", "closed"])
def test_a_cluster_that_does_not_answer_is_given_up_in_time_and_the_process_ends(silent: str, kind: str) -> None:
    with _join(silent if kind == "silent" else f"127.0.0.1:{free_port(set())}") as process:
        out, err = process.communicate(timeout=60)
    first, second = (line for line in out.splitlines() if line[:2] == "3 ")
    assert first.split()[1] in {"3.0", "3.1", "3.2", "3.3"}, first
    assert "cannot join the Ray cluster" in out, err
    assert "no answer within 3 s (`cluster.head_timeout_s`)" in out
    assert float(second.split()[1]) < 3.5
    assert process.returncode == 0, err


@pytest.mark.integration
def test_a_token_without_its_mode_is_told_as_such(silent: str) -> None:
    with _join(silent, RAY_AUTH_TOKEN="x" * 32, RAY_AUTH_MODE="disabled") as process:
        out, err = process.communicate(timeout=60)
    assert out.startswith("2 "), err
    assert "set RAY_AUTH_MODE=token" in out


@pytest.mark.integration
def test_a_missing_an_unused_and_a_wrong_token_are_refused_at_once_with_words(tmp_path: Path) -> None:
    with heads.head(tmp_path, auth_mode="token") as head:
        right = head.env["RAY_AUTH_TOKEN"]
        home = {"HOME": str(tmp_path / "nobody"), "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""}
        cases: dict[str, dict[str, str]] = {
            "the cluster asks for a token(?s:.*)no token is set": {"RAY_AUTH_MODE": "disabled"},
            "a token is set, but RAY_AUTH_MODE=token is not": {"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": right},
            "the cluster refuses the token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32},
            "RAY_AUTH_MODE is token, but there is no token": {"RAY_AUTH_MODE": "token"},
        }
        for words, env in cases.items():
            with _join(head.gcs_address, **{**home, **env}) as process:
                out, err = process.communicate(timeout=60)
            assert re.search(words, out), (out, err)
            code, seconds = out.split()[:2]
            assert code == "2", out
            assert float(seconds) < 2.5, "before head_timeout_s"
        with _join(head.gcs_address, **{**home, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": right}) as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, "token" in out) == (0, False), err


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_a_cluster_at_once(silent: str, number: signal.Signals) -> None:
    process = _join(silent)
    time.sleep(2.5)
    begin_s = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - begin_s < 2, err
    assert "KeyboardInterrupt" in err
    assert not out
