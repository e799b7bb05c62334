"""`segray label` as the entry point of a Ray job: `python jobs/label.py CONFIG [--set key=value]...`."""

import sys

from segray.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "label")
    main()
