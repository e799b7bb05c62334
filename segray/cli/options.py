"""The shared parts of the commands: arguments of one meaning, and JSON on standard output.

Knows how arguments are declared and answers are printed. Knows nothing of what any command does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from segray._system import signals, streams
from segray.tasks import ALL_STAGES, STAGES

if TYPE_CHECKING:
    from segray.config import Config


RETRY_FAILED = "--retry-failed"
# `~` or `~/...`, alone or as the value of an option.
_PATH_BELOW_HOME = re.compile(r"^(|--[a-z][a-z-]*=)(~)(?=/|$)")


class RetryingCommand(TyperCommand):
    """A command with the option --retry-failed, which takes any number of stages.

    Click's options take a fixed number of values. The stages after the option are therefore turned into one option
    each before Click reads the arguments.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, one_option_per_stage(args))


def one_option_per_stage(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with one --retry-failed=STAGE for each stage that follows --retry-failed.

    Without a stage, the option gets the value ALL_STAGES.
    """
    rest, expanded = list(arguments), list[str]()
    while rest:
        argument = rest.pop(0)
        if argument != RETRY_FAILED:
            expanded.append(argument)
            continue
        stages = list(takewhile(lambda following: following in (*STAGES, ALL_STAGES), rest))
        del rest[: len(stages)]
        expanded += [f"{RETRY_FAILED}={stage}" for stage in stages or [ALL_STAGES]]
    return expanded


def with_home(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the home folder in place of `~` at the start of a path.

    A shell does so for `~/x` alone, not for `--out=~/x`, nor in a list of arguments that no shell reads.
    """
    return [_PATH_BELOW_HOME.sub(lambda match: match[1] + os.path.expanduser(match[2]), text) for text in arguments]  # noqa: PTH111


class LogFormat(StrEnum):
    """The format of a run's progress."""

    TEXT = "text"
    JSON = "json"


Configuration = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="Configuration file (YAML). `segray init` writes one, `segray init --all` with every key.",
    ),
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Value that overrides a configuration key. Repeatable.")
]
Day = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        help="Day that {today} means in source.uri and output.root: 2026-11-20, today (in UTC), or today@Asia/Tokyo.",
    ),
]
Root = Annotated[str, typer.Argument(metavar="ROOT", help="Folder or URL of a label set.")]
Endpoint = Annotated[str | None, typer.Option(help="Address of the object store, if it is not AWS.")]
Log = Annotated[
    LogFormat,
    typer.Option(envvar="SEGRAY_LOG_FORMAT", help="Format of progress on standard error: text, or JSON lines."),
]
RetryFailed = Annotated[
    list[str],
    typer.Option(
        RETRY_FAILED,
        metavar="[STAGE...]",
        help=f"Label failed images again, and replace their rows. Stages: {', '.join(STAGES)}. By default all.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def load(path: Path, overrides: Sequence[str], day: str | None, note: Callable[[str], None]) -> Config:
    """Return the configuration of a file with overrides.

    path: the configuration file.
    overrides: texts of the form KEY=VALUE.
    day: value of the key `as_of`; None keeps the value of the file.
    note: receives which day `today` is.
    """
    with signals.ending_at_once():
        from segray import config

    return config.load(path, [*overrides, *([] if day is None else [f"as_of={day}"])], note=note)


def show_json(record: Mapping[str, Any], indent: int | None = 2) -> None:
    """Print a record for programs, with sorted keys and paths as text.

    indent: spaces of indentation; None for one line. Beside a log of JSON lines the record is one line too.
    """
    indent = None if streams.are_records() else indent
    streams.show(json.dumps(record, indent=indent, sort_keys=True, default=os.fspath))
