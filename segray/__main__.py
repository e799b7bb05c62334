"""The `segray` command, also as `python -m segray`: what must be settled before libraries are loaded, then cli."""

from __future__ import annotations

import sys

from segray._system import signals, streams

SLICED = ("evaluate", "diff", "select")  # read whole label sets, a little at a time


def main() -> None:
    streams.settle()
    signals.listen()
    with signals.ending_at_once():
        from segray._system import memory

        if sys.argv[1:2] and sys.argv[1] in SLICED:
            memory.release_freed_memory()
        from segray.cli import main as cli
    cli.main()


if __name__ == "__main__":
    main()
