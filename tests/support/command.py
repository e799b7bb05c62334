"""Run `segray` as a user does: a process of its own, judged by exit code, output and tables.

here() runs the same commands in this process, for tests that judge no process and no cluster.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from segray.cli import main
from segray.config import Config
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import WorkerSpec, build

ENV = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def segray(
    *arguments: object, env: Mapping[str, str] | None = None, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """`segray ARGUMENTS`, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "segray", *map(str, arguments)],
        env={**os.environ, **ENV, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def start_worker_here(spec: WorkerSpec, config: Config) -> InProcess:
    """The workers of a run, as one worker on a thread of this process."""
    return InProcess(*build(spec, "CPU", config.workers[0].threads))


def here(*arguments: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`segray ARGUMENTS` in this process, without Ray: seconds of CPU less for a run, and one for other commands."""
    words = list(map(str, arguments))
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(main, "start_workers", start_worker_here)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        code = main.run(words)
    return subprocess.CompletedProcess(["segray", *words], code, out.getvalue(), err.getvalue())


# For runs whose outcome is the same on a cluster: plain pytest makes them in this process.
in_both_ways = pytest.mark.parametrize(
    "command", [pytest.param(here, id="here"), pytest.param(segray, id="on Ray", marks=pytest.mark.thorough)]
)


def start(
    *arguments: object, env: Mapping[str, str] | None = None, inside: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """`segray ARGUMENTS`, in a session of its own, left running. inside: a command that runs commands elsewhere."""
    return subprocess.Popen(
        [*inside, sys.executable, "-m", "segray", *map(str, arguments)],
        env={**os.environ, **ENV, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def write_config(path: Path, source: object, root: object, **more: Any) -> Path:
    """A configuration for the embedded model, with further top-level keys. Runs write no report if nothing is said."""
    values = {"source": {"uri": str(source)}, "output": {"root": str(root)}, "model": {"name": "stickers"}}
    values |= {"report": False} | more
    path.write_text(yaml.safe_dump(values))
    return path
