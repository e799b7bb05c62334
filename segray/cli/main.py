"""The `segray` command: arguments in, exit codes out.

Knows options, exit codes and where output goes. Other modules do the work. A command imports them when it is called.

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
from segray._compat import is_request_for_help, usage_command, usage_message
from segray._dates import duration
from segray._system import child_processes, host_process, signals, streams
from segray._system.streams import show
from segray.cli import accuracy, analytics, models, pictures, tables, view
from segray.cli import remote as remote_cli
from segray.cli.examples import OrderedGroup, add_examples
from segray.cli.options import (
    Configuration,
    Day,
    Endpoint,
    Json,
    Log,
    LogFormat,
    ModelOption,
    Output,
    Overrides,
    Quiet,
    RetryFailed,
    RetryingCommand,
    Root,
    Source,
    load,
    show_json,
    with_home,
)
from segray.errors import InfrastructureError, Interrupted, SegrayError, UserError
from segray.execution.ray_start import start_workers

if TYPE_CHECKING:
    from segray.config import Config
    from segray.execution.run import Summary
    from segray.label_set.maintenance import Maintenance
    from segray.label_set.promotion import Promotion
    from segray.label_set.validation import Report
    from segray.monitoring.session import Console


class _ReportedError(Exception):
    """The end of a command whose error is printed already."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def _print_version(requested: bool) -> None:
    if requested:
        show(segray.__version__)
        raise typer.Exit


