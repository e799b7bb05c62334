"""`python -m segray` is the `segray` command."""

from segray.cli import main

if __name__ == "__main__":
    main()
