"""The commands `segray models ...`: list, inspect, download, convert and quantize models.

Knows arguments and how results are printed. segray.models.zoo has the facts. pull, inspect_model and quantize of
segray.conversion do the work.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segray._system import signals
from segray._system.streams import show as show_text
from segray._system.streams import tell
from segray.cli.options import Endpoint, Json, show_json
from segray.errors import ConfigError
from segray.models import zoo as catalogue
from segray.models.zoo import CATALOGUE, File, FormName, ZooModel

if TYPE_CHECKING:
    from segray.conversion.inspect_model import Fit, Inspection
    from segray.conversion.pull import Callbacks, InstalledModel
    from segray.conversion.quantize import Quantised
    from segray.models import resolve

app = typer.Typer(
    help="List, fetch, convert, inspect and quantise models.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `segray models list` shows it.")]
Plain = Annotated[bool, typer.Option("--plain", help="Leave a TensorFlow graph as OpenVINO converts it.")]

_LINE_S = 5.0
_GATE = 4


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """Every model that segray can decode, with its size, average precision and licence."""
    if as_json:
        show_json({"models": [_record(entry) for entry in CATALOGUE.values()]})
    else:
        show_text(_table(CATALOGUE.values()))


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """All that is known of one model: where it is published, how to convert it, what its card has wrong."""
    entry = catalogue.find(name, "NAME")
    if as_json:
        show_json(_record(entry))
    else:
        show_text(describe(entry))


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="IR, ONNX, frozen graph, SavedModel folder, .pth.")],
    as_json: Json = False,
) -> None:
    """Which model a file is, what goes in and out, what it needs, or what it lacks. Exit code 2 if it fits none."""
    with signals.ending_at_once():
        from segray.conversion import inspect_model

    found = inspect_model.inspect(file)
    if as_json:
        show_json(asdict(found))
    else:
        show_text(describe_inspection(found))
    raise typer.Exit(0 if found.fits else 2)


@app.command()
def pull(
    name: Name,
    into: Annotated[Path, typer.Option(help="The model gets a folder NAME in there.")] = Path("models"),
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Download a published model, verify, convert and check it. The same command again resumes, or does nothing."""
    with signals.ending_at_once():
        from segray.conversion import pull as acquire

    with _teller() as told:
        found = acquire.pull(catalogue.find(name, "NAME"), into, plain=plain, callbacks=told)
    _report(found, as_json)


