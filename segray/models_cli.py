"""`segray models`: what models there are, what a file is, and how one gets here.

Knows arguments and how results are shown; the facts are in the catalogue, the work in acquire and inspection.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from segray import acquire, catalogue, inspection
from segray.acquire import Acquired, FormName, Told
from segray.catalogue import CATALOGUE, Entry, File
from segray.inspection import Fit, Inspection

app = typer.Typer(help="List, fetch, convert and inspect models.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `segray models list` shows it.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

_LINE_S = 5.0


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """Every model that segray can decode, with its size, average precision and licence."""
    if as_json:
        _print_json({"models": [_record(entry) for entry in CATALOGUE.values()]})
    else:
        print(_table(CATALOGUE.values()))


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """All that is known of one model: where it is published, how to convert it, what its card has wrong."""
    entry = catalogue.find(name, "NAME")
    if as_json:
        _print_json(_record(entry))
    else:
        print(describe(entry))


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="IR, ONNX, frozen graph, SavedModel folder, .pth.")],
    as_json: Json = False,
) -> None:
    """Which model a file is, what goes in and out, what it needs, or what it lacks. Exit code 2 if it fits none."""
    found = inspection.inspect(file)
    if as_json:
        _print_json(asdict(found))
    else:
        print(describe_inspection(found))
    raise typer.Exit(0 if found.fits else 2)


@app.command()
def pull(
    name: Name,
    into: Annotated[Path, typer.Option(help="The model gets a folder NAME in there.")] = Path("models"),
    as_json: Json = False,
) -> None:
    """Download a published model, verify, convert and check it. The same command again resumes, or does nothing."""
    with _teller() as told:
        found = acquire.pull(catalogue.find(name, "NAME"), into, told=told)
    _report(found, as_json)


@app.command()
def convert(
    name: Name,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Frozen graph, SavedModel folder, ONNX, IR or .pth.")],
    out: Annotated[Path, typer.Option(help="A folder for this model alone.")],
    form: Annotated[FormName | None, typer.Option(help="Where the files do not tell.")] = None,
    as_json: Json = False,
) -> None:
    """Convert files that you have into an IR with a card beside it."""
    with _teller() as told:
        found = acquire.convert(catalogue.find(name, "NAME"), path, out, form=form, told=told)
    _report(found, as_json)


# ---- results --------------------------------------------------------------------------------------


def _print_json(record: Mapping[str, Any]) -> None:
    print(json.dumps(record, indent=2, sort_keys=True, default=str))


def _record(entry: Entry) -> dict[str, Any]:
    return asdict(entry) | {"how_to_get": entry.how_to_get, "size_bytes": entry.size_bytes}


def _report(found: Acquired, as_json: bool) -> None:
    if as_json:
        return _print_json(asdict(found))
    print("nothing to do: it is there" if found.already else f"{found.name} is ready, in its {found.form} form")
    return print(_configuration(found.name, found.xml))


def _configuration(name: str, path: Path | str) -> str:
    """The section of a configuration that uses this model."""
    if not CATALOGUE[name].sources:
        return f"model:\n  name: {name}"
    return f"model:\n  name: {name}\n  path: {path}\n  precision: f32"


def _table(entries: Iterable[Entry]) -> str:
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


def describe(entry: Entry) -> str:
    """The entry for a person."""
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
    """What a file is, for a person."""
    lines = [f"{found.path}: {found.kind}"]
    lines += [f"  in   {port}" for port in found.inputs]
    lines += [f"  out  {port}" for port in found.outputs]
    if found.layout or found.classes is not None:
        lines.append(f"  image {found.layout or 'layout not told'}, classes {found.classes or 'not told'}")
    lines += [f"fulfils {fit.name}, {fit.form} form{_unlike(fit)}" for fit in found.fits]
    if found.nearest:
        lacks = "; ".join(found.nearest.absent)
        lines.append(
            f"fulfils no contract; nearest is {found.nearest.name}, {found.nearest.form} form, but for: {lacks}"
        )
    return "\n".join([*lines, *(f"needs: {need}" for need in found.needs)])


def _unlike(fit: Fit) -> str:
    return f", other than published: {'; '.join(fit.unlike)}" if fit.unlike else ""


# ---- progress -------------------------------------------------------------------------------------


@contextmanager
def _teller() -> Iterator[Told]:
    """Steps as lines; downloads as a bar on a terminal, as a line now and then elsewhere."""
    out = sys.stderr

    def note(text: str) -> None:
        print(text, file=out, flush=True)

    if not out.isatty():
        yield Told(note, _Lines(out))
        return
    columns = (TextColumn("  "), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=out), transient=True) as bar:
        task = bar.add_task("")
        yield Told(note, lambda done, total: bar.update(task, completed=done, total=total))


class _Lines:
    """Progress of a download as a line every five seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._printed_s = out, time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int | None) -> None:
        if time.monotonic() - self._printed_s >= _LINE_S:
            self._printed_s = time.monotonic()
            total = "?" if total_bytes is None else f"{total_bytes / 1e6:.0f}"
            print(f"  {done_bytes / 1e6:.0f} of {total} MB", file=self._out, flush=True)
