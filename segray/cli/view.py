"""The command `segray view`, which serves a page on which people look at a label set.

Knows arguments and what is printed. segray.view does the work.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from segray._system import signals
from segray._system.streams import show, tell
from segray.cli.analytics import Version
from segray.cli.options import Endpoint, Quiet, Root
from segray.limits import CONFIDENT_SCORE
from segray.view.judgements import DEFAULT_FILE


def view(
    root: Root,
    host: Annotated[str, typer.Option(help="Address to listen at. Beyond this machine the page needs a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for a free one.")] = 0,
    judgements: Annotated[
        Path, typer.Option(metavar="FILE", help="File for what you say of instances, one JSON record a line.")
    ] = Path(DEFAULT_FILE),
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Smallest score of masks that are drawn at first.")] = (
        CONFIDENT_SCORE
    ),
    version: Version = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    endpoint_url: Endpoint = None,
    quiet: Quiet = False,
) -> None:
    """Look at a label set in a browser: filter and sort images, see each mask, judge instances.

    The command prints the address of the page and serves it until Ctrl-C. It never writes to the label set.
    """
    with signals.ending_at_once():
        from segray.view.serve import Place
        from segray.view.serve import view as serve

    with serve(
        root,
        place=Place(host, port),
        judgements=judgements,
        min_score=min_score,
        version=version,
        browser=browser,
        tell=(lambda text: None) if quiet else tell,
        endpoint_url=endpoint_url,
    ) as page:
        show(page.address)
        if not quiet:
            tell("press Ctrl-C to end")
        with contextlib.suppress(KeyboardInterrupt):
            page.wait()
