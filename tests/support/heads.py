"""A Ray head of its own, as `ray start --head` makes one, for tests that come to it from outside.

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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from clusters import marked
from ports import free_port

RAY = Path(sys.executable).with_name("ray")


@dataclass(frozen=True)
class Head:
    """env: in which Ray's and segray's commands reach it. folder: where Ray keeps its sessions."""

    env: dict[str, str]
    address: str
    folder: Path


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
    log = (home / "head.log").open("wb")
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--disable-usage-stats",
         "--object-store-memory=100000000", f"--temp-dir={folder}",
         *(f"--{name}={port}" for name, port in ports.items())],
        env=env, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    env["RAY_API_SERVER_ADDRESS"] = address
    try:
        _await(env, process, home / "head.log")
        yield Head(env, address, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()
        for pid in set(marked(mark)) - {os.getpid()}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _await(env: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while subprocess.run([RAY, "job", "list"], env=env, capture_output=True).returncode != 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(1)
