"""The commands `segray status` and `segray submit`, for runs on other machines.

Knows arguments and how answers are printed. monitoring/status.py and ray_jobs.py get the answers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segray._dates import duration
from segray._system import signals, streams
from segray._system.streams import show, tell
from segray.cli.options import Configuration, Day, Endpoint, Json, Log, LogFormat, Overrides, load, show_json
from segray.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from segray.monitoring.status import Status

_LATE_S = 20.0


def status(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="A label set: output.root of its runs.")],
    endpoint_url: Endpoint = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds until the run ends.")] = False,
    as_json: Json = False,
) -> None:
    """How the latest run stands, from any terminal: done, rate, time left, failures, slowest workers.

    Exit code 0: a run is going on, or nothing is left of the last one. 3: something is left and nobody works at it.
    """
    with signals.ending_at_once():
        from segray.monitoring.status import status as look
        from segray.storage.store import StorageOptions

    options = StorageOptions(endpoint_url=endpoint_url)
    while True:
        found = look(root, options)
        if as_json:
            show_json(found.as_json(), indent=None if watch else 2)
        else:
            show(describe_status(found))
        if not watch or found.state != "live" or streams.reader_gone():
            raise typer.Exit(found.exit_code)
        time.sleep(float(found.beat.get("every_s", 5.0)))
        if not as_json:
            show("")


def describe_status(found: Status) -> str:
    """Return the state of a run for a person, most important first."""
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
            silent = f", but no heartbeat for {duration(found.silent_s)}" if (found.silent_s or 0) > _LATE_S else ""
            return f"{found.beat.get('phase', 'starting')}{silent}"
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


def submit(
    configuration: Configuration,
    address: Annotated[str, typer.Option(help="Of the cluster's dashboard: http://HEAD:8265.")],
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody writes it
    limit: Annotated[int | None, typer.Option(min=1, help="As for `segray label`.")] = None,
    as_of: Day = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Come back as soon as the job exists.")] = False,
    python: Annotated[str, typer.Option(help="The interpreter that has segray, on the cluster's head.")] = "python",
    driver_cpus: Annotated[float, typer.Option(min=0, help="CPUs that Ray sets aside for the driver.")] = 0.0,
    driver_resource: Annotated[
        list[str], typer.Option(metavar="NAME=AMOUNT", help="Further Ray resources of the driver's node; repeatable.")
    ] = [],  # noqa: B006
    metadata: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="Shown with the job in Ray's dashboard; repeatable.")
    ] = [],  # noqa: B006
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds until the driver must have begun.")] = 60.0,
    log_format: Log = LogFormat.TEXT,
    as_json: Json = False,
) -> None:
    """Run `segray label CONFIG` as a job on a Ray cluster, follow it, and end with its exit code.

    The token is taken from RAY_AUTH_TOKEN. While a job of the same label set is under way another is refused with exit
    code 3; Ctrl-C stops following, the job goes on.
    """
    with signals.ending_at_once():
        from segray.cli import ray_jobs as submission

    arguments = ["--limit", str(limit)] if limit is not None else []
    request = submission.Request(
        configuration,
        load(configuration, overrides, as_of),
        overrides,
        arguments,
        python,
        driver_cpus,
        {name: _amount(name, value) for name, value in _pairs(driver_resource, "--driver-resource").items()},
        _pairs(metadata, "--metadata"),
        log_format,
    )
    dashboard = submission.Dashboard(address)
    job = submission.check(request, dashboard)
    submission.start(request, dashboard, job)
    tell(f"job {job} on {dashboard.address}: {request.entrypoint}")
    if no_wait:
        outcome = submission.JobOutcome(job, "SUBMITTED", 0)
    else:
        try:
            outcome = submission.follow(dashboard, job, start_timeout, tell if as_json else _follow)
        except KeyboardInterrupt:
            raise Interrupted(
                "not followed any more; the job goes on",
                where=job,
                hint=f"`ray job logs -f {job}` follows it, `ray job stop {job}` ends it",
            ) from None
    tell(f"job {job}: {outcome.status.lower()}{': ' * bool(outcome.message)}{outcome.message}")
    if as_json:
        show_json(asdict(outcome))
    raise typer.Exit(outcome.exit_code)


def _follow(line: str) -> None:
    """Print a line of the job's log.

    A line that standard output does not take is reported at the end, so following goes on.
    """
    print(line, flush=True)


def _pairs(given: list[str], option: str) -> dict[str, str]:
    split = [each.partition("=") for each in given]
    if wrong := [each for each, (name, equals, _) in zip(given, split, strict=True) if not name or not equals]:
        raise ConfigError(f"{option} takes NAME=VALUE", found=wrong[0])
    return {name: value for name, _, value in split}


def _amount(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(
            "the amount of a resource is a number", where="--driver-resource", found=f"{name}={value}"
        ) from None
