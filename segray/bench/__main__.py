"""`python -m segray.bench VARIANT WORKLOAD FOLDER`: one run of one variant in a fresh process.

The result is written to FOLDER/measurement.json.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from segray._system import child_processes
from segray.bench.workload import Workload

if __name__ == "__main__":
    from segray.bench.variants import VARIANTS

    variant, workload, folder = sys.argv[1], Workload.load(Path(sys.argv[2])), Path(sys.argv[3])
    before = child_processes.adopt_descendants()
    try:
        measurement = VARIANTS[variant](workload, folder)
        (folder / "measurement.json").write_text(json.dumps(asdict(measurement)), "utf-8")
    finally:
        child_processes.kill_children(before)
    sys.stderr.flush()
    os._exit(0)
