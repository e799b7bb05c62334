"""The `segray` command, also as `python -m segray`: set up streams, signals and memory, then load and run the CLI."""

from __future__ import annotations

import sys

from segray._system import signals, streams

# Commands that read whole label sets in slices, and need the memory of a finished slice back.
_SLICED_COMMANDS = ("evaluate", "diff", "select")


def main() -> None:
    streams.take_over()
    with signals.ending_at_once():
        signals.listen()
        from segray._system import memory

        if sys.argv[1:2] and sys.argv[1] in _SLICED_COMMANDS:
            memory.release_freed_memory()
        from segray.cli import main as cli

        cli.main()


if __name__ == "__main__":
    main()
