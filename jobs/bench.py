"""`segray bench` as a script or as the entry point of a Ray job: `python jobs/bench.py [options]`."""

import sys

from segray.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    main()
