"""What a command leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through /proc")

# A child that starts a process of its own session and dies; the command ends all but a child that it had before.
_COMMAND = """
import subprocess, sys
from segray._system import child_processes as orphans
spared = subprocess.Popen(["sleep", "60"])
known = orphans.adopt_descendants()
leave = "import subprocess as s; print(s.Popen(['sleep', '60'], stdout=s.DEVNULL, start_new_session=True).pid)"
orphan = subprocess.run([sys.executable, "-c", leave], stdout=subprocess.PIPE).stdout.decode().strip()
child = subprocess.Popen(["sleep", "60"])
orphans.kill_children(known)
print(orphan, child.pid, spared.poll() is None)
spared.kill()
"""


@pytest.mark.integration
def test_children_and_their_orphans_end_and_what_was_there_before_is_spared() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=30
    )
    orphan, child, spared = done.stdout.split()
    assert spared == "True"
    for pid in (orphan, child):
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
