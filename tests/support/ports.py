"""Free ports on loopback, for servers that must be told theirs."""

from __future__ import annotations

import os
import secrets
import socket


def free_port(taken: set[int]) -> int:
    """One that nobody listens at, not in `taken`, which it joins.

    Neither in the range of Ray's workers nor in that of outgoing connections, so it is still free after a server's
    restart; and none that the suite's other processes choose.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    mine = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in range(20_000 + secrets.randbelow(8_000), 32_000):
        with socket.socket() as probe:
            if port % workers == mine and port not in taken and probe.connect_ex(("127.0.0.1", port)) != 0:
                taken.add(port)
                return port
    raise RuntimeError("no free port between 20000 and 32000")