app = typer.Typer(
    help="Label whole image datasets with instance masks.",
    cls=OrderedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(models.app, name="models")
app.add_typer(analytics.app)


@app.callback()
def segray_options(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version of segray and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Declare the options that belong to no command."""


app.command()(tables.info)
app.command()(tables.sql)
app.command()(pictures.sheet)
app.command()(pictures.draw)
app.command()(view.view)
app.command()(accuracy.evaluate)
app.command()(accuracy.threshold)
app.command()(remote_cli.status)
app.command(cls=RetryingCommand)(remote_cli.submit)


@app.command("init")
def write_configuration(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write. The file must not exist yet.")] = Path(
        "segray.yaml"
    ),
    every_key: Annotated[bool, typer.Option("--all", help="Write every key, with its meaning and default.")] = False,
) -> None:
    """Write a commented configuration file for `segray label`."""
    with signals.ending_at_once():
        from segray import config

    config.write_template(file, every_key=every_key)
    show(
        f"wrote {file}\n"
        "next:  edit source.uri, output.root and model, and get the model with `segray models pull NAME`; then:\n"
        f"       segray label --config {file}"
    )


@app.command(cls=RetryingCommand)
def label(
    source: Source = None,
    output: Output = None,
    model: ModelOption = None,
    configuration: Configuration = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody writes it
    limit: Annotated[
        int | None, typer.Option(min=1, help="Largest number of images to label. The first images by key are taken.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the images that a run would label. Write nothing.")
    ] = False,
    retry_failed: RetryFailed = [],  # noqa: B006
    as_of: Day = None,
    log_format: Log = LogFormat.TEXT,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Label the images that have no row in the label set yet.

    The same command resumes an interrupted run, and labels new and changed images later.
    """
    with signals.ending_at_once():
        from segray.cli import ray_jobs
        from segray.execution import run
        from segray.monitoring import console, json_log, session

    screen = json_log.Json() if log_format is LogFormat.JSON else console.listener(quiet=quiet)
    try:
        ray_jobs.check_version()
        config = load(
            source, output, file=configuration, model=model, overrides=overrides, day=as_of, note=screen.note
        ).config
        if not dry_run:
            check_pools(config)
        with session.observed(config, screen) as listener:
            summary = run.label(
                config,
                listener,
                start_workers,
                limit=limit,
                dry_run=dry_run,
                retry_failed=retry_failed,
                exclusive=True,
            )
        report_uri = None if dry_run else session.report(config, summary, screen)
        _show_run(summary, report_uri, screen, dry_run=dry_run, as_json=as_json)
    except SegrayError as exc:
        if not isinstance(screen, json_log.Json):
            raise
        screen.error(exc)
        raise _ReportedError(exc.exit_code) from exc
    raise typer.Exit(summary.exit_code)


def _show_run(summary: Summary, report_uri: str | None, screen: Console, *, dry_run: bool, as_json: bool) -> None:
    """Print the end of a run in the requested forms."""
    from segray.monitoring import console, json_log

    if isinstance(screen, json_log.Json):
        screen.summary(summary)
    elif json_log.SUMMARY_ENV in os.environ:
        show(json_log.summary_line(summary))
    if as_json:
        show_json({**console.as_record(summary), "report": report_uri})
    elif not isinstance(screen, json_log.Json):
        show("dry run: nothing was written" if dry_run else console.describe(summary))
        if report_uri is not None:
            show(f"report:  {report_uri}")


@app.command()
def plan(
    source: Source = None,
    output: Output = None,
    model: ModelOption = None,
    configuration: Configuration = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody writes it
    as_of: Day = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Estimate time, machines, requests and storage of a run.

    The estimate comes from the listing and from a sample that is labelled on this machine. Nothing is written.
    """
    with signals.ending_at_once():
        from segray.execution import estimate
        from segray.monitoring import console

    screen = console.Quiet() if quiet else console.Plain()
    settings = load(source, output, file=configuration, model=model, overrides=overrides, day=as_of, note=screen.note)
    result = estimate.estimate(settings.config, screen)
    if as_json:
        show_json(asdict(result))
    else:
        show(estimate.describe(result, duration))


@app.command()
def quickstart(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for scenes, labels and results.")] = Path(
        "segray-quickstart"
    ),
    count: Annotated[int, typer.Option(min=1, help="Number of scenes to draw.")] = 64,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw scenes, label them, and compare labels and truth.

    The command runs on this machine. It also draws a contact sheet and writes a report.
    """
    with signals.ending_at_once():
        from segray.cli import quickstart as steps
        from segray.monitoring import console

    with console.listener(quiet=quiet) as listener:
        result = steps.quickstart(folder, count, listener, start_workers)
    if as_json:
        record = {
            "summary": console.as_record(result.summary),
            "evaluation": asdict(result.evaluation),
            "sheet": str(result.sheet),
            "report": str(result.page),
        }
        show_json(record)
    else:
        show(console.describe(result.summary, f"{result.sheet}  {result.page}"))
        show(accuracy.describe_evaluation(result.evaluation))
    raise typer.Exit(result.summary.exit_code)


@app.command()
def verify(
    root: Root,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Check every invariant of a label set. Change nothing.

    Exit code 3 means that an invariant is violated.
    """
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
    grace_hours: Annotated[
        int, typer.Option(min=0, help="Hours for which replaced files are kept, since readers may still use them.")
    ] = 24,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Compact small files and delete files that nothing needs.

    The command also checkpoints the logs. It may run at any time, beside runs and readers. Readers of the plain glob
    count the rows of replaced files twice until those files are deleted. Readers of the log never do.
    """
    with signals.ending_at_once():
        from segray.label_set.current_pointer import resolved
        from segray.label_set.maintenance import maintain as maintain_label_set
        from segray.storage.store import StorageOptions

    options = StorageOptions(endpoint_url=endpoint_url)
    result = maintain_label_set(resolved(root, options), options, grace_hours=grace_hours)
    if as_json:
        show_json(asdict(result))
    else:
        show(describe_maintenance(result))
    raise typer.Exit(result.exit_code)


@app.command()
def promote(
    root: Annotated[
        str, typer.Argument(metavar="ROOT", help="Folder or URL of the label set to promote, PARENT/NAME.")
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Promote the label set even if it is broken, incomplete or smaller.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the label set. Write nothing.")] = False,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Point PARENT/CURRENT to this label set.

    All readers of PARENT/CURRENT then read this label set.
    """
    with signals.ending_at_once():
        from segray.label_set.promotion import promote as promote_label_set
        from segray.storage.store import StorageOptions

    promotion = promote_label_set(root, StorageOptions(endpoint_url=endpoint_url), force=force, dry_run=dry_run)
    if as_json:
        show_json(asdict(promotion))
    else:
        show(describe_promotion(promotion))


@app.command()
def bench(
    folder: Annotated[
        Path | None, typer.Option(help="Folder for all files of the comparison. By default a temporary one.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Local folder, glob or manifest of images. By default scenes are drawn.")
    ] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of the drawn scenes, in pixels.")] = "640x480",
    count: Annotated[
        int | None, typer.Option(min=1, help="Number of images. By default as many as take about 20 s to infer.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="File or folder of a model that tells what it is, such as a YOLO's."),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            help="Model name, as model.name. By default yardstick, the reference model: YOLACT with random weights."
        ),
    ] = None,
    model_path: Annotated[str | None, typer.Option(help="File of the model, as model.path.")] = None,
    model_form: Annotated[str | None, typer.Option(help="Form of the model, as model.form.")] = None,
    precision: Annotated[str, typer.Option(help="Precision of the network, as model.precision.")] = "auto",
    instances: Annotated[int, typer.Option(min=1, help="Largest number of instances per image.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Number of rounds. The results are medians over the rounds.")] = 3,
    only: Annotated[
        str,
        typer.Option(
            help="Letters of the variants: a upper bound, b lower bound, c segray, d Ray Data, e script, f script with "
            "several requests, r segray from --remote."
        ),
    ] = "abcdef",
    remote: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="Object storage prefix that gets a copy of the images. Needed for r."),
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer reads it, nobody writes it
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure the speed of segray and of other programs.

    The other programs are a bare inference loop, a Ray Data job and two scripts. All label the same images with the
    same model on this machine.
    """
    with signals.ending_at_once():
        from segray.bench import report, runner
        from segray.monitoring import console

    name, path = runner.model_of(model, model_name, model_path)
    options = runner.BenchOptions(
        images, runner.size_hw(size), count, name, path, model_form, precision, instances, repeats,
        runner.check_letters(only), tuple(overrides), remote,
    )  # fmt: skip
    workload, runs = runner.bench(options, folder, (console.Quiet() if quiet else console.Plain()).note)
    record = report.record(workload, runs)
    if as_json:
        show_json(record)
    else:
        show(report.describe(record))


@app.command()
def version() -> None:
    """Print the version of segray."""
    show(segray.__version__)


add_examples(app, models.app, analytics.app)


def describe_report(report: Report, most: int = 20) -> str:
    """Return what was checked, the warnings, and the first `most` violations."""
    counts = ", ".join(_counted(count, name) for name, count in report.counts.items() if name != "batch")
    lines = [f"checked as of batch {report.counts['batch']}: {counts}"]
    lines += [f"warning: {warning}" for warning in report.warnings]
    lines += [f"{violation.kind}: {violation.where}: {violation.found}" for violation in report.violations[:most]]
    count = len(report.violations)
    if count == 0:
        return "\n".join([*lines, "no violations"])
    shown = f", the first {most} shown" if count > most else ""
    return "\n".join([*lines, f"{_counted(count, 'violations')}{shown}"])


def _counted(count: int, name: str) -> str:
    """Return a count with its name, such as "1 run" and "2 unlisted files". name: a plural with underscores."""
    words = name.replace("_", " ")
    return f"{count} {words.removesuffix('s') if count == 1 else words}"


def describe_promotion(promotion: Promotion) -> str:
    """Return the former and the present target of the pointer, and the doubts about the label set."""
    is_current = promotion.written or promotion.before == promotion.current
    verb = "names" if is_current else "would name"
    lines = [f"{promotion.pointer} {verb} {promotion.current}; before: {promotion.before or 'nothing'}"]
    return "\n".join([*lines, *(f"despite: {doubt}" for doubt in promotion.doubts)])


def describe_maintenance(result: Maintenance) -> str:
    """Return the result of maintenance, one fact per line."""
    lines = [f"{name}: {old} files compacted into {new}" for name, (old, new) in result.compacted.items()]
    lines += [
        f"{name}: not compacted, because other processes kept committing; run the same command again"
        for name in result.conflicts
    ]
    for name, count in result.deleted.items():
        lines.append(
            f"{name}: {count} replaced or abandoned files deleted, {result.waiting[name]} within their grace time"
        )
    if any(result.waiting.values()):
        lines.append("readers of the plain glob count the rows of these files too, until a later call deletes them")
    return "\n".join([*lines, f"{result.staged_deleted} staged files of finished runs deleted"])


def check_pools(config: Config) -> None:
    """Raise ConfigError for worker pools that can never start, before the source is listed."""
    with signals.ending_at_once():
        from segray.execution import pool_check

    pool_check.check_pools(config)


def main() -> None:
    """Run the command of this process and end the process with its exit code.

    The process ends without interpreter teardown. Native libraries may abort there and change the code.
    """
    earlier_children: frozenset[int] | None = None
    try:
        with signals.ending_in_order():
            host_process.silence_videos()
            earlier_children = child_processes.adopt_descendants()
            code = run(sys.argv[1:])
            signals.ignore()
    except KeyboardInterrupt:  # Before the command began, or while it printed its end.
        code = _report_interruption()
    if earlier_children is not None:
        # Ray's agents check only once a minute whether their node lives.
        child_processes.kill_children(earlier_children)
    streams.end(code)


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    try:
        # Without standalone mode a command's typer.Exit comes back as its code.
        code = int(app(with_home(arguments), prog_name="segray", standalone_mode=False) or 0)
    except _ReportedError as end:
        return end.exit_code
    except Interrupted as exc:
        return _report_error(exc)
    except SegrayError as exc:
        return _report_interruption() if signals.stop_requested() else _report_error(exc)
    except (KeyboardInterrupt, typer.Abort):
        return _report_interruption()
    except SystemExit as exc:  # Typer turns any EPIPE into one, and Ray a SIGTERM. Completion ends with 0.
        if exc.code == 0 and not signals.stop_requested():
            return _check_output()
        return _report_interruption() if signals.stop_requested() else _report_unexpected(exc.__context__ or exc)
    except Exception as exc:
        return _report_interruption() if signals.stop_requested() else _report_unexpected(exc)
    # Typer turns a KeyboardInterrupt into this code, without a message. A job that someone stopped has it too.
    if code == Interrupted.exit_code and signals.stop_requested():
        return _report_interruption()
    return code or _check_output()


def _check_output() -> int:
    """Return the exit code of a command that succeeded.

    The code is not 0 if standard output has lost something.
    """
    try:
        streams.check()
    except InfrastructureError as exc:
        return _report_error(exc)
    return 0


def _report_error(exc: SegrayError) -> int:
    streams.tell_error(exc)
    return exc.exit_code


def _report_interruption() -> int:
    return _report_error(signals.INTERRUPTED)


def _usage_hint(exc: BaseException) -> str:
    """Return the hint for wrong usage: for a missing CONFIG, the command that writes one."""
    if isinstance(exc, typer.BadParameter) and exc.param is not None and exc.param.name == "configuration":
        return "write a configuration with `segray init FILE`"
    command = usage_command(exc)
    return f"see `segray {command} --help`" if command else "see `segray --help`"


def _report_unexpected(exc: BaseException) -> int:
    if (message := usage_message(exc)) is not None:
        if is_request_for_help(exc):
            streams.tell(message)
            return UserError.exit_code
        return _report_error(UserError(message, hint=_usage_hint(exc)))
    streams.tell_error(SegrayError(f"{type(exc).__name__}: {exc}"), "".join(traceback.format_exception(exc)))
    return SegrayError.exit_code
