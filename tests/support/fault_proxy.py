"""Faults between segray and an S3 server: a proxy that answers, delays, cuts and resets as it is told.

Knows HTTP only as far as one request a connection needs; knows nothing of S3 but the shape of its errors, and
nothing of segray. Headers that a signature covers, Host among them, travel as they came, so signatures hold.

    with serve(swift.endpoint_url) as proxy:
        proxy.change(FaultPlan(Reset(), share=0.1))
"""

from __future__ import annotations

import math
import multiprocessing
import random
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """One request as it came. body: complete."""

    method: str
    path: str
    head: bytes
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An S3 error instead of the server's answer; the server never sees the request."""

    status: int
    code: str


@dataclass(frozen=True)
class Reset:
    """The connection is reset. late: the server has done what it was asked for, but its answer is lost."""

    late: bool = False


@dataclass(frozen=True)
class Stall:
    """Silence for so long, then the server's answer."""

    seconds: float


@dataclass(frozen=True)
class Truncate:
    """The answer ends halfway through its body."""


Fault = Reply | Reset | Stall | Truncate


@dataclass(frozen=True)
class FaultPlan:
    """Which requests meet the fault: those whose "METHOD path" matches `wanted`, the first `skip` of them spared,
    then this share of them, for so long from the first one on."""

    fault: Fault | None = None
    wanted: str = ""
    skip: int = 0
    share: float = 1.0
    seconds: float = math.inf


@dataclass
class _State:
    plan: FaultPlan = FaultPlan()
    dice: random.Random = field(default_factory=lambda: random.Random(1))
    spared: int = 0
    began_s: float | None = None
    faults: int = 0
    asked: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def change(self, plan: FaultPlan) -> None:
        with self.lock:
            self.plan, self.spared, self.began_s, self.faults, self.asked = plan, 0, None, 0, []

    def meets(self, request: Request) -> Fault | None:
        plan = self.plan
        with self.lock:
            self.asked.append(f"{request.method} {request.path}")
        if plan.fault is None or not re.search(plan.wanted, f"{request.method} {request.path}"):
            return None
        with self.lock:
            if self.spared < plan.skip:
                self.spared += 1
                return None
            now = time.monotonic()
            self.began_s = self.began_s or now
            if now - self.began_s >= plan.seconds or self.dice.random() >= plan.share:
                return None
            self.faults += 1
            return plan.fault


class Proxy:
    """A running proxy, in a process of its own: deltalake keeps Python's lock while it waits for an answer."""

    def __init__(self, endpoint_url: str, control: Connection) -> None:
        self.endpoint_url, self._control = endpoint_url, control

    def change(self, plan: FaultPlan = FaultPlan()) -> None:
        """Make the faults of a plan from now on, none by default, and count anew."""
        self._control.send(plan)
        self._control.recv()

    @property
    def faults(self) -> int:
        """How many requests met a fault since the last change."""
        self._control.send("faults")
        return int(self._control.recv())

    @property
    def asked(self) -> list[str]:
        """All requests since the last change, each "METHOD path"."""
        self._control.send("asked")
        return list(self._control.recv())


@contextmanager
def serve(upstream_url: str) -> Iterator[Proxy]:
    """A proxy before `upstream_url` on a free loopback port, until the block ends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_run, args=(upstream_url, theirs), daemon=True)
    process.start()
    try:
        yield Proxy(ours.recv(), ours)
    finally:
        process.kill()
        process.join()


def _run(upstream_url: str, control: Connection) -> None:
    upstream, state = urlsplit(upstream_url), _State()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):  # the client went away, which is its right
                _exchange(self.request, (upstream.hostname or "", upstream.port or 80), state)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close, request_queue_size = True, False, 128

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        control.send(f"http://127.0.0.1:{server.server_address[1]}")
        while True:
            try:
                asked = control.recv()
            except EOFError:
                return
            if isinstance(asked, FaultPlan):
                state.change(asked)
            control.send(state.asked if asked == "asked" else state.faults)


def _exchange(client: socket.socket, upstream: tuple[str, int], state: _State) -> None:
    request = _receive(client)
    if request is None:
        return
    match state.meets(request):
        case Reply(status, code):
            client.sendall(_error(request, status, code))
        case Reset(late):
            if late:
                _ask(request, upstream)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        case Stall(seconds):
            time.sleep(seconds)
            client.sendall(_ask(request, upstream))
        case Truncate():
            head, gap, body = _ask(request, upstream).partition(b"\r\n\r\n")
            client.sendall(head + gap + body[: len(body) // 2])
        case None:
            client.sendall(_ask(request, upstream))


def _receive(client: socket.socket) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(1 << 16)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    if re.search(rb"(?im)^expect:", head):
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    size = int(found[1]) if (found := re.search(rb"(?im)^content-length: *(\d+)", head)) else 0
    chunks = [body]
    left = size - len(body)
    while left > 0 and (part := client.recv(min(left, 1 << 20))):
        chunks.append(part)
        left -= len(part)
    method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    return Request(method, path, head, b"".join(chunks))


def _ask(request: Request, upstream: tuple[str, int]) -> bytes:
    """The server's whole answer. No signature covers Connection and Expect."""
    lines = [line for line in request.head.split(b"\r\n") if not re.match(rb"(?i)(connection|expect):", line)]
    with socket.create_connection(upstream, timeout=60) as server:
        server.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + request.body)
        chunks = []
        while part := server.recv(1 << 20):
            chunks.append(part)
    return b"".join(chunks)


def _error(request: Request, status: int, code: str) -> bytes:
    body = (
        f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>told so</Message></Error>".encode()
    )
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return (head + "Connection: close\r\n\r\n").encode() + (b"" if request.method == "HEAD" else body)
