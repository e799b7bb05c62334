"""The address of the Ray cluster that a run joins.

Knows the configuration, RAY_ADDRESS and the clusters on this machine. Connects to no cluster.
"""

from __future__ import annotations

import os

from segray import _compat
from segray._system import child_processes
from segray.errors import ConfigError, InfrastructureError

# A variable in the environment of every process of a private cluster.
PRIVATE_MARK = "SEGRAY_PRIVATE_CLUSTER"


def address_to_join(configured: str | None) -> str | None:
    """Return the address of the cluster to join; None for a private cluster.

    Without a configured address RAY_ADDRESS counts, which Ray sets in its jobs. An empty value is no address. "auto" is
    a cluster on this machine, never the private cluster of another run. Raises ConfigError for an address that Ray
    cannot join, InfrastructureError when "auto" finds no cluster.

    configured: cluster.address.
    """
    address = configured or os.environ.get("RAY_ADDRESS")
    if not address:
        return None
    where = f"cluster.address={configured}" if configured else f"RAY_ADDRESS={address}"
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address == "auto":
        return _cluster_here(where)
    if "://" in address:
        raise ConfigError(
            "the address is not that of a cluster's head",
            where=where,
            found=f"a URL ({address.partition('://')[0]}://)",
            hint="set cluster.address to HOST:PORT of the head, such as 10.0.0.5:6379; for a URL use "
            "`segray submit --address`",
        )
    return address


def _cluster_here(where: str) -> str:
    """Return the address of a cluster on this machine that is not private; raise InfrastructureError without one."""
    commands = child_processes.commands_with_variable(PRIVATE_MARK)
    private = {word.partition("=")[2] for command in commands for word in command if word.startswith("--gcs-address=")}
    for address in _compat.ray_addresses_here():
        if address not in private:
            return address
    raise InfrastructureError(
        "no Ray cluster runs on this machine",
        where=where,
        found=f"private clusters of other runs: {', '.join(sorted(private)) or 'none'}",
        hint="start a cluster with `ray start --head`, or remove `cluster.address` and RAY_ADDRESS for a private one",
    )
