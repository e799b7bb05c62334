"""The `segray` command: arguments in, exit codes out.

Knows options, exit codes and where output goes. Other modules do the work, and are imported when a command is called.

Exit codes: 0 all done, 1 a fault of segray, 2 usage or configuration, 3 incomplete, 4 a quality gate failed, 130
interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import segray
from segray._compat import usage_message
from segray._dates import duration
from segray._system import child_processes, host_process, signals, streams
from segray._system.streams import show
from segray.cli import analytics, models
from segray.cli import remote as remote_cli
from segray.cli.options import (
    Configuration,
    Day,
    Endpoint,
    Json,
    Log,
    LogFormat,
    Overrides,
    Root,
    load,
    show_json,
)
from segray.errors import InfrastructureError, Interrupted, SegrayError, UserError

if TYPE_CHECKING:
    from segray.config import Config
    from segray.execution.run import Summary
    from segray.execution.worker_pool import WorkerPool
    from segray.execution.worker_spec import WorkerSpec
    from segray.label_set.maintenance import Maintenance
    from segray.label_set.promotion import Promotion
    from segray.label_set.validation import Report
    from segray.monitoring.session import Console


def _print_version(asked: bool) -> None:
    if asked:
        show(segray.__version__)
        raise typer.Exit


app = typer.Typer(
    help="Label whole image datasets with instance masks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(models.app, name="models")
app.add_typer(analytics.app)


@app.callback()
def segray_options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print segray's version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Declare the options that belong to no command."""


app.command()(remote_cli.status)
app.command()(remote_cli.submit)


@app.command("init")
def write_configuration(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write. It must not exist.")] = Path(
        "segray.yaml"
    ),
    every_key: Annotated[bool, typer.Option("--all", help="Write every key with its meaning and default.")] = False,
) -> None:
    """Write a commented configuration, ready for `segray label`."""
    with signals.ending_at_once():
        from segray import config

    config.write_template(file, every_key=every_key)
    show(f"wrote {file}\nnext:  edit source.uri, output.root and model; then: segray label {file}")


@app.command()
def label(
    configuration: Configuration,
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody writes it
    limit: Annotated[int | None, typer.Option(min=1, help="Label at most so many images, the first by key.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be labelled; write nothing.")] = False,
    as_of: Day = None,
    log_format: Log = LogFormat.TEXT,
    as_json: Json = False,
) -> None:
    """Bring a label set up to date with its dataset. The same command again resumes it."""
    with signals.ending_at_once():
        from segray.cli import ray_jobs
        from segray.execution import run
        from segray.monitoring import console, json_log, session

    screen = json_log.Json() if log_format is LogFormat.JSON else console.listener()
    try:
        ray_jobs.check_version()
        chosen = load(configuration, overrides, as_of)
        with session.observed(chosen, screen) as listener:
            summary = run.label(chosen, listener, start_workers, limit=limit, dry_run=dry_run)
        page = None if dry_run else session.report(chosen, summary, screen)
        _show_run(summary, page, screen, dry_run=dry_run, as_json=as_json)
    except SegrayError as exc:
        if not isinstance(screen, json_log.Json):
            raise
        screen.error(exc)
        raise typer.Exit(exc.exit_code) from exc
    raise typer.Exit(summary.exit_code)


def _show_run(summary: Summary, page: str | None, screen: Console, *, dry_run: bool, as_json: bool) -> None:
    """Print the end of a run in the requested forms."""
    from segray.monitoring import console, json_log

    if isinstance(screen, json_log.Json):
        screen.summary(summary)
    elif json_log.SUMMARY_ENV in os.environ:
        show(json_log.summary_line(summary))
    if as_json:
        show_json({**console.as_record(summary), "report": page})
    elif not isinstance(screen, json_log.Json):
        show("dry run: nothing was written" if dry_run else console.describe(summary))
        if page is not None:
            show(f"report:  {page}")


