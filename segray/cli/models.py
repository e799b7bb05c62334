"""The commands `segray models ...`: list, inspect, download, convert and quantize models.

Knows arguments and how results are printed. segray.models.zoo has the facts. pull, inspect_model and quantize of
segray.conversion do the work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segray._system import signals
from segray._system.streams import show as show_text
from segray._system.streams import tell
from segray.cli.examples import OrderedGroup
from segray.cli.options import Endpoint, Json, Overrides, show_json
from segray.errors import ConfigError
from segray.models import zoo as catalogue
from segray.models.families import FAMILY_FACTS, Family
from segray.models.zoo import CATALOGUE, File, FormName, ZooModel

if TYPE_CHECKING:
    from segray.config import ModelSettings
    from segray.conversion.inspect_model import Inspection
    from segray.conversion.parity import Pair, Parity
    from segray.conversion.pull import Callbacks, InstalledModel
    from segray.conversion.quantize import Quantised
    from segray.models import resolve
    from segray.models.description import Description
    from segray.models.fits import Fit
    from segray.storage.options import StorageOptions

app = typer.Typer(
    cls=OrderedGroup,
    help="List, fetch, convert, inspect, quantise and compare models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of a model, as `segray models list` shows it.")]
Plain = Annotated[
    bool,
    typer.Option("--plain", help="Keep a TensorFlow graph as OpenVINO converts it, without further simplification."),
]

Adapter = Annotated[
    str | None, typer.Option(metavar="MODULE:CLASS", help="Decoder of your own, as `model.adapter` names it.")
]
SourceModel = Annotated[
    str,
    typer.Argument(
        metavar="NAME|PATH", help="Name of a model in models/, stickers, or path or address of a model's files."
    ),
]
ModelName = Annotated[str | None, typer.Option(help="Name of the model in PATH, if the files do not tell.")]
ModelForm = Annotated[FormName | None, typer.Option(help="Form of the model, if the files do not tell.")]
Labels = Annotated[str | None, typer.Option(help='Classes of your own model, as JSON: {"1": "bolt", "2": "nut"}.')]

_GATE = 4
_SHOWN_CLASSES = 20


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that segray decodes.

    First the families, whose files tell what they are: forms, licence, and how to get a model. Then the published
    models with a name: size, average precision and licence.
    """
    if as_json:
        families = [asdict(family) for family in FAMILY_FACTS.values()]
        show_json({"families": families, "models": [_record(entry) for entry in CATALOGUE.values()]})
    else:
        show_text(f"{_family_text(FAMILY_FACTS.values())}\n\n{_table(CATALOGUE.values())}")


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Show files, licence, outputs and accuracy of one model.

    The command also shows how to get and convert the model, and the errors of its card.
    """
    entry = catalogue.find(name, "NAME")
    if as_json:
        show_json(_record(entry))
    else:
        show_text(describe(entry))


@app.command()
def inspect(
    file: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="Model to inspect: IR, ONNX, a folder with one of them, frozen graph, SavedModel or .pt; or the name "
            "of a model in models/, or stickers. A model at an address, such as hf://ORG/NAME/FOLDER, is fetched.",
        ),
    ],
    adapter: Adapter = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Find out which model a file holds.

    The command prints inputs, outputs, what the file says of itself, where each fact was read, and the lines of a
    configuration. For an unknown model it prints the nearest known model and the differences. Exit code 2 means that
    segray cannot use the file.
    """
    with signals.ending_at_once():
        from segray.conversion import inspect_model
        from segray.storage.options import StorageOptions

    options = StorageOptions(endpoint_url=endpoint_url)
    with _printed_progress() as callbacks:
        place = _place_of_argument(file)
        inspection = inspect_model.inspect_place(place, options, callbacks.note, callbacks.progress, adapter)
    if as_json:
        show_json(asdict(inspection))
    else:
        show_text(describe_inspection(inspection))
    raise typer.Exit(0 if inspection.is_decoded else 2)