@app.command()
def convert(
    name: Name,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Frozen graph, SavedModel folder, ONNX, IR or .pth.")],
    out: Annotated[Path, typer.Option(help="A folder for this model alone.")],
    form: Annotated[FormName | None, typer.Option(help="Where the files do not tell.")] = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Convert files that you have into an IR with a card beside it."""
    with signals.ending_at_once():
        from segray.conversion import pull as acquire

    with _teller() as told:
        found = acquire.convert(catalogue.find(name, "NAME"), path, out, form=form, plain=plain, callbacks=told)
    _report(found, as_json)


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(metavar="NAME|PATH", help="Of models/NAME, of stickers, or a model's files.")],
    images: Annotated[str, typer.Option(help="A dataset like those to be labelled, as source.uri takes it.")],
    truth: Annotated[Path | None, typer.Option(help="COCO JSON: measure average precision before and after.")] = None,
    truth_images: Annotated[str | None, typer.Option(help="The dataset of the truth, if it is another one.")] = None,
    truth_limit: Annotated[int | None, typer.Option(min=1, help="Measure on at most so many images.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Images that calibrate.")] = 300,
    out: Annotated[Path | None, typer.Option(help="A folder for this model alone; else models/NAME-int8.")] = None,
    name: Annotated[str | None, typer.Option(help="Which model PATH is, where it does not tell.")] = None,
    form: Annotated[FormName | None, typer.Option(help="Where the files do not tell.")] = None,
    labels: Annotated[str | None, typer.Option(help='Your own classes, as JSON: {"1": "bolt", "2": "nut"}.')] = None,
    keep_float: Annotated[list[str], typer.Option(metavar="REGEX", help="Layers to leave in float; repeatable.")] = [],  # noqa: B006
    max_loss: Annotated[float, typer.Option(min=0, max=1, help="Exit code 4 if mask or box AP falls further.")] = 0.01,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Write an int8 copy of a model, calibrated with your images; compare its speed and accuracy with the source's."""
    with signals.ending_at_once():
        from segray.conversion import quantize as job
        from segray.conversion.compare import Truth
        from segray.storage.store import StorageOptions, Store

    source = _chosen(model, name, form, labels, images)
    judged = None if truth is None else Truth(truth, truth_images or images, truth_limit)
    with _teller() as told:
        found = job.quantize(
            source,
            images,
            out or Path("models") / f"{source.name}-int8",
            Store(StorageOptions(endpoint_url=endpoint_url)),
            samples=samples,
            truth=judged,
            keep_float=keep_float,
            note=told.note,
        )
    if as_json:
        show_json(asdict(found) | {"loss": found.loss, "speedup": found.speed.over("int8")})
    else:
        show_text(describe_quantised(found, max_loss))
    raise typer.Exit(_GATE if found.loss > max_loss else 0)


def _chosen(model: str, name: str | None, form: str | None, labels: str | None, images: str) -> resolve.ResolvedModel:
    """Return the model that the arguments of `quantize` mean."""
    from segray import config
    from segray.models import resolve

    if model in CATALOGUE:
        name, path = model, _pulled(model)
    else:
        if not Path(model).exists():
            catalogue.find(model, "NAME|PATH")
        name, path = name or _told(Path(model)), model
    section = {"name": name, "path": path, "form": form, "labels": None if labels is None else _parsed(labels)}
    values = {"source": {"uri": images}, "output": {"root": "."}, "model": section}
    chosen = config.validate(values, "the arguments").model
    return resolve.resolve(chosen.name, chosen.path, chosen.form, chosen.labels)


def _pulled(name: str) -> str | None:
    """Return the path to which `pull` writes the model; None for the embedded one.

    Raises ConfigError when the files are not there.
    """
    if not CATALOGUE[name].sources:
        return None
    xml = Path("models") / name / f"{name}.xml"
    if not xml.is_file():
        hint = f"segray models pull {name}, or give the path of its files"
        raise ConfigError(f"{name} needs its files.", where=str(xml), found="nothing", hint=hint)
    return str(xml)


def _told(path: Path) -> str:
    """Return the name of a file's model, by its card or its outputs.

    Raises ConfigError unless exactly one model fits.
    """
    from segray.conversion import inspect_model
    from segray.models import resolve

    if stated := resolve.read_card(path).get("contract"):
        return str(stated)
    names = list(dict.fromkeys(fit.name for fit in inspect_model.inspect(path).fits))
    if len(names) == 1:
        return names[0]
    found, hint = f"it could be {', '.join(names) or 'none that segray knows'}", "Say --name."
    raise ConfigError("The file does not tell which model it is.", where=str(path), found=found, hint=hint)


def _parsed(labels: str) -> Any:
    try:
        return json.loads(labels)
    except ValueError as error:
        hint = """For example: --labels '{"1": "bolt", "2": "nut"}'"""
        raise ConfigError("The labels are not JSON.", where="--labels", found=str(error), hint=hint) from error


# ---- results --------------------------------------------------------------------------------------


def _record(entry: ZooModel) -> dict[str, Any]:
    return asdict(entry) | {"how_to_get": entry.how_to_get, "size_bytes": entry.size_bytes}


def _report(found: InstalledModel, as_json: bool) -> None:
    if as_json:
        return show_json(asdict(found))
    show_text("nothing to do: it is there" if found.already else f"{found.name} is ready, in its {found.form} form")
    return show_text(_configuration(found.name, found.xml))


def _configuration(name: str, path: Path | str, precision: str = "f32") -> str:
    """Return the section of a configuration that uses this model."""
    if not CATALOGUE[name].sources and precision == "f32":
        return f"model:\n  name: {name}"
    return f"model:\n  name: {name}\n  path: {path}\n  precision: {precision}"


def _table(entries: Iterable[ZooModel]) -> str:
    rows = [("name", "MB", "box AP", "mask AP", "licence", "what")]
    for entry in entries:
        size = "-" if entry.size_bytes is None else f"{entry.size_bytes / 1e6:.0f}"
        best = (f"{entry.accuracy[0].box_ap:.1f}", f"{entry.accuracy[0].mask_ap:.1f}") if entry.accuracy else ("-", "-")
        rows.append((entry.name, size, *best, entry.licence, entry.what))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4].ljust(widths[4]), row[5]]
        )
        for row in rows
    )


