"""The `segray` command, also as `python -m segray`: set up streams, signals and memory, then load and run the CLI."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from segray._system import signals, streams, utf8

# Commands that read whole label sets in slices, and need the memory of a finished slice back.
_SLICED_COMMANDS = ("evaluate", "diff", "select")
# Commands that have the option --log-format.
_LOGGING_COMMANDS = ("label", "submit")


def logs_as_json(arguments: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Return whether arguments or environment ask for progress as JSON lines. The command line is not parsed yet."""
    if not arguments or arguments[0] not in _LOGGING_COMMANDS or "--help" in arguments:
        return False
    log_format = environ.get("SEGRAY_LOG_FORMAT", "")
    for position, argument in enumerate(arguments, 1):
        if argument == "--log-format":
            log_format = "".join(arguments[position : position + 1])
        elif argument.startswith("--log-format="):
            log_format = argument.partition("=")[2]
    return log_format == "json"


def main() -> None:
    utf8.use_utf8()
    streams.take_over(as_records=logs_as_json(sys.argv[1:], os.environ))
    with signals.ending_at_once():
        signals.listen()
        from segray._system import memory

        if sys.argv[1:2] and sys.argv[1] in _SLICED_COMMANDS:
            memory.release_freed_memory()
        from segray.cli import main as cli

        cli.main()


if __name__ == "__main__":
    main()
