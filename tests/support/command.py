"""Run `segray` as a user does: a process of its own, judged by exit code, output and tables."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

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