@app.command()
def pull(
    name: Name,
    into: Annotated[Path, typer.Option(help="Folder in which the model gets its own folder NAME.")] = Path("models"),
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Download a published model and convert it.

    The files are verified, and the result is checked. The same command resumes an interrupted download. It does
    nothing if the model is there.
    """
    with signals.ending_at_once():
        from segray.conversion import pull as conversion

    with _printed_progress() as callbacks:
        model = conversion.pull(catalogue.find(name, "NAME"), into, plain=plain, callbacks=callbacks)
    _show_installed(model, as_json)


@app.command()
def convert(
    name: Name,
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="Files of the model: frozen graph, SavedModel folder, ONNX, IR or .pth."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for this model alone.")],
    form: Annotated[FormName | None, typer.Option(help="Form of the model, if the files do not tell.")] = None,
    plain: Plain = False,
    as_json: Json = False,
) -> None:
    """Convert model files of your own to OpenVINO IR.

    A card, segray.json, is written beside the IR.
    """
    with signals.ending_at_once():
        from segray.conversion import pull as conversion

    with _printed_progress() as callbacks:
        model = conversion.convert(catalogue.find(name, "NAME"), path, out, form=form, plain=plain, callbacks=callbacks)
    _show_installed(model, as_json)


@app.command()
def quantize(
    model: SourceModel,
    images: Annotated[str, typer.Option(help="Dataset that resembles the images to label, in the form of source.uri.")],
    truth: Annotated[
        Path | None, typer.Option(help="Truth as COCO JSON. Average precision is then measured before and after.")
    ] = None,
    truth_images: Annotated[str | None, typer.Option(help="Dataset of the truth. By default that of --images.")] = None,
    truth_limit: Annotated[int | None, typer.Option(min=1, help="Largest number of images to measure on.")] = None,
    classes_by: Annotated[
        str | None, typer.Option(metavar="id|name", help="Way to match classes with the truth's, as for `evaluate`.")
    ] = None,
    class_map: Annotated[
        list[str],
        typer.Option(metavar="FILE|TRUTH=LABEL", help="Class of the truth and class of the model, as for `evaluate`."),
    ] = [],  # noqa: B006
    files_by: Annotated[
        str | None,
        typer.Option(metavar="key|basename|suffix", help="Way to match images with the truth's, as for `evaluate`."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of images that calibrate.")] = 300,
    out: Annotated[Path | None, typer.Option(help="Folder for this model alone. By default models/NAME-int8.")] = None,
    name: ModelName = None,
    form: ModelForm = None,
    labels: Labels = None,
    keep_float: Annotated[
        list[str], typer.Option(metavar="REGEX", help="Names of layers that stay in float. Repeatable.")
    ] = [],  # noqa: B006
    max_loss: Annotated[
        float,
        typer.Option(min=0, max=1, help="Largest accepted fall of mask or box AP. A larger fall gives exit code 4."),
    ] = 0.01,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Write an int8 copy of a model.

    Your images calibrate the copy. The command compares speed and accuracy of the copy with those of the source.
    """
    with signals.ending_at_once():
        from segray.analytics.evaluation.class_maps import from_options
        from segray.conversion import quantize as quantisation
        from segray.conversion.compare import Truth
        from segray.storage.store import StorageOptions, Store

    options = StorageOptions(endpoint_url=endpoint_url)
    with _printed_progress() as callbacks:
        source, _ = _source_model(model, name, form, labels, images, options, callbacks)
    truth_set = (
        None
        if truth is None
        else Truth(truth, truth_images or images, truth_limit, classes_by, from_options(class_map), files_by)
    )
    with _printed_progress() as callbacks:
        quantised = quantisation.quantize(
            source,
            images,
            out or Path("models") / f"{source.name}-int8",
            Store(options),
            samples=samples,
            truth=truth_set,
            keep_float=keep_float,
            note=callbacks.note,
        )
    if as_json:
        show_json(asdict(quantised) | {"loss": quantised.loss, "speedup": quantised.speed.over("int8")})
    else:
        show_text(describe_quantised(quantised, max_loss))
    raise typer.Exit(_GATE if quantised.loss > max_loss else 0)


@app.command()
def compare(
    model: SourceModel,
    images: Annotated[str, typer.Option(help="Dataset of the reference's images, in the form of source.uri.")],
    reference: Annotated[
        Path,
        typer.Option(help="Results of another program: COCO's results or a COCO data set, with masks as run lengths."),
    ],
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Smallest score of rows that count.")] = 0.3,
    iou: Annotated[float, typer.Option(min=0, max=1, help="Smallest IoU of two masks that are the same.")] = 0.95,
    score_difference: Annotated[
        float, typer.Option(min=0, max=1, help="Largest difference of two scores that are the same.")
    ] = 0.02,
    least_matched: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest share of matched rows. A smaller one gives exit code 4.")
    ] = 0.95,
    most_extra: Annotated[
        float, typer.Option(min=0, help="Largest share of extra rows. A larger one gives exit code 4.")
    ] = 0.05,
    name: ModelName = None,
    form: ModelForm = None,
    labels: Labels = None,
    overrides: Overrides = [],  # noqa: B006
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Compare a model's rows with those of another program.

    The program is usually the library that the model came from. The network computes in f32, or in int8 if it is
    quantised. --set model.score_threshold=0.25 and other keys of `model` set what the program was told.
    """
    with signals.ending_at_once():
        from segray.conversion import parity, reference_results
        from segray.storage.store import StorageOptions, Store

    options = StorageOptions(endpoint_url=endpoint_url)
    with _printed_progress() as callbacks:
        source, settings = _source_model(model, name, form, labels, images, options, callbacks, overrides)
    result = parity.compare_model(
        source,
        settings,
        reference_results.read(reference),
        images,
        Store(options),
        parity.Limits(min_score, iou, score_difference),
    )
    if as_json:
        figures = {key: getattr(result, key) for key in ("matched", "matched_share", "extra_share")}
        show_json(asdict(result) | figures)
    else:
        show_text(describe_parity(result))
    raise typer.Exit(_GATE if result.matched_share < least_matched or result.extra_share > most_extra else 0)


def _source_model(
    model: str,
    name: str | None,
    form: str | None,
    labels: str | None,
    images: str,
    options: StorageOptions,
    callbacks: Callbacks,
    overrides: Sequence[str] = (),
) -> tuple[resolve.ResolvedModel, ModelSettings]:
    """Return the model that the arguments of `quantize` or `compare` name, and the section `model`.

    A model at an address is fetched.
    """
    from segray import config
    from segray.models import model_cache, remote_folder

    if model in CATALOGUE:
        name, path = model, _path_of_pulled(model)
    else:
        if not remote_folder.is_remote(model) and not Path(model).exists():
            catalogue.find(model, "NAME|PATH")
        name, path = name or config.AUTO, model
    section = {"name": name, "path": path, "form": form, "labels": None if labels is None else _parse_labels(labels)}
    values = {"source": {"uri": images}, "output": {"root": "."}, "model": section}
    settings = config.validate(values, "the arguments", overrides).model
    return model_cache.resolved(settings, options, callbacks.note, callbacks.progress), settings


def _place_of_argument(place: str) -> str:
    """Return the path or address of a model that is given by its name, its path or its address."""
    path = Path(place)
    if path.exists() or path.is_symlink() or "/" in place or (path.suffix and place not in CATALOGUE):
        return place
    pulled = _path_of_pulled(catalogue.find(place, "NAME|FILE").name)
    if pulled is not None:
        return pulled
    from segray.models import resolve

    return str(resolve.EMBEDDED)


def _path_of_pulled(name: str) -> str | None:
    """Return the path to which `pull` writes the model; None for the embedded one.

    Raises ConfigError when the files are not there.
    """
    if not CATALOGUE[name].sources:
        return None
    xml = catalogue.pulled_path(name)
    if not xml.is_file():
        hint = f"Run `segray models pull {name}`, or give the path of the model's files."
        raise ConfigError(f"The files of {name} are missing.", where=str(xml), found="nothing", hint=hint)
    return str(xml)


def _parse_labels(labels: str) -> Any:
    try:
        return json.loads(labels)
    except ValueError as error:
        hint = """For example: --labels '{"1": "bolt", "2": "nut"}'"""
        raise ConfigError("The labels are not JSON.", where="--labels", found=str(error), hint=hint) from error


# ---- results --------------------------------------------------------------------------------------


def _record(entry: ZooModel) -> dict[str, Any]:
    return asdict(entry) | {"how_to_get": entry.how_to_get, "size_bytes": entry.size_bytes}


def _show_installed(model: InstalledModel, as_json: bool) -> None:
    if as_json:
        return show_json(asdict(model))
    ready = f"{model.name} is ready, in its {model.form} form"
    show_text("nothing to do: the model is there" if model.already else ready)
    return show_text(_configuration(model.name, model.xml))


def _configuration(name: str, path: Path | str, precision: str = "f32") -> str:
    """Return the section of a configuration that uses this model."""
    if name not in CATALOGUE:  # The file tells what it is.
        return f"model:\n  path: {path}\n  precision: {precision}"
    if not CATALOGUE[name].sources and precision == "f32":
        return f"model:\n  name: {name}"
    return f"model:\n  name: {name}\n  path: {path}\n  precision: {precision}"


def _family_text(families: Iterable[Family]) -> str:
    """Return the families, one paragraph each, and how a file is told."""
    paragraphs = ["families: set model.path to any model of these; the file tells what it is"]
    for family in families:
        facts = {"forms": ", ".join(family.forms), "licence": family.licence, "get it": family.how_to_get}
        lines = [f"{family.name}: {family.programs} (docs/models/{family.page})"]
        paragraphs.append("\n".join([*lines, *(f"  {name.ljust(7)}  {text}" for name, text in facts.items())]))
    return "\n".join(paragraphs)


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
    """Return the facts of a model as text."""
    path = f"models/{entry.name}/{entry.name}.xml"
    sections = {
        entry.name: [entry.what, f"licence {entry.licence}", f"docs/models/{entry.page}"],
        "accuracy on the card": [
            f"box AP {figures.box_ap}, mask AP {figures.mask_ap}: {figures.protocol}" for figures in entry.accuracy
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
        "errors of the card": list(entry.errors),
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


def describe_inspection(inspection: Inspection) -> str:
    """Return the model that a file holds, as text."""
    lines = [f"{inspection.path}: {inspection.kind}"]
    if inspection.origin is not None:
        revision = f" at {inspection.origin['revision']}" if "revision" in inspection.origin else ""
        lines.append(f"  from {inspection.origin['uri']}{revision}")
    lines += [f"  in   {port}" for port in inspection.inputs]
    lines += [f"  out  {port}" for port in inspection.outputs]
    if inspection.description is not None:
        return "\n".join([*lines, *_description_lines(inspection, inspection.description)])
    if inspection.layout or inspection.classes is not None:
        lines.append(f"  image {inspection.layout or 'layout unknown'}, classes {inspection.classes or 'unknown'}")
    lines += [f"fits {fit.name}, {fit.form} form{_differences(fit)}" for fit in inspection.fits]
    if (nearest := inspection.nearest) is not None:
        absent = "; ".join(nearest.absent)
        lines.append(f"fits no model; the nearest is {nearest.name}, {nearest.form} form, but the file lacks: {absent}")
    return "\n".join([*lines, *(f"needs: {need}" for need in inspection.needs)])


def _description_lines(inspection: Inspection, description: Description) -> list[str]:
    """Return what a file says of itself, each fact with its source, and how to use the file."""
    from segray.conversion import inspect_model
    from segray.models.describe.facts import FAMILY

    facts: dict[str, tuple[str, str]] = {
        "family": (", ".join(filter(None, (description.family, description.kind))), "family"),
        "outputs": (", ".join(f"{name}: number {i}" for name, i in description.outputs.items()), "outputs"),
        "image": (_size_text(description), "size_hw"),
        "resize": (_resize_text(description), "resize"),
        "colour": (description.colour, "colour"),
        "mean": (_numbers(description.mean), "mean"),
        "scale": (_numbers(description.scale), "scale"),
        "classes": (_class_text(inspection.classes, description.labels), "labels"),
        "class ids": (inspect_model.class_id_rule(description), ""),
    }
    stated = {**inspection.options, **description.extra}
    facts |= {name: (_value_text(value), name) for name, value in stated.items() if name != "classes"}
    facts |= {name: (version, "") for name, version in description.versions.items()}
    width = max(map(len, facts))
    sources = {**dict.fromkeys(inspection.options, FAMILY), **description.sources}
    lines = [description.what]
    for name, (text, key) in facts.items():
        source = f" ({sources[key]})" if key in sources and not text.startswith("not ") else ""
        lines.append(f"  {name.ljust(width)}  {text}{source}")
    lines += [f"note: {note}" for note in description.notes]
    lines += [f"needs: {need}" for need in inspection.needs]
    return [*lines, "", inspection.yaml] if inspection.yaml else lines


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _size_text(description: Description) -> str:
    if description.size_hw is not None:
        return f"{description.size_hw[0]}x{description.size_hw[1]}"
    if "size" in description.missing:
        return "not stated"
    return "any size" if description.stride is None else f"any size, padded to a multiple of {description.stride}"


def _resize_text(description: Description) -> str:
    if description.sources.get("resize") == "not stated":
        return "not stated"
    if "decoder" in description.extra:
        return "by prepare of the decoder"
    if description.size_hw is None and description.stride is None and "size" not in description.missing:
        if description.family in ("detectron2", "maskformer", "mmdeploy"):
            return "by the sides of the image: the short side to 800 pixels, the long side to 1333 at most"
        return "none: images keep their size"
    fitted = {
        "letterbox": f"fitted, padded on both sides with {description.pad_value}",
        "corner": f"fitted, padded right and bottom with {description.pad_value}",
        "stretch": "stretched",
    }
    rounding = {
        "opencv": "values truncated as in OpenCV",
        "exact": "values rounded as in OpenVINO",
        "antialiased": "antialiased as in Pillow",
    }
    return f"{description.resize}: {fitted[description.resize]}; {rounding[description.rounding]}"


def _numbers(numbers: tuple[float, ...] | None) -> str:
    return "none" if numbers is None else " ".join(f"{number:g}" for number in numbers)


def _class_text(count: int | None, labels: Mapping[int, str]) -> str:
    if not labels:
        return "not named" if count is None else f"{count}, not named"
    named = ", ".join(f"{i} {name}" for i, name in list(labels.items())[:_SHOWN_CLASSES])
    rest = len(labels) - _SHOWN_CLASSES
    return f"{len(labels)}: {named}" + (f" and {rest} more" if rest > 0 else "")


def _differences(fit: Fit) -> str:
    return f", differs from the published model: {'; '.join(fit.unlike)}" if fit.unlike else ""


def describe_quantised(quantised: Quantised, max_loss: float) -> str:
    """Return speed, AP and size of a model before and after, and the configuration of the int8 copy."""
    count = sum(quantised.layers.values())
    rows = [("", "images/s", "mask AP", "box AP", "MB")]
    for precision, rate in quantised.speed.images_per_s().items():
        size = quantised.size_bytes["int8" if precision == "int8" else "source"]
        rows.append((precision, f"{rate:.1f}", *_aps(quantised, precision), f"{size / 1e6:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{quantised.layers['int8']} of {count} layers compute in int8, calibrated with {quantised.samples} images"
    ]
    lines += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    faster = ", ".join(f"{times:.2f} times as fast as {name}" for name, times in quantised.speed.over("int8").items())
    lines.append(f"int8 is {faster} (the network alone, taking turns on {quantised.speed.device})")
    if quantised.accuracy:
        overlap = f", {quantised.calibrated} of which calibrated, too" if quantised.calibrated else ""
        lines.append(f"AP on {quantised.accuracy.objects} objects in {len(quantised.accuracy.uris)} images{overlap}")
    if quantised.loss > max_loss:
        lines.append(
            f"AP fell by {quantised.loss:.3f}, more than {max_loss:g}: calibrate with more images, or with images that "
            "resemble those to label, or keep layers in float with --keep-float"
        )
    return "\n".join([*lines, "", _configuration(quantised.name, quantised.xml, "int8")])


def describe_parity(parity: Parity) -> str:
    """Return how many rows of the reference the model has, and how far they differ."""
    limits, rows = parity.limits, len(parity.pairs)
    lines = [
        f"{rows} rows of score {limits.min_score:g} and more in {parity.images} images of the reference",
        f"matched  {parity.matched} of {rows} ({parity.matched_share:.1%}): mask IoU {limits.min_iou:g} and more, "
        f"scores within {limits.max_score_difference:g}",
        f"extra    {len(parity.extra)} rows of the model ({parity.extra_share:.1%})",
    ]
    partners = [pair for pair in parity.pairs if pair.score_difference is not None]
    if partners:
        differences = [pair.score_difference or 0.0 for pair in partners]
        boxes = [pair.box_difference_px for pair in partners if pair.box_difference_px is not None]
        box = f", largest difference of boxes {max(boxes):.3g} px" if boxes else ""
        lines.append(
            f"lowest mask IoU {min(pair.iou for pair in partners):.4f}, largest difference of scores "
            f"{max(differences):.2g}{box}"
        )
    lines += [_pair_text(pair) for pair in parity.differing()]
    lines += [f"  extra: {image}, {name}, score {score:.3f}" for image, name, score in parity.extra[:_SHOWN_CLASSES]]
    if parity.absent:
        lines.append(f"note: {len(parity.absent)} images of the reference are not there, such as {parity.absent[0]}")
    return "\n".join(lines)


def _pair_text(pair: Pair) -> str:
    partner = "no such row"
    if pair.score_difference is not None:
        partner = f"mask IoU {pair.iou:.3f}, difference of scores {pair.score_difference:.3f}"
    return f"  differs: {pair.image}, {pair.class_name}, score {pair.score:.3f}: {partner}"


def _aps(quantised: Quantised, precision: str) -> tuple[str, str]:
    if quantised.accuracy is None or precision not in quantised.accuracy.mask_ap:
        return "-", "-"
    return f"{quantised.accuracy.mask_ap[precision]:.3f}", f"{quantised.accuracy.box_ap[precision]:.3f}"


# ---- progress -------------------------------------------------------------------------------------


@contextmanager
def _printed_progress() -> Iterator[Callbacks]:
    """Yield callbacks that print each step as a line.

    A download is a bar on a terminal that redraws lines, and a line every five seconds elsewhere.
    """
    from segray.conversion import pull as conversion
    from segray.monitoring import console
    from segray.storage.download import ProgressLines

    if not console.redraws(sys.stderr):
        yield conversion.Callbacks(tell, ProgressLines(tell))
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("  "), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("")
        yield conversion.Callbacks(tell, lambda done, total: bar.update(task, completed=done, total=total))
