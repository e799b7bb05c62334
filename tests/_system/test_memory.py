"""The memory ceiling of a process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segray._system import memory

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured through /proc")

_SWELLS = """
import time
from segray._system import memory
memory.kill_above(memory.rss_bytes() + 50 * 2**20)
hoard = []
for _ in range(400):
    hoard.append(b"x" * 2**20)
    time.sleep(0.005)
"""

# In a process of its own: of a large one the system may take pages back meanwhile.
_HOLDS = """
from segray._system import memory
before = memory.rss_bytes()
held = bytearray(b"x") * (64 * 2**20)
print(memory.rss_bytes() - before)
"""


# As the command does it: nothing that it imports before may have loaded Arrow, which settles its allocator then.
_RETURNS = """
from segray import __main__
from segray._system import memory
memory.release_freed_memory()
import pyarrow
print(pyarrow.default_memory_pool().backend_name)
"""


@pytest.mark.integration
def test_arrow_takes_the_allocator_that_gives_back_what_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    done = subprocess.run([sys.executable, "-c", _RETURNS], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout == "system\n"


@pytest.mark.integration
def test_what_is_held_is_seen() -> None:
    done = subprocess.run([sys.executable, "-c", _HOLDS], check=True, capture_output=True, text=True, timeout=60)
    assert int(done.stdout) > 60 * 2**20


_FREES = """
import threading
import numpy as np
from segray._system import memory
memory.return_large_blocks()
small = []
def decode():
    for _ in range(3):
        for size in range(6, 31, 6):
            picture = np.ones(size << 20, np.uint8)
            small.append(bytearray(5000))  # lies behind the picture in the same arena
            del picture
before = memory.rss_bytes()
threads = [threading.Thread(target=decode) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(memory.rss_bytes() - before)
"""


@pytest.mark.integration
def test_pictures_that_threads_free_go_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", _FREES], check=True, capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 20 * 2**20


_REUSES = """
import resource, threading
import numpy as np
from segray._system import memory
memory.return_large_blocks()
def label():  # the buffers of a picture of 640x480: as decoded, narrowed, resized, with its channels swapped
    pixels = np.ones(921_600, np.uint8)
    narrowed = np.ones(792_000, np.uint8)
    resized = np.ones(907_500, np.uint8)
    del pixels, narrowed
    swapped = np.ones(907_500, np.uint8)
def label_some():
    label()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(20):
        label()
    print((resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) / 20)
thread = threading.Thread(target=label_some)
thread.start()
thread.join()
"""


@pytest.mark.integration
def test_small_pictures_take_the_memory_of_earlier_ones() -> None:
    done = subprocess.run([sys.executable, "-c", _REUSES], check=True, capture_output=True, text=True, timeout=120)
    assert float(done.stdout) < 50  # page faults for each picture, of 860 pages


_HELD = """
import os
from segray._system import memory
before = memory.rss_bytes()
held = bytearray(b"x") * (64 * 2**20)
del held
print(memory.peak_bytes() - before, memory.peak_bytes() == memory.peak_bytes(os.getpid()))
"""


@pytest.mark.integration
def test_a_peak_stays_when_the_memory_is_gone() -> None:
    done = subprocess.run([sys.executable, "-c", _HELD], check=True, capture_output=True, text=True, timeout=60)
    more_bytes, same = done.stdout.split()
    assert int(more_bytes) > 60 * 2**20
    assert same == "True"


@pytest.mark.integration
def test_a_process_that_swells_is_killed() -> None:
    done = subprocess.run([sys.executable, "-c", _SWELLS], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL


def test_a_budget_is_never_overdrawn_and_whoever_asks_for_all_of_it_gets_a_turn() -> None:
    budget, held, most, lock = memory.MemoryBudget(100), [0], [0], threading.Lock()

    def borrow(asked: int) -> None:
        with budget.reserve(asked):
            with lock:
                held[0] += min(asked, 100)
                most[0] = max(most[0], held[0])
            time.sleep(0.001)
            with lock:
                held[0] -= min(asked, 100)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(borrow, asked) for asked in (10, 30, 60, 100, 5000, 0) * 10]:
            done.result(timeout=30)
    assert most[0] <= 100
    assert held[0] == 0


def test_what_a_borrower_needs_no_more_is_there_for_the_next_one() -> None:
    budget = memory.MemoryBudget(100)
    with budget.reserve(5000) as keep:
        keep(70)
        keep(90)  # no more than it still has
        with budget.reserve(30):
            pass
    with budget.reserve(100):
        pass


def test_a_budget_comes_back_when_the_borrower_fails() -> None:
    budget = memory.MemoryBudget(10)
    with pytest.raises(KeyError), budget.reserve(10):
        raise KeyError
    with budget.reserve(10):
        pass
