"""A real Azure Blob Storage server for the tests: Microsoft's Azurite, from npm, on a free loopback port.

Knows how to find, start and stop Azurite. Knows nothing of segray. Azurite writes its index when it ends, so a stop
is a signal to end, not a kill.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

PACKAGE = "azurite@3.37.0"
# The fixed account of Azurite, from its documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@lru_cache(1)
def program() -> str:
    """Return the path of Azurite, which npm downloads at first use. Skip the test where there is no npm."""
    if not shutil.which("npx"):
        pytest.skip("Azurite needs npx, of Node.js")
    found = subprocess.run(
        ["npx", "--yes", "--package", PACKAGE, "-c", "command -v azurite-blob"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if found.returncode:
        pytest.skip(f"npm cannot get {PACKAGE}: {found.stderr.strip()[-300:]}")
    return found.stdout.strip()


@dataclass
class Azurite:
    """A running server, with its state below `folder`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def connection_string(self, endpoint_url: str = "", key: str = KEY) -> str:
        """The connection string, of another endpoint or key where one is given."""
        endpoint_url = endpoint_url or self.endpoint_url
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={endpoint_url};"

    def client(self) -> Any:
        """Azure's own client, for what a test wants to see without segray."""
        return pytest.importorskip("azure.storage.blob").BlobServiceClient.from_connection_string(
            self.connection_string()
        )

    def container(self) -> str:
        """A new, empty container's name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_container(name)
        return name

    def start(self) -> None:
        command = [program(), "--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location", str(self.folder)]
        self.process = subprocess.Popen(
            [*command, "--blobHost", "127.0.0.1", "--blobPort", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait_until_it_answers(f"http://127.0.0.1:{self.port}/", self.process)

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(30)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError:
            return  # a refusal is an answer
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not answer at {url}")


@contextmanager
def serve(folder: Path) -> Iterator[Azurite]:
    """Run Azurite with its state below `folder` until the end of the block."""
    server = Azurite(folder, free_port(set()))
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    server.start()
    try:
        yield server
    finally:
        server.stop()
