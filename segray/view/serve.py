"""Starts the page's server: opens the label set, takes a port, and says the address.

Knows sockets, threads and the browser. server.py knows what is answered.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from segray.analytics.query.key_ranges import committed
from segray.errors import InfrastructureError, UserError
from segray.label_set import snapshot
from segray.label_set.run_records import source_store
from segray.label_set.snapshot import Snapshot
from segray.limits import CONFIDENT_SCORE
from segray.sources.reader import by_uri
from segray.storage.options import StorageKeywords
from segray.storage.uris import PathOrUrl
from segray.view.judgements import DEFAULT_FILE, JudgementFile

if TYPE_CHECKING:
    import uvicorn

    from segray.view.server import Content

_START_S, _STOP_S = 30.0, 5.0


@dataclass(frozen=True)
class Place:
    """Where the server listens. port: 0 for a free one. Other machines reach it unless the host is a loopback."""

    host: str = "127.0.0.1"
    port: int = 0

    @property
    def is_loopback(self) -> bool:
        """Return whether this machine alone reaches the host."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class View:
    """A page that is being served from a thread of this process.

    address: of the page, with its token where it needs one.
    """

    def __init__(self, server: uvicorn.Server, thread: threading.Thread, address: str, root: str) -> None:
        self._server, self._thread = server, thread
        self.address, self.root = address, root

    def wait(self) -> None:
        """Return when the server ends."""
        while self._thread.is_alive():
            self._thread.join(0.2)

    def stop(self) -> None:
        """End the server. A second call does nothing."""
        self._server.should_exit = True
        self._thread.join(_STOP_S)

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"View({self.root!r} at {self.address})"

    def _repr_html_(self) -> str:
        """Return the page in a frame, for Jupyter."""
        return f'<iframe src="{self.address}" width="100%" height="720" style="border:0"></iframe>'


def view(
    root: PathOrUrl,
    *,
    place: Place = Place(),
    judgements: PathOrUrl = DEFAULT_FILE,
    min_score: float = CONFIDENT_SCORE,
    version: int | None = None,
    browser: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    **storage_options: Unpack[StorageKeywords],
) -> View:
    """Serve a page on which people look at a label set. Return while it is served.

    Args:
        root: Folder or URL of the label set.
        place: Where the server listens.
        judgements: File for what a person says of instances. It is made with the first judgement.
        min_score: Smallest score of masks that are drawn at first.
        version: Batch whose state is shown. By default the latest.
        browser: Open the page in a browser.
        tell: Receives what is under way.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        UserError: The extra `view` is not installed, the port is taken, or the file of judgements is none.
        LabelSetError: There is no label set, or nothing is committed.
    """
    uvicorn = _uvicorn()
    state = committed(snapshot.snapshot(root, version=version, **storage_options))
    tell(f"reading {state.rows['images']:,} images and {state.rows['instances']:,} instances")
    content = _content(state, Path(judgements), min_score, storage_options)
    listener = _listener(place)
    host, port = listener.getsockname()[:2]
    token = None if place.is_loopback else secrets.token_urlsafe(24)
    shown_host = f"[{place.host}]" if ":" in place.host else place.host
    if place.host in ("0.0.0.0", "::"):
        shown_host = socket.gethostname()

    from segray.view.server import Protection, application

    hosts = ("127.0.0.1", "localhost", "[::1]") if token is None else ("*",)
    app = application(content, Protection(hosts, token))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="segray-view", daemon=True)
    thread.start()
    deadline = time.monotonic() + _START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise InfrastructureError("the page's server did not start", where=f"{host}:{port}")
        time.sleep(0.01)
    address = f"http://{shown_host}:{port}/" + ("" if token is None else f"?token={token}")
    if browser:
        webbrowser.open(address)
    return View(server, thread, address, state.root)


def _content(state: Snapshot, judgements: Path, min_score: float, options: StorageKeywords) -> Content:
    from segray.view.pictures import Pictures
    from segray.view.server import Content
    from segray.view.tables import Tables

    file = JudgementFile(judgements.absolute(), frozenset(state.classes.values()))
    read = by_uri(source_store(snapshot.store(options), state.root))
    return Content(state, Tables(state), Pictures(state, read), file, min_score)


def _uvicorn() -> Any:
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        hint = "run `pip install 'segray[view]'`, or `pip install duckdb starlette uvicorn`"
        raise UserError("the page needs Starlette and uvicorn", found=str(error), hint=hint) from error
    return uvicorn


def _listener(place: Place) -> socket.socket:
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((place.host, place.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        hint = "give another --port, 0 for a free one; or another --host"
        raise UserError(
            "the page cannot be served here", where=f"{place.host}:{place.port}", found=str(error), hint=hint
        ) from error
    return listener
