"""Ray heads for tests that come to them from outside: one as `ray start --head` makes it, one that tests share.

Knows ports, tokens and how it all ends; knows nothing of what is submitted.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusters import marked
from command import ENV
from ports import free_port
from swift_server import KEY, SECRET

RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Head:
    """env: in which Ray's and segray's commands reach it. folder: where Ray keeps its sessions.

    address: of its dashboard. gcs_address: to join.
    """

    env: dict[str, str]
    address: str
    folder: Path
    gcs_address: str


# It ends with its parent, whose end of the pipe then closes. Ray waits 30 s for its processes, and a busy machine may
# need longer.
_SHARED = """
import sys, ray
for tries_left in (2, 1, 0):
    try:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20,
            logging_level="ERROR", log_to_driver=False,
        )
        break
    except Exception:
        if not tries_left:
            raise
        ray.shutdown()
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def shared() -> Iterator[str]:
    """The address of a small cluster without dashboard or token, for commands that kill nothing.

    The workers of all commands know the key of the tests' S3 server.
    """
    mark = {"SEGRAY_TEST_MARK": secrets.token_hex(8)}
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", _SHARED], env=env | ENV | keys | mark, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, "Ray did not start"
        yield address
    finally:
        _kill(mark)  # It holds nothing that anyone wants, and Ray takes seconds to end.
        process.wait()


@contextmanager
def head(home: Path, *, auth_mode: str) -> Iterator[Head]:
    """A fresh head with two CPUs. None of its processes, nor of its jobs, outlives the block."""
    # Ray's sockets lie below it, and their paths may have 107 bytes.
    folder = Path("/tmp") / f"segray-{secrets.token_hex(3)}"
    mark = {"SEGRAY_TEST_MARK": secrets.token_hex(8)}
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | mark
    env |= {"HOME": str(home), "RAY_AUTH_MODE": auth_mode, "RAY_USAGE_STATS_ENABLED": "0"}
    if auth_mode == "token":
        env["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    taken: set[int] = set()
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port", "ray-client-server-port")
    ports = {name: free_port(taken) for name in names}
    command = [
        RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--disable-usage-stats",
        "--object-store-memory=100000000", f"--temp-dir={folder}",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    env["RAY_API_SERVER_ADDRESS"] = address
    try:
        process = _start(command, env, mark, home / "head.log")
        try:
            yield Head(env, address, folder, f"127.0.0.1:{ports['port']}")
        finally:
            _kill(mark)  # Ray takes ten seconds to end by itself.
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(command: list[Any], env: dict[str, str], mark: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a head and wait until it answers. Try twice, since a busy machine may need longer than Ray waits."""
    with log.open("wb") as out:
        for is_last in (False, True):
            process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
            try:
                _await(env, process, log)
                break
            except AssertionError:
                _kill(mark)
                process.wait()
                if is_last:
                    raise
    return process


def _kill(mark: dict[str, str]) -> None:
    """Kill all processes that have a mark."""
    for pid in set(marked(mark)) - {os.getpid()}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _await(env: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the head answers what `ray job list` asks. The command itself takes seconds of CPU each time."""
    token = env.get("RAY_AUTH_TOKEN")
    jobs = urllib.request.Request(
        f"{env['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    deadline = time.monotonic() + 300
    while not _answers(jobs):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _answers(request: urllib.request.Request) -> bool:
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
