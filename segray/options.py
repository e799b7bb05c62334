"""What the commands have in common: arguments of one meaning, and JSON on standard output.

Knows how arguments are declared and answers printed; knows nothing of what any command does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from segray import config

Configuration = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/reference.yaml.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable.")
]
Day = Annotated[str | None, typer.Option("--as-of", help="The day of {today} in addresses: 2026-11-20, or today.")]
Root = Annotated[str, typer.Argument(metavar="ROOT", help="A label set.")]
Endpoint = Annotated[str | None, typer.Option(help="Of the object store, if it is not AWS.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def load(path: Path, overrides: Sequence[str], day: str | None) -> config.Config:
    """The configuration that these arguments mean."""
    return config.load(path, [*overrides, *([] if day is None else [f"as_of={day}"])])


def print_json(record: Mapping[str, Any], indent: int | None = 2) -> None:
    """For programs: sorted, indented (None: on one line), paths as text."""
    print(json.dumps(record, indent=indent, sort_keys=True, default=os.fspath), flush=True)