@app.command()
def plan(
    configuration: Configuration,
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody writes it
    as_of: Day = None,
    as_json: Json = False,
) -> None:
    """Say what a run would take, from its listing and a sample labelled on this machine; label and write nothing."""
    with signals.ending_at_once():
        from segray.execution import estimate as job
        from segray.monitoring import console

    chosen = load(configuration, overrides, as_of)
    found = job.estimate(chosen, console.Plain())
    if as_json:
        show_json(asdict(found))
    else:
        show(job.describe(found, duration))


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to work.")] = Path("segray-quickstart"),
    count: Annotated[int, typer.Option(min=1, help="How many scenes to draw.")] = 64,
    as_json: Json = False,
) -> None:
    """Draw sticker scenes, label them on this machine, compare with the truth, draw and tell what came out."""
    with signals.ending_at_once():
        from segray.cli import quickstart as job
        from segray.monitoring import console

    with console.listener() as listener:
        result = job.quickstart(folder, count, listener, start_workers)
    if as_json:
        record = {
            "summary": console.as_record(result.summary),
            "evaluation": asdict(result.evaluation),
            "sheet": str(result.sheet),
            "report": str(result.page),
        }
        show_json(record)
    else:
        show(console.describe(result.summary))
        show(f"look at: {result.sheet}  {result.page}")
        show(analytics.describe_evaluation(result.evaluation))
    raise typer.Exit(result.summary.exit_code)


@app.command()
def verify(
    root: Root,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Check every promise of a label set; change nothing. Exit code 3 when one is broken."""
    with signals.ending_at_once():
        from segray.label_set.current_pointer import resolved
        from segray.label_set.validation import verify as check
        from segray.storage.store import StorageOptions

    options = StorageOptions(endpoint_url=endpoint_url)
    report = check(resolved(root, options), options)
    if as_json:
        show_json(asdict(report))
    else:
        show(describe_report(report))
    raise typer.Exit(report.exit_code)


@app.command()
def maintain(
    root: Root,
    grace_hours: Annotated[int, typer.Option(min=0, help="For how long replaced files are kept for readers.")] = 24,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Compact small files, delete what nothing needs, checkpoint the logs. Safe at any moment, beside anything.

    Until replaced files are deleted, readers of the plain glob count their rows twice; readers of the log never do.
    """
    with signals.ending_at_once():
        from segray.label_set.current_pointer import resolved
        from segray.label_set.maintenance import maintain as tidy
        from segray.storage.store import StorageOptions

    options = StorageOptions(endpoint_url=endpoint_url)
    done = tidy(resolved(root, options), options, grace_hours=grace_hours)
    if as_json:
        show_json(asdict(done))
    else:
        show(describe_maintenance(done))
    raise typer.Exit(done.exit_code)


@app.command()
def promote(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="A label set; its siblings are the other ones.")],
    force: Annotated[bool, typer.Option("--force", help="Even if it is broken, incomplete or smaller.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and tell; write nothing.")] = False,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Make PARENT/CURRENT name this label set, for all readers of PARENT/CURRENT at once."""
    with signals.ending_at_once():
        from segray.label_set.promotion import promote as point
        from segray.storage.store import StorageOptions

    done = point(root, StorageOptions(endpoint_url=endpoint_url), force=force, dry_run=dry_run)
    if as_json:
        show_json(asdict(done))
    else:
        show(describe_promotion(done))


@app.command()
def bench(
    folder: Annotated[Path | None, typer.Option(help="Where to work, and what to keep. None: a temporary one.")] = None,
    images: Annotated[str | None, typer.Option(help="A local folder, glob or manifest; none: draw scenes.")] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Of the scenes.")] = "640x480",
    count: Annotated[int | None, typer.Option(min=1, help="Of images; none: as many as take 20 s to infer.")] = None,
    model_name: Annotated[
        str, typer.Option(help="As model.name; yardstick: the reference model, YOLACT with random weights.")
    ] = "yardstick",
    model_path: Annotated[str | None, typer.Option(help="As model.path.")] = None,
    model_form: Annotated[str | None, typer.Option(help="As model.form.")] = None,
    precision: Annotated[str, typer.Option(help="As model.precision.")] = "auto",
    instances: Annotated[int, typer.Option(min=1, help="At most so many an image.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds, of which medians are taken.")] = 3,
    only: Annotated[
        str,
        typer.Option(
            help="Variants: a upper bound, b lower bound, c segray, d Ray Data, e script, r segray from --remote."
        ),
    ] = "abcde",
    remote: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="Object storage to copy the images to, for the variant r.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody writes it
    as_json: Json = False,
) -> None:
    """Compare segray on this machine with a bare inference loop, a Ray Data job and a script, on the same images."""
    with signals.ending_at_once():
        from segray.bench import report
        from segray.bench import runner as job
        from segray.monitoring import console

    options = job.BenchOptions(
        images, job.size_hw(size), count, model_name, model_path, model_form, precision, instances, repeats,
        job.check_letters(only), tuple(overrides), remote,
    )  # fmt: skip
    workload, runs = job.bench(options, folder, console.Plain().note)
    record = report.record(workload, runs)
    if as_json:
        show_json(record)
    else:
        show(report.describe(record))


@app.command()
def version() -> None:
    """Print segray's version."""
    show(segray.__version__)


