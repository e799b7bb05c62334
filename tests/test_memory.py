"""The memory ceiling of a process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segray import memory

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured through /proc")

_SWELLS = """
import time
from segray import memory
memory.end_above(memory.rss_bytes() + 50 * 2**20)
hoard = []
for _ in range(400):
    hoard.append(b"x" * 2**20)
    time.sleep(0.005)
"""


def test_what_is_held_is_seen() -> None:
    before = memory.rss_bytes()
    held = bytearray(b"x") * (64 * 2**20)
    assert memory.rss_bytes() - before > 0.9 * len(held)


def test_a_process_that_swells_is_killed() -> None:
    done = subprocess.run([sys.executable, "-c", _SWELLS], cwd=Path(__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
