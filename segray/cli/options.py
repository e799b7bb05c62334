"""What the commands have in common: arguments of one meaning, JSON on standard output, and how durations read.

Knows how arguments are declared and answers put into words; knows nothing of what any command does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segray._system import signals, streams

if TYPE_CHECKING:
    from segray.config import Config


class LogFormat(StrEnum):
    """How a run tells its progress."""

    TEXT = "text"
    JSON = "json"


Configuration = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="A YAML file. `segray init` writes one; `segray init --all`: with every key."
    ),
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
]
Day = Annotated[str | None, typer.Option("--as-of", help="The day of {today} in addresses: 2026-11-20, or today.")]
Root = Annotated[str, typer.Argument(metavar="ROOT", help="A label set.")]
Endpoint = Annotated[str | None, typer.Option(help="Of the object store, if it is not AWS.")]
Log = Annotated[
    LogFormat, typer.Option(envvar="SEGRAY_LOG_FORMAT", help="Of progress on standard error: text, or JSON lines.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def load(path: Path, overrides: Sequence[str], day: str | None) -> Config:
    """The configuration that these arguments mean."""
    with signals.ending_at_once():
        from segray import config

    return config.load(path, [*overrides, *([] if day is None else [f"as_of={day}"])])


def show_json(record: Mapping[str, Any], indent: int | None = 2) -> None:
    """For programs: sorted, indented (None: on one line), paths as text."""
    streams.show(json.dumps(record, indent=indent, sort_keys=True, default=os.fspath))