def describe_report(report: Report, most: int = 20) -> str:
    """Return what was checked, the warnings, and the first `most` violations."""
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items() if name != "batch")
    lines = [f"checked as of batch {report.counts['batch']}: {counts}"]
    lines += [f"warning: {warning}" for warning in report.warnings]
    lines += [f"{found.kind}: {found.where}: {found.found}" for found in report.violations[:most]]
    count = len(report.violations)
    shown = f", the first {most} shown" if count > most else ""
    return "\n".join([*lines, f"{count} violations{shown}" if count else "every promise is kept"])


def describe_promotion(done: Promotion) -> str:
    """Return the pointer's former and present target, and the doubts about it."""
    says = f"names {done.current}" if done.written or done.before == done.current else f"would name {done.current}"
    lines = [f"{done.pointer} {says}; before: {done.before or 'nothing'}"]
    return "\n".join([*lines, *(f"despite: {doubt}" for doubt in done.doubts)])


def describe_maintenance(done: Maintenance) -> str:
    """Return what was done, one line for each fact."""
    lines = [f"{name}: {old} files compacted into {new}" for name, (old, new) in done.compacted.items()]
    lines += [f"{name}: left as it was; others kept committing, so run it again" for name in done.conflicts]
    for name, count in done.deleted.items():
        lines.append(
            f"{name}: {count} replaced or abandoned files deleted, {done.waiting[name]} within their grace time"
        )
    return "\n".join([*lines, f"{done.staged_deleted} staged files of finished runs deleted"])


def start_workers(spec: WorkerSpec, chosen: Config) -> WorkerPool:
    """Return workers on the configured Ray cluster."""
    try:
        with host_process.kept():  # The import of Ray changes the process too.
            from segray.execution import ray_pool
        return ray_pool.start(spec, chosen)
    except Exception as exc:  # A KeyboardInterrupt during an import or Ray's start may become any exception.
        if signals.came():
            raise KeyboardInterrupt from exc
        raise


def main() -> None:
    """Run the command of this process and end the process with its exit code.

    The process ends without interpreter teardown. Native libraries may abort there and change the code.
    """
    before: frozenset[int] | None = None
    try:
        host_process.silence_videos()
        before = child_processes.adopt()
        code = run(sys.argv[1:])
        signals.ignore()
    except KeyboardInterrupt:  # Before the command began, or while it printed its end.
        code = _interrupted()
    if before is not None:
        child_processes.end(before)  # Ray's agents check only once a minute whether their node lives.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    try:
        # Without standalone mode a command's typer.Exit comes back as its code.
        code = int(app(arguments, standalone_mode=False) or 0)
    except Interrupted as exc:
        return _failed(exc)
    except SegrayError as exc:
        return _interrupted() if signals.came() else _failed(exc)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except SystemExit as exc:  # Typer turns any EPIPE into one, and Ray a SIGTERM.
        return _interrupted() if signals.came() else _unexpected(exc.__context__ or exc)
    except Exception as exc:
        return _interrupted() if signals.came() else _unexpected(exc)
    if code == Interrupted.exit_code:  # Typer turns a KeyboardInterrupt into this code, without a message.
        return _interrupted()
    return code or _written()


def _written() -> int:
    """Return the exit code of a command that succeeded.

    The code is not 0 if standard output has lost something.
    """
    try:
        streams.check()
    except InfrastructureError as exc:
        return _failed(exc)
    return 0


def _failed(exc: SegrayError) -> int:
    streams.tell(f"error: {exc}")
    return exc.exit_code


def _interrupted() -> int:
    return _failed(signals.INTERRUPTED)


def _usage_hint(exc: BaseException) -> str:
    """Return the hint for wrong usage: for a missing CONFIG, the command that writes one."""
    if isinstance(exc, typer.BadParameter) and exc.param is not None and exc.param.name == "configuration":
        return "segray init FILE writes a configuration"
    return "segray --help"


def _unexpected(exc: BaseException) -> int:
    if (message := usage_message(exc)) is not None:
        streams.tell(f"error: {message}\n  do:    {_usage_hint(exc)}")
        return UserError.exit_code
    traceback.print_exception(exc)
    return SegrayError.exit_code
