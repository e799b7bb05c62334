"""How a run goes, on a web page that asks for itself again.

Knows what a heartbeat holds and what of it people want to see; knows nothing of how often it is written, or where.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import segray
from segray.analytics.reports.html import figures, number, page, paragraph, size, table


def live(beat: Mapping[str, Any]) -> str:
    """How a run goes, as HTML that asks for itself again until the run has ended. beat: as heartbeat.json has it."""
    done, images, ended = int(beat["done"]), int(beat["images"]), bool(beat.get("ended"))
    labelled = beat["labelled"]
    head = [
        paragraph(f"Run {beat['run_id']}, driver on {beat['driver']['host']}", kind="soft"),
        f'<p><label for="done">{done:,} of {images:,} images, {done / max(1, images):.1%}</label><br>'
        f'<progress id="done" max="{max(1, images)}" value="{done}"></progress></p>',
        figures(
            [
                ("phase", "ended" if ended else beat["phase"]),
                ("images/s", number(beat["images_per_s"], 1)),
                ("minutes left", "-" if ended or beat["eta_s"] is None else number(beat["eta_s"] / 60, 1)),
                ("instances", number(labelled["instances"])),
                ("failed", number(labelled["failed"])),
                ("workers", number(beat["workers"])),
            ]
        ),
        paragraph(
            f"Written {beat['at']}."
            + (
                " The driver has ended."
                if ended
                else f" Written anew every {beat['every_s']:g} s; if it is much older,"
            )
            + ("" if ended else " look with segray status."),
            kind="soft",
        ),
    ]
    facts = [
        ("units", number(beat["units"])),
        ("units given out again", number(beat["retries"])),
        ("workers lost", number(beat["lost_workers"])),
        ("commits", number(beat["commits"])),
        ("bytes read", size(beat["bytes_read"])),
        ("images waiting", number(beat["waiting"])),
        ("images in flight", number(beat["in_flight"])),
    ]
    rows = [
        (each["worker"], each["host"], each["device"], number(each["images"]), number(each["images_per_s"], 1),
         number(each["in_flight"]), number(each["rss_mb"]),
         f"{each['longest']['stage']}, {each['longest']['s']:g} s" if each["longest"] else "-")
        for each in beat["slowest"]
    ]  # fmt: skip
    columns = ["worker", "host", "device", "images", "images/s", "in flight", "MiB", "oldest image"]
    parts = [("counts", "This process so far", table("What this process did", ["What", "Count"], facts, "-n"))]
    if rows:
        parts.append(("workers", "Workers", table("Workers, the slowest first", columns, rows, "---nnnn-")))
    title = f"{done / max(1, images):.0%} of a labelling run"
    foot = paragraph(f"segray {segray.__version__}")
    return page(title, "".join(head), parts, foot, None if ended else beat["every_s"])