def describe(entry: ZooModel) -> str:
    """Return the entry for a person."""
    path = f"models/{entry.name}/{entry.name}.xml"
    sections = {
        entry.name: [entry.what, f"licence {entry.licence}", f"docs/models/{entry.page}"],
        "accuracy on the card": [
            f"box AP {each.box_ap}, mask AP {each.mask_ap}: {each.protocol}" for each in entry.accuracy
        ],
        "get it": [entry.how_to_get],
        "published": [
            line for source in entry.sources for line in (*map(_file_line, source.files), f"holds {source.holds}")
        ],
        "convert with OpenVINO alone": [entry.command],
        "outputs": [
            f"{form}: " + ", ".join(f"{name} {_shape(shape)}" for name, shape in outputs.items())
            for form, outputs in entry.outputs.items()
        ],
        "cut inside the network": [f"{name} {value}" for name, value in entry.thresholds.items()],
        "what the card has wrong": list(entry.errors),
        "configuration": _configuration(entry.name, path).splitlines(),
    }
    return "\n".join(
        line for title, lines in sections.items() if lines for line in (title, *(f"  {line}" for line in lines))
    )


def _file_line(file: File) -> str:
    size = "size not published" if file.size_bytes is None else f"{file.size_bytes:,} bytes"
    sums = [f"{kind} {value}" for kind, value in (("sha256", file.sha256), ("sha384", file.sha384)) if value]
    return f"{file.name}: {size}, {', '.join(sums) or 'no checksum published'}\n    " + "\n    ".join(file.urls)


def _shape(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def describe_inspection(found: Inspection) -> str:
    """Return for a person the model that a file holds."""
    lines = [f"{found.path}: {found.kind}"]
    lines += [f"  in   {port}" for port in found.inputs]
    lines += [f"  out  {port}" for port in found.outputs]
    if found.layout or found.classes is not None:
        lines.append(f"  image {found.layout or 'layout not told'}, classes {found.classes or 'not told'}")
    lines += [f"fulfils {fit.name}, {fit.form} form{_unlike(fit)}" for fit in found.fits]
    if found.nearest:
        lacks = "; ".join(found.nearest.absent)
        lines.append(
            f"fits no model; the nearest is {found.nearest.name}, {found.nearest.form} form, which also needs: {lacks}"
        )
    return "\n".join([*lines, *(f"needs: {need}" for need in found.needs)])


def _unlike(fit: Fit) -> str:
    return f", other than published: {'; '.join(fit.unlike)}" if fit.unlike else ""


def describe_quantised(found: Quantised, max_loss: float) -> str:
    """Return speed, AP and size of a model before and after, and the configuration of the int8 copy."""
    count = sum(found.layers.values())
    rows = [("", "images/s", "mask AP", "box AP", "MB")]
    for precision, rate in found.speed.images_per_s().items():
        size = found.size_bytes["int8" if precision == "int8" else "source"]
        rows.append((precision, f"{rate:.1f}", *_aps(found, precision), f"{size / 1e6:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{found.layers['int8']} of {count} layers compute in int8, calibrated with {found.samples} images"]
    lines += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    faster = ", ".join(f"{times:.2f} times as fast as {name}" for name, times in found.speed.over("int8").items())
    lines.append(f"int8 is {faster} (the network alone, taking turns on {found.speed.device})")
    if found.accuracy:
        also = f", {found.calibrated} of which calibrated, too" if found.calibrated else ""
        lines.append(f"AP on {found.accuracy.objects} objects in {len(found.accuracy.uris)} images{also}")
    if found.loss > max_loss:
        lines.append(
            f"AP fell by {found.loss:.3f}, more than {max_loss:g}: calibrate with more images or with some that are "
            "more like those to be labelled, or keep layers in float with --keep-float"
        )
    return "\n".join([*lines, "", _configuration(found.name, found.xml, "int8")])


def _aps(found: Quantised, precision: str) -> tuple[str, str]:
    if found.accuracy is None or precision not in found.accuracy.mask_ap:
        return "-", "-"
    return f"{found.accuracy.mask_ap[precision]:.3f}", f"{found.accuracy.box_ap[precision]:.3f}"


# ---- progress -------------------------------------------------------------------------------------


@contextmanager
def _teller() -> Iterator[Callbacks]:
    """Yield callbacks that print the steps as lines.

    A download is a bar where lines are redrawn, and a line every five seconds elsewhere.
    """
    from segray.conversion import pull as acquire
    from segray.monitoring import console

    if not console.redraws(sys.stderr):
        yield acquire.Callbacks(tell, _Lines())
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("  "), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("")
        yield acquire.Callbacks(tell, lambda done, total: bar.update(task, completed=done, total=total))


class _Lines:
    """Progress of a download, as a line every five seconds."""

    def __init__(self) -> None:
        self._printed_s = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        if time.monotonic() - self._printed_s >= _LINE_S:
            self._printed_s = time.monotonic()
            total = "?" if total_bytes is None else f"{total_bytes / 1e6:.0f}"
            tell(f"  {done_bytes / 1e6:.0f} of {total} MB")
