"""The commands `segray sheet` and `segray draw`, which draw the masks of a label set.

Knows arguments and how results are printed. segray.analytics.reports draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from segray._system import signals
from segray._system.streams import show
from segray.cli.analytics import AsOf, Version, moment
from segray.cli.options import Endpoint, Json, Root, show_json

MinScore = Annotated[
    float, typer.Option(min=0, max=1, help="Smallest score of the instances that are drawn. 0 draws all.")
]
_SHOWN = 15


def sheet(
    root: Root,
    out: Annotated[Path, typer.Argument(metavar="PNG", help="Picture to write.")] = Path("contact-sheet.png"),
    count: Annotated[int, typer.Option(min=1, max=400, help="Largest number of images.")] = 16,
    columns: Annotated[int, typer.Option(min=1, max=20, help="Number of images side by side.")] = 4,
    min_score: MinScore = 0.3,
    title: Annotated[str, typer.Option(help="Heading. By default the root.")] = "",
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Draw a contact sheet: images with their masks in one picture.

    The command chooses crowded, uncertain, typical and large images in turn.
    """
    with signals.ending_at_once():
        from segray.analytics.reports.contact_sheet import contact_sheet
        from segray.label_set.current_pointer import resolved
        from segray.label_set.run_records import source_store
        from segray.sources.reader import by_uri
        from segray.storage.store import StorageOptions, Store

    options = StorageOptions(endpoint_url=endpoint_url)
    label_set, left_out = resolved(root, options), dict[str, str]()
    keys = contact_sheet(
        label_set,
        out,
        read=by_uri(source_store(Store(options), label_set)),
        columns=columns,
        count=count,
        title=title,
        score_threshold=min_score,
        on_undrawn=lambda key, error: left_out.update({key: str(error).partition("\n")[0]}),
        endpoint_url=endpoint_url,
    )
    if as_json:
        show_json({"sheet": out, "images": keys, "min_score": min_score, "left_out": left_out})
    else:
        show("\n".join([f"{out}: {len(keys)} images{_shown_scores(min_score)}", *_left_out_lines(left_out)]))


def draw(
    root: Root,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the pictures. It may be empty.")],
    image: Annotated[
        list[str], typer.Option("--image", metavar="KEY", help="Key of an image to draw. Repeatable.")
    ] = [],  # noqa: B006
    count: Annotated[int, typer.Option(min=1, help="Largest number of images, chosen as for a contact sheet.")] = 100,
    class_name: Annotated[
        list[str], typer.Option("--class", help="Name of a class to draw. By default all classes. Repeatable.")
    ] = [],  # noqa: B006
    min_score: MinScore = 0.3,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Draw images with their masks at full size, one JPEG file each."""
    with signals.ending_at_once():
        from segray.analytics.reports.drawn_images import draw_images

    drawn = draw_images(
        root,
        out,
        keys=image,
        count=count,
        classes=class_name,
        min_score=min_score,
        version=version,
        as_of=moment(as_of),
        endpoint_url=endpoint_url,
    )
    if as_json:
        show_json({"folder": drawn.folder, "files": drawn.files, "left_out": drawn.left_out})
    else:
        first = f"{drawn.folder}: {len(drawn.files)} images{_shown_scores(min_score)}"
        show("\n".join([first, *_left_out_lines(drawn.left_out)]))


def _shown_scores(min_score: float) -> str:
    """Return which instances are drawn; "" for all."""
    return f", instances of score {min_score:g} and more (--min-score 0 draws all)" if min_score else ""


def _left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """Return the first images that could not be drawn, and why."""
    if not left_out:
        return []
    lines = [f"  {key}: {reason}" for key, reason in list(left_out.items())[:_SHOWN]]
    more = len(left_out) - len(lines)
    return [f"not drawn: {len(left_out)}", *lines, *([f"  and {more} more"] if more else [])]
