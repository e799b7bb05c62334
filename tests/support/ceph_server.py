"""A third S3 server for the tests: Ceph's object gateway, with one monitor and one store in memory, on loopback.

Knows how to configure, start, stop and freeze the three programs of Debian's packages `radosgw`, `ceph-mon` and
`ceph-osd`. Knows nothing of segray. The programs authenticate nobody among themselves.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.session import Session
from ports import free_port

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
KEY, SECRET = "tests", "sEcReT-of-the-test-gateway"
_START_S = 60.0

_CONF = """[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}/0
public addr = 127.0.0.1
ms bind msgr2 = false
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
mon allow pool size one = true
mon max pg per osd = 10000
osd max pg per osd hard ratio = 100
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
"""


@dataclass
class Ceph:
    """A running cluster with its gateway. processes: by name of the program."""

    folder: Path
    port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    key: str = KEY
    secret: str = SECRET

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        """Return a client of AWS's own, for what a test wants to see without segray."""
        return Session().create_client(
            "s3", region_name="us-east-1", endpoint_url=self.endpoint_url, aws_access_key_id=self.key,
            aws_secret_access_key=self.secret, config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip

    def bucket(self) -> str:
        """Return the name of a new, empty bucket."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def start(self) -> None:
        """Start the gateway."""
        self.run("radosgw", "-n", "client.rgw", "-f")
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.endpoint_url, timeout=5).close()
            except OSError:
                assert self.processes["radosgw"].poll() is None, "the gateway has ended"
                time.sleep(0.2)
            else:
                return
        raise AssertionError("the gateway does not answer")

    def stop(self) -> None:
        """Kill the gateway. The store keeps the objects."""
        self.processes["radosgw"].kill()
        self.processes["radosgw"].wait()

    def freeze(self) -> None:
        """Stop the store, so that the gateway takes requests and answers none."""
        self.processes["ceph-osd"].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the store go on."""
        self.processes["ceph-osd"].send_signal(signal.SIGCONT)

    def run(self, program: str, *arguments: str) -> None:
        """Start a program that goes on."""
        with (self.folder / f"{program}.out").open("ab") as log:
            command = [program, "-c", str(self.folder / "ceph.conf"), *arguments]
            self.processes[program] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def call(self, program: str, *arguments: str) -> None:
        """Run a program to its end."""
        command = [program, "-c", str(self.folder / "ceph.conf"), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=_START_S)


@contextmanager
def serve(folder: Path) -> Iterator[Ceph]:
    """Run a new cluster below `folder` until the block ends. Skip the test where a program is absent."""
    absent = [program for program in PROGRAMS if not shutil.which(program)]
    if absent or os.geteuid():
        pytest.skip(f"Ceph needs root and Debian's radosgw, ceph-mon, ceph-osd; absent: {', '.join(absent) or 'root'}")
    taken: set[int] = set()
    mon_port, fsid, osd_id = free_port(taken), str(uuid.uuid4()), str(uuid.uuid4())
    server = Ceph(folder, free_port(taken))
    for name in ("mon", "osd"):
        (folder / name).mkdir(parents=True)
    conf = _CONF.format(folder=folder, fsid=fsid, mon_port=mon_port, port=server.port)
    (folder / "ceph.conf").write_text(conf)
    try:
        address = f"[v1:127.0.0.1:{mon_port}]"
        server.call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(folder / "monmap"))
        server.call("ceph-mon", "-i", "a", "--mkfs", "--monmap", str(folder / "monmap"))
        server.run("ceph-mon", "-i", "a", "-f")
        _until_it_succeeds(lambda: server.call("ceph", "osd", "new", osd_id, "0"))
        server.call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_id)
        server.run("ceph-osd", "-i", "0", "-f")
        user = ("--uid=tests", "--display-name=tests", f"--access-key={KEY}", f"--secret-key={SECRET}")
        server.call("radosgw-admin", "user", "create", *user)
        server.start()
        yield server
    finally:
        for process in server.processes.values():
            process.kill()
            process.wait()


def _until_it_succeeds(call: Callable[[], None]) -> None:
    """Repeat a call that fails while the monitor is not ready."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            return call()
        except subprocess.SubprocessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
