"""`python -m segray.bench WAY WORKLOAD FOLDER`: one run of one variant in a fresh process.

The result is written to FOLDER/lap.json.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from segray._system import child_processes
from segray.bench.workload import Workload

if __name__ == "__main__":
    from segray.bench.variants import WAYS

    way, workload, folder = sys.argv[1], Workload.load(Path(sys.argv[2])), Path(sys.argv[3])
    before = child_processes.adopt_descendants()
    try:
        lap = WAYS[way](workload, folder)
        (folder / "lap.json").write_text(json.dumps(asdict(lap)), "utf-8")
    finally:
        child_processes.kill_children(before)
    sys.stderr.flush()
    os._exit(0)
