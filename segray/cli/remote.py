"""The commands `segray status` and `segray submit`, for runs on other machines.

Knows arguments and how answers are printed. monitoring/status.py and ray_jobs.py get the answers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segray._dates import duration
from segray._system import signals, streams
from segray._system.streams import show, tell
from segray.cli.options import (
    RETRY_FAILED,
    Configuration,
    Day,
    Endpoint,
    Json,
    Log,
    LogFormat,
    ModelOption,
    Output,
    Overrides,
    RetryFailed,
    Source,
    load,
    show_json,
)
from segray.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from segray.monitoring.status import Status

_LATE_S = 20.0


def status(
    root: Annotated[
        str, typer.Argument(metavar="ROOT", help="Folder or URL of the label set, output.root of its runs.")
    ],
    endpoint_url: Endpoint = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print the state every few seconds until the run ends.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the progress of the latest run.

    The command prints images done, rate, time left, failures and the slowest workers. It works on any machine that
    can read the label set. Exit code 0 means that a run is live, or that the last run is done. Exit code 3 means
    that images are left and no driver works, or that no run of the label set is recorded.
    """
    with signals.ending_at_once():
        from segray.monitoring.status import status as read_status
        from segray.storage.store import StorageOptions

    options = StorageOptions(endpoint_url=endpoint_url)
    while True:
        run_status = read_status(root, options)
        if as_json:
            show_json(run_status.as_json(), indent=None if watch else 2)
        else:
            show(describe_status(run_status))
        if not watch or run_status.state != "live" or streams.reader_gone():
            raise typer.Exit(run_status.exit_code)
        time.sleep(float(run_status.beat.get("every_s", 5.0)))
        if not as_json:
            show("")


def describe_status(run_status: Status) -> str:
    """Return the state of a run for a person, most important first."""
    if run_status.state == "none":
        return f"{run_status.root}: a label set without a run\ndo:      run `segray label` to label its source"
    lines = [f"run {run_status.run_id}: {_headline(run_status)}"]
    if run_status.skew_s is not None:
        lines.append(f"note:    this machine's clock is {duration(run_status.skew_s)} or more behind the driver's")
    if run_status.beat:
        lines += _beat_lines(run_status.beat, live=run_status.state == "live")
    else:
        counts = run_status.run.get("labelled") or {}
        lines.append(f"plan:    {run_status.run.get('images', '?')} images; {_counts(counts)} by the last process")
    lines.append(f"source:  {run_status.run.get('source', '?')}")
    if run_status.state in ("gone", "interrupted", "stopped", "superseded"):
        lines.append("do:      run the same command again to resume")
    return "\n".join(lines)


def _headline(run_status: Status) -> str:
    match run_status.state:
        case "live":
            phase = f"{run_status.beat.get('phase', 'starting')}"
            silent_s = run_status.silent_s or 0
            return f"{phase}, but no heartbeat for {duration(silent_s)}" if silent_s > _LATE_S else phase
        case "gone":
            silent = duration(run_status.silent_s) if run_status.silent_s else "a while"
            return f"no heartbeat for {silent}: the driver is probably gone"
        case "done":
            return f"done at {run_status.run.get('updated', '?')}"
        case _:
            return f"{run_status.state} at {run_status.run.get('updated', '?')}; work is left"


def _beat_lines(beat: Mapping[str, Any], *, live: bool) -> list[str]:
    images, done = int(beat["images"]), int(beat["done"])
    share = f"{done / images:.0%}" if images else "all"
    progress = f"done:    {done} of {images} images ({share})"
    if live:
        progress += f", {beat['images_per_s']:.1f} images/s, {duration(beat['eta_s'])} left"
    driver = beat.get("driver", {})
    process = f"{driver.get('host', '?')}, process {driver.get('pid', '?')}"
    job = f", job {driver['job']}" if driver.get("job") else ""
    lines = [
        progress,
        f"failed:  {beat['labelled']['failed']} of {sum(beat['labelled'][k] for k in ('ok', 'empty', 'failed'))}"
        f" by this driver; {beat['retries']} units given out again, {beat['lost_workers']} workers lost",
        f"driver:  {process}{job}",
    ]
    if live:
        lines.append(f"workers: {beat['workers']}, slowest first")
        lines += [_worker_line(worker) for worker in beat.get("slowest", [])[:5]]
    return lines


