"""The shared parts of the commands: arguments of one meaning, and JSON on standard output.

Knows how arguments are declared and answers are printed. Knows nothing of what any command does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segray._system import signals, streams
from segray.cli.examples import CommandWithExamples
from segray.errors import UserError
from segray.tasks import ALL_STAGES, STAGES

if TYPE_CHECKING:
    from segray.config import Config


RETRY_FAILED = "--retry-failed"
# `~` or `~/...`, alone or as the value of an option.
_PATH_BELOW_HOME = re.compile(r"^(|--[a-z][a-z-]*=)(~)(?=/|$)")


class RetryingCommand(CommandWithExamples):
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


Source = Annotated[
    str | None,
    typer.Argument(metavar="SOURCE", help="Images to label: a folder, a glob, a manifest, or a URL; source.uri."),
]
Output = Annotated[str | None, typer.Argument(metavar="OUTPUT", help="Folder or URL of the label set; output.root.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="PATH|NAME",
        help="File, folder or address of a model that tells what it is, or a name of `segray models list`.",
    ),
]
Configuration = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
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
ThresholdsFile = Annotated[
    Path | None,
    typer.Option(
        "--thresholds",
        metavar="FILE",
        help="Smallest score by class, as `segray threshold` writes. Instances under it are left out.",
    ),
]
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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result and errors alone, no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@dataclass(frozen=True)
class Settings:
    """The configuration that the arguments of a command give.

    file: the configuration file; None for a command line that says everything. overrides: texts KEY=VALUE; a later one
    prevails. config: the validated configuration.
    """

    file: Path | None
    overrides: tuple[str, ...]
    config: Config


def load(
    source: str | None,
    output: str | None,
    *,
    file: Path | None,
    model: str | None,
    overrides: Sequence[str],
    day: str | None,
    note: Callable[[str], None],
) -> Settings:
    """Return the configuration of a command line.

    Args:
        source: SOURCE. Alone it may be the configuration file, as in earlier versions.
        output: OUTPUT.
        file: value of --config.
        model: value of --model.
        overrides: values of --set. They prevail over all other arguments.
        day: value of the key `as_of`; None keeps the value of the file.
        note: receives which day `today` is, and the new form of an old command line.

    Raises:
        UserError: The arguments do not say what to label.
        ConfigError: As config.load.
    """
    if source is not None and output is None and file is None and _is_configuration(source, model):
        note(f"the configuration is an option now: --config {shlex.quote(source)}")
        file, source = Path(source), None
    if file is None:
        _check_places(source, output, overrides)
    with signals.ending_at_once():
        from segray import config

    places = {"source.uri": source, "output.root": output}
    given = {key: value for key, value in places.items() if value is not None}
    keys = given if model is None else {**given, **_keys_of(model)}
    arguments = [f"{key}={'null' if value is None else value}" for key, value in keys.items()]
    merged = (*arguments, *overrides, *([] if day is None else [f"as_of={day}"]))
    return Settings(file, merged, config.load(file, merged, note=note))


def _keys_of(model: str) -> dict[str, str | None]:
    with signals.ending_at_once():
        from segray.models import resolve

    return {f"model.{key}": value for key, value in resolve.keys_of(model).items()}


def _is_configuration(argument: str, model: str | None) -> bool:
    """Return whether the only argument is a configuration file, not a source. model: value of --model."""
    if argument.lower().endswith((".yaml", ".yml")):
        return True
    return model is None and "://" not in argument and not Path(argument).is_dir()


def _check_places(source: str | None, output: str | None, overrides: Sequence[str]) -> None:
    """Raise UserError unless a command line without --config names the images and the place of the labels."""
    hint = (
        "for example `segray label photos labels --model best_openvino_model`; or write a configuration with "
        "`segray init FILE` and give `--config FILE`"
    )
    keys = {override.partition("=")[0] for override in overrides}
    if source is not None and output is not None and source.lower().endswith((".yaml", ".yml")):
        found, hint = f"{source} {output}", f"for a configuration file write --config {shlex.quote(source)}"
        raise UserError("SOURCE names images, not a configuration", where="SOURCE", found=found, hint=hint)
    if source is None and "source.uri" not in keys:
        raise UserError("the command names no images", where="SOURCE", found="nothing", hint=hint)
    if output is None and "output.root" not in keys:
        raise UserError("the command names no place for the labels", where="OUTPUT", found="nothing", hint=hint)


def show_json(record: Mapping[str, Any], indent: int | None = 2) -> None:
    """Print a record for programs, with sorted keys and paths as text.

    indent: spaces of indentation; None for one line. Beside a log of JSON lines the record is one line too.
    """
    indent = None if streams.are_records() else indent
    streams.show(json.dumps(record, indent=indent, sort_keys=True, default=os.fspath))
