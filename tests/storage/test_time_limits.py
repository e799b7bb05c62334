"""Calls that end in time, on an event loop and in a thread, and servers of every scheme that stay silent."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from fsspec.asyn import get_loop, sync

from segray.errors import InfrastructureError
from segray.storage.store import StorageOptions, Store
from segray.storage.time_limits import in_thread, limits_of, within


def test_limits_follow_from_the_longest_silence() -> None:
    assert limits_of(60).connect_s == 10
    assert limits_of(2).connect_s == 2
    assert limits_of(60).total_s == 300
    assert limits_of(60).for_upload(256 << 10) == 301


def test_a_late_call_says_so_and_the_errors_of_a_call_stay() -> None:
    with pytest.raises(ConnectionError, match=r"no complete answer within 0.1 s"):
        sync(get_loop(), within, 0.1, asyncio.sleep, 5)
    with pytest.raises(ConnectionError, match=r"no complete answer within 0.1 s"):
        in_thread(0.1, time.sleep, 1)
    assert sync(get_loop(), within, 5, asyncio.sleep, 0, "x") == "x"
    assert in_thread(5, int, "7") == 7
    with pytest.raises(ValueError, match="invalid literal"):
        in_thread(5, int, "x")


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        for connection in held:
            connection.close()


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["s3", "az", "gs", "ftp", "webhdfs", "http"])
def test_a_silent_server_of_any_scheme_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch, silent: int, kind: str
) -> None:
    address = f"http://127.0.0.1:{silent}"
    if kind in ("az", "gs"):
        pytest.importorskip({"az": "azure.storage.blob", "gs": "gcsfs"}[kind])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", f"AccountName=name;AccountKey=a2V5;BlobEndpoint={address}/name;"
    )
    host = f"127.0.0.1:{silent}" if kind in ("ftp", "webhdfs", "http") else "bucket"
    store = Store(StorageOptions(endpoint_url=address, timeout_s=0.4, retries=0))
    begin_s = time.monotonic()
    with pytest.raises(InfrastructureError):
        store.read(f"{kind}://{host}/a/b.jpg")
    assert time.monotonic() - begin_s < 10
