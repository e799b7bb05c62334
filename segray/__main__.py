"""The `segray` command, also as `python -m segray`: what must be settled before libraries are loaded, then cli."""

from __future__ import annotations

import sys

from segray import memory

SLICED = ("evaluate", "diff", "select")  # read whole label sets, a little at a time


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in SLICED:
        memory.return_freed()
    from segray.cli import main as begin

    begin()


if __name__ == "__main__":
    main()
