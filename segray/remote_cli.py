"""`segray status` and `segray submit`: runs that go on elsewhere.

Knows arguments and how answers are shown; what is asked is in status.py and submit.py.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from segray.console import duration
from segray.status import Status
from segray.status import status as look
from segray.storage import StorageOptions

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def status(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="A label set: output.root of its runs.")],
    endpoint_url: Annotated[str | None, typer.Option(help="Of the object store, if it is not AWS.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds until the run ends.")] = False,
    as_json: Json = False,
) -> None:
    """How the latest run stands, from any terminal: done, rate, time left, failures, slowest workers.

    Exit code 0: a run is going on, or nothing is left of the last one. 3: something is left and nobody works at it.
    """
    options = StorageOptions(endpoint_url=endpoint_url)
    while True:
        found = look(root, options)
        if as_json:
            print(json.dumps(found.as_json(), indent=None if watch else 2, sort_keys=True), flush=True)
        else:
            print(describe_status(found), flush=True)
        if not watch or found.state != "live":
            raise typer.Exit(found.exit_code)
        time.sleep(float(found.beat.get("every_s", 5.0)))
        if not as_json:
            print(file=sys.stdout)


def describe_status(found: Status) -> str:
    """What a person wants to know, most important first."""
    if found.state == "none":
        return f"{found.root}: a label set in which no run was begun"
    lines = [f"run {found.run_id}: {_headline(found)}"]
    if found.skew_s is not None:
        lines.append(f"note:    this machine's clock is {duration(found.skew_s)} or more behind the driver's")
    if found.beat:
        lines += _beat_lines(found.beat, live=found.state == "live")
    else:
        counts = found.run.get("labelled") or {}
        lines.append(f"plan:    {found.run.get('images', '?')} images; {_counts(counts)} by the last process")
    lines.append(f"source:  {found.run.get('source', '?')}")
    if found.state == "gone":
        lines.append("do:      run the same command again: it resumes")
    elif found.state in ("interrupted", "stopped", "superseded"):
        lines.append("do:      run the same command again to go on")
    return "\n".join(lines)


def _headline(found: Status) -> str:
    match found.state:
        case "live":
            return str(found.beat.get("phase", "starting"))
        case "gone":
            silent = duration(found.silent_s) if found.silent_s else "a while"
            return f"no heartbeat for {silent}: the driver is probably gone"
        case "done":
            return f"done at {found.run.get('updated', '?')}"
        case _:
            return f"{found.state} at {found.run.get('updated', '?')}; work is left"


def _beat_lines(beat: Mapping[str, Any], *, live: bool) -> list[str]:
    images, done = int(beat["images"]), int(beat["done"])
    share = f"{done / images:.0%}" if images else "all"
    progress = f"done:    {done} of {images} images ({share})"
    if live:
        progress += f", {beat['images_per_s']:.1f} images/s, {duration(beat['eta_s'])} left"
    driver = beat.get("driver", {})
    where = f"{driver.get('host', '?')}, process {driver.get('pid', '?')}"
    job = f", job {driver['job']}" if driver.get("job") else ""
    lines = [
        progress,
        f"failed:  {beat['labelled']['failed']} of {sum(beat['labelled'][k] for k in ('ok', 'empty', 'failed'))}"
        f" by this driver; {beat['retries']} units given out again, {beat['lost_workers']} workers lost",
        f"driver:  {where}{job}",
    ]
    if live:
        lines.append(f"workers: {beat['workers']}, slowest first")
        lines += [_worker(each) for each in beat.get("slowest", [])[:5]]
    return lines


def _worker(each: Mapping[str, Any]) -> str:
    longest = each.get("longest")
    at = f", longest {longest['s']:.0f} s in {longest['stage']}" if longest else ""
    rate = f"{each['images_per_s']:.1f} images/s"
    return f"  {each['host']} ({each['device']}): {rate}, {each['in_flight']} in flight{at}, {each['rss_mb']} MiB"


def _counts(labelled: Mapping[str, Any]) -> str:
    return ", ".join(f"{labelled.get(name, 0)} {name}" for name in ("ok", "empty", "failed"))