def _worker_line(worker: Mapping[str, Any]) -> str:
    longest = worker.get("longest")
    at = f", longest {longest['s']:.0f} s in {longest['stage']}" if longest else ""
    rate = f"{worker['images_per_s']:.1f} images/s"
    load = f"{worker['in_flight']} in flight{at}, {worker['rss_mb']} MiB"
    return f"  {worker['host']} ({worker['device']}): {rate}, {load}"


def _counts(labelled: Mapping[str, Any]) -> str:
    return ", ".join(f"{labelled.get(name, 0)} {name}" for name in ("ok", "empty", "failed"))


def submit(
    address: Annotated[str, typer.Option(help="Address of the cluster's dashboard: http://HEAD:8265.")],
    source: Source = None,
    output: Output = None,
    model: ModelOption = None,
    configuration: Configuration = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody writes it
    limit: Annotated[
        int | None, typer.Option(min=1, help="Largest number of images to label, as for `segray label`.")
    ] = None,
    retry_failed: RetryFailed = [],  # noqa: B006
    as_of: Day = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return as soon as the job exists.")] = False,
    python: Annotated[str, typer.Option(help="Python interpreter that has segray, on the cluster's head.")] = "python",
    driver_cpus: Annotated[float, typer.Option(min=0, help="Number of CPUs that Ray reserves for the driver.")] = 0.0,
    driver_resource: Annotated[
        list[str], typer.Option(metavar="NAME=AMOUNT", help="Further Ray resource that the driver needs. Repeatable.")
    ] = [],  # noqa: B006
    metadata: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="Value that Ray's dashboard shows with the job. Repeatable.")
    ] = [],  # noqa: B006
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Longest wait for the start of the driver, in seconds.")
    ] = 60.0,
    log_format: Log = LogFormat.TEXT,
    as_json: Json = False,
) -> None:
    """Run `segray label` as a job on a Ray cluster.

    The command follows the job and ends with the exit code of the job. RAY_AUTH_TOKEN holds the token. While a job of
    the same label set runs, a second job is refused with exit code 3. Ctrl-C stops following. The job goes on.
    """
    with signals.ending_at_once():
        from segray.cli import ray_jobs as submission

    arguments = ["--limit", str(limit)] if limit is not None else []
    arguments += [f"{RETRY_FAILED}={stage}" for stage in retry_failed]
    settings = load(source, output, file=configuration, model=model, overrides=overrides, day=as_of, note=tell)
    request = submission.Request(
        settings.file,
        settings.config,
        settings.overrides,
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
            outcome = submission.follow(dashboard, job, start_timeout, partial(streams.show_line, in_log=as_json))
        except KeyboardInterrupt:
            raise Interrupted(
                "not followed any more; the job goes on",
                where=job,
                hint=f"`{dashboard.command('logs -f', job)}` follows it, `{dashboard.command('stop', job)}` ends it",
            ) from None
    reason = f": {outcome.message}" if outcome.message else ""
    tell(f"job {job}: {outcome.status.lower()}{reason}")
    if as_json:
        show_json(asdict(outcome))
    raise typer.Exit(outcome.exit_code)


def _pairs(texts: list[str], option: str) -> dict[str, str]:
    """Return the values by name of texts such as NAME=VALUE."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"{option} takes NAME=VALUE", found=text)
        values[name] = value
    return values


def _amount(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(
            "the amount of a resource is a number", where="--driver-resource", found=f"{name}={value}"
        ) from None
