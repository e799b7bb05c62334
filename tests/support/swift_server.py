"""A real S3 server for the tests: OpenStack Swift with its s3api, four processes on free loopback ports.

A page of a listing holds 100 keys, where other servers put 1,000, so that few keys make several pages.

Knows how to configure, start and stop Swift as an ordinary user; knows nothing of segray. Everything it
writes, logs included, is below the folder it is given, which must allow user extended attributes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from botocore.config import Config
from botocore.session import Session
from ports import free_port

KEY, SECRET = "test:tester", "sEcReT-of-the-test-server"
STORES = ("account", "container", "object")

_STORE_CONF = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
devices = {folder}/srv
swift_dir = {folder}
user = {user}
mount_check = false
workers = 0
fallocate_reserve = 0
log_udp_host = 127.0.0.1
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

_PROXY_CONF = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
user = {user}
workers = 0
log_udp_host = 127.0.0.1
[pipeline:main]
pipeline = catch_errors cache listing_formats bulk s3api tempauth slo dlo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
max_bucket_listing = 100
s3_acl = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:versioned_writes]
use = egg:swift#versioned_writes
[filter:symlink]
use = egg:swift#symlink
"""

_RINGS = """
import sys
from swift.common.ring import RingBuilder
folder, *ports = sys.argv[1:]
for name, port in zip({stores!r}, ports, strict=True):
    ring = RingBuilder(4, 1, 1)
    ring.add_dev(dict(id=0, region=1, zone=1, ip="127.0.0.1", port=int(port), device="sdb1", weight=1.0))
    ring.rebalance()
    ring.get_ring().save(folder + "/" + name + ".ring.gz")
"""


@dataclass
class Swift:
    """A running server, with its state below `folder`. process: the parent of the four servers."""

    endpoint_url: str
    folder: Path
    process: subprocess.Popen[bytes]
    key: str = KEY
    secret: str = SECRET

    def bucket(self) -> str:
        """A new, empty bucket's name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def client(self):  # type: ignore[no-untyped-def]
        """A plain botocore client, for what a test wants to see without segray."""
        return Session().create_client(
            "s3", region_name="us-east-1", endpoint_url=self.endpoint_url, aws_access_key_id=self.key,
            aws_secret_access_key=self.secret, config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip

    @property
    def log(self) -> Path:
        """What its processes wrote since the start."""
        return self.folder / "log"

    def stop(self) -> None:
        """Kill every process of the server at once, as a power cut would."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)

    def start(self, ready_within_s: float = 60.0) -> None:
        """After stop(): the same server again, on the same disk and port."""
        self.process = _start(self.folder)
        _wait_until_ready(self, ready_within_s)


@contextmanager
def in_memory(otherwise: Path) -> Iterator[Path]:
    """A folder in memory, where a write takes half as long; another one where memory has no attributes or no room."""
    memory = Path("/dev/shm")
    with suppress(OSError):
        if shutil.disk_usage(memory).free > 2**30:
            folder = Path(tempfile.mkdtemp(prefix="segray-swift-", dir=memory))
            try:
                os.setxattr(folder, "user.segray", b"")  # Linux 6.6 and newer
            except OSError:
                folder.rmdir()
            else:
                otherwise = folder
    try:
        yield otherwise
    finally:
        if otherwise.parent == memory:
            shutil.rmtree(otherwise)


@contextmanager
def serve(folder: Path, ready_within_s: float = 60.0) -> Iterator[Swift]:
    """Run Swift with its state below `folder` until the block ends, or this process does, however it ends."""
    taken: set[int] = set()
    *store_ports, port = ports = [free_port(taken) for _ in (*STORES, "proxy")]
    _configure(folder, ports)
    subprocess.run(
        [sys.executable, "-c", _RINGS.format(stores=STORES), folder, *map(str, store_ports)], check=True, timeout=60
    )
    server = Swift(f"http://127.0.0.1:{port}", folder, _start(folder))
    try:
        _wait_until_ready(server, ready_within_s)
        yield server
    finally:
        server.stop()


def _configure(folder: Path, ports: list[int]) -> None:
    user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
    (folder / "srv" / "sdb1").mkdir(parents=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = segray-tests\n")
    for name, port in zip((*STORES, "proxy"), ports, strict=True):
        template = _PROXY_CONF if name == "proxy" else _STORE_CONF
        (folder / f"{name}.conf").write_text(
            template.format(name=name, port=port, folder=folder, user=user, secret=SECRET)
        )


def _start(folder: Path) -> subprocess.Popen[bytes]:
    # The shell waits on our pipe and then kills its children, so they cannot outlive this process however it ends.
    # By pid, not by group: each Swift server makes itself a session leader.
    binaries = Path(sys.executable).parent
    commands = [
        f'"{binaries}/swift-{name}-server" "{folder}/{name}.conf" </dev/null & servers="$servers $!"'
        for name in (*STORES, "proxy")
    ]
    script = "\n".join([*commands, "cat", "kill -9 $servers", "wait"])
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            ["sh", "-c", script], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )


def _wait_until_ready(server: Swift, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{server.endpoint_url}/info", timeout=5):
                server.bucket()  # /info answers before the storage servers do
                return
        except Exception as error:  # any failure means "not yet"
            last = error
            time.sleep(0.1)
    raise RuntimeError(f"Swift was not ready within {within_s} s ({last!r}):\n{server.log.read_text()[-4000:]}")
