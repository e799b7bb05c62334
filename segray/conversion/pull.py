"""A model system onto this machine: fetched, verified, unpacked, converted, checked, and a card beside it.

Knows the order of these steps and the folder they leave behind; what is fetched from where is in the catalogue.

    INTO/NAME/download/     what was fetched, and stays
    INTO/NAME/unpacked/     of an archive, until the IR is there
    INTO/NAME/NAME.xml      the IR, its .bin beside it
    INTO/NAME/segray.json   the card, written last: where it is, and the checksums on it are right, all is done

Each of these gets its name when it is whole, so a repetition after any interruption goes on with the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import segray
from segray.conversion import download, inspect_model
from segray.conversion.tensorflow import convert as lean
from segray.errors import ConfigError, InfrastructureError, ModelError
from segray.models import engine, resolve
from segray.models.registry import ADAPTERS
from segray.models.zoo import Entry, FormName, Source

Note = Callable[[str], None]


@dataclass(frozen=True)
class InstalledModel:
    """A model that `segray label` can use. sha256: of its files by name. already: nothing was left to do."""

    name: str
    form: str
    xml: Path
    sha256: Mapping[str, str]
    already: bool = False


@dataclass(frozen=True)
class Callbacks:
    """Who hears how it goes. note: a step begins. progress: bytes of a download."""

    note: Note = lambda text: None
    progress: download.Progress = lambda done_bytes, total_bytes: None


def pull(
    entry: Entry,
    into: Path,
    *,
    plain: bool = False,
    told: Callbacks = Callbacks(),
    patience: download.RetryPolicy = download.PATIENT,
) -> InstalledModel:
    """Have the published model in the folder `into`/NAME, ready to use; nothing is done if it is.

    plain: leave a TensorFlow graph as OpenVINO converts it.

    Raises ModelError for files that are not the published ones or that cannot be converted here, InfrastructureError if
    no address gives them. The same call goes on from there.
    """
    if not entry.sources:
        hint = f"Set model.name: {entry.name} and leave out model.path."
        raise ConfigError(f"{entry.name} comes with segray.", where="NAME", found=entry.name, hint=hint)
    folder = into / entry.name
    with alone(folder):
        if ready := acquired(entry.name, folder):
            return ready
        source, sha256 = _fetched(entry, folder / "download", told, patience)
        original = _laid_out(source, folder, told)
        parts = {"files": sha256, "model": source.model}
        _convert(entry, original, folder, entry.form, parts, told, published=True, plain=plain)
        shutil.rmtree(folder / "unpacked", ignore_errors=True)
        return _found(entry.name, folder)


def convert(
    entry: Entry,
    path: Path,
    out: Path,
    *,
    form: FormName | None = None,
    plain: bool = False,
    told: Callbacks = Callbacks(),
) -> InstalledModel:
    """Write the model at `path` as an IR with a card into the folder `out`, which holds no other model.

    path: frozen graph, SavedModel folder, ONNX, IR of any version that can be read or rewritten, or YOLACT's .pth.
    form: where the files do not tell. plain: leave a TensorFlow graph as OpenVINO converts it. Raises ModelError if it
    is not of this model system, ConfigError if the form is unknown.
    """
    path = engine.model_root(path)
    with alone(out):
        _convert(entry, path, out, form, {"model": path.name}, told, published=False, plain=plain)
        return _found(entry.name, out)


def acquired(name: str, folder: Path) -> InstalledModel | None:
    """The model in `folder` if it is whole: its files have the checksums on its card."""
    xml, card = folder / f"{name}.xml", resolve.read_card(folder)
    sha256 = card.get("files", {})
    files = (xml, xml.with_suffix(".bin"))
    if not all(file.is_file() and resolve.sha256(file) == sha256.get(file.name) for file in files):
        return None
    return InstalledModel(name, card["form"], xml, sha256, already=True)


def _found(name: str, folder: Path) -> InstalledModel:
    found = acquired(name, folder)
    if found is None:
        raise InfrastructureError(
            "The model changed while it was written.", where=str(folder), hint="Run the same command again."
        )
    return replace(found, already=False)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder, made if need be, against other processes that acquire into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        hint = "Choose another folder."
        raise InfrastructureError(
            "The folder cannot be used.", where=str(folder), found=str(error), hint=hint
        ) from error
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        hint = "Wait for it, or stop it."
        raise InfrastructureError("Another process is writing there.", where=str(folder), hint=hint) from error


# ---- sources --------------------------------------------------------------------------------------


def _fetched(
    entry: Entry, folder: Path, told: Callbacks, patience: download.RetryPolicy
) -> tuple[Source, dict[str, str]]:
    """The first source of which all files could be had, and their sha256 by name."""
    failures = []
    for source in entry.sources:
        try:
            return source, _fetch_all(source, folder, told, patience)
        except InfrastructureError as error:
            failures.append(error)
    found = "; ".join(error.found or error.what for error in failures)
    raise InfrastructureError(failures[-1].what, where=str(folder), found=found, hint=failures[-1].hint) from failures[
        -1
    ]


def _fetch_all(source: Source, folder: Path, told: Callbacks, patience: download.RetryPolicy) -> dict[str, str]:
    sha256 = {}
    for file in source.files:
        told.note(f"fetching {file.name}")
        sha256[file.name] = download.fetch(
            file.urls,
            folder / file.name,
            sha256=file.sha256,
            sha384=file.sha384,
            size_bytes=file.size_bytes,
            progress=told.progress,
            patience=patience,
        )
    return sha256


def _laid_out(source: Source, folder: Path, told: Callbacks) -> Path:
    """The path of what is to be converted, unpacked if it comes in an archive."""
    root = folder / "download"
    if source.archived:
        told.note(f"unpacking {source.files[0].name}")
        download.unpack(root / source.files[0].name, folder / "unpacked")
        root = folder / "unpacked"
    model = root / source.model
    if not model.exists():
        found = ", ".join(sorted(str(file.relative_to(root)) for file in root.rglob("*"))[:20])
        hint = f"Expected: {source.holds}. Remove {folder} and pull again."
        raise ModelError(f"The archive does not hold {source.model}.", where=str(root), found=found, hint=hint)
    return model


# ---- conversion -----------------------------------------------------------------------------------


def _convert(
    entry: Entry,
    path: Path,
    out: Path,
    form: str | None,
    source: Mapping[str, Any],
    told: Callbacks,
    *,
    published: bool,
    plain: bool,
) -> None:
    """Make the IR and its card aside, then put them in place. published: it must be what the catalogue describes."""
    _check_free(entry, path, out)
    staging = out / ".converting"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        told.note(f"converting {path.name}")
        xml = staging / f"{entry.name}.xml"
        form, rewritten = _written(entry, path, xml, form, told, plain)
        model = _identified(entry, path, xml, form, published)
        put(staging, out, _card_of(entry, model, {**source, **rewritten}))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _identified(entry: Entry, path: Path, xml: Path, form: str | None, published: bool) -> resolve.Model:
    """The model of the IR at `xml`, made of `path`; ModelError if it is of another model system."""
    found, forms = engine.signature(xml), ADAPTERS[entry.name].forms
    if all(engine.absent_outputs(found, each) for each in forms.values()):
        engine.check(found, forms[form or entry.form], str(path))
    try:
        model = resolve.resolve(entry.name, str(xml), form)
    except ConfigError as error:
        hint = error.hint.replace("Set model.form:", "Say --form:")
        raise ConfigError(error.what, where=str(path), found="nothing that tells it", hint=hint) from error
    engine.check(found, model.form, str(path))
    unlike = inspect_model.differences(found, entry, model.form)
    if published and unlike:
        hint = "Remove the folder and pull again; if it stays so, the published files have changed."
        raise ModelError(
            "This is not the model that was published.", where=str(path), found="; ".join(unlike), hint=hint
        )
    return model


def _check_free(entry: Entry, path: Path, out: Path) -> None:
    if (stated := resolve.read_card(out).get("contract", entry.name)) != entry.name:
        hint = "Convert into a folder of its own."
        raise ModelError("The folder holds another model.", where=str(out / resolve.CARD), found=stated, hint=hint)
    if path.resolve() == (out / f"{entry.name}.xml").resolve():
        hint = "Choose another --out."
        raise ModelError("The converted model would overwrite its source.", where=str(path), found=str(out), hint=hint)


def _written(
    entry: Entry, path: Path, xml: Path, form: str | None, told: Callbacks, plain: bool
) -> tuple[str | None, Mapping[str, Any]]:
    """Write the IR of the model at `path`; its form, if that is now known, and what the card says of its making."""
    if path.suffix in inspect_model.CHECKPOINTS:
        return _from_checkpoint(entry, path, xml, form or entry.form), {}
    if inspect_model.is_old_ir(path):
        from segray.conversion import ir_v5

        ir_v5.convert(path, xml)
        (xml.parent / resolve.CARD).unlink(missing_ok=True)
    elif entry.kind == "tensorflow" and form != "converted" and not plain:
        return form, lean.save(path, xml, told.note)
    else:
        engine.save(engine.read(path), xml)
    return form, {}


def _from_checkpoint(entry: Entry, path: Path, xml: Path, form: str) -> str:
    if entry.kind != "checkpoint":
        hint = f"Expected: {entry.how_to_get}"
        raise ModelError(f"{entry.name} is not made from a checkpoint.", where=str(path), found=path.suffix, hint=hint)
    from segray.conversion import yolact

    yolact.convert(path, xml, form="original" if form == "original" else "converted")
    (xml.parent / resolve.CARD).unlink()
    return form


def _card_of(entry: Entry, model: resolve.Model, source: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "contract": model.contract.name,
        "form": model.form.name,
        "files": {file.name: resolve.sha256(file) for file in model.files},
        "labels": {str(number): name for number, name in model.contract.labels.items()},
        "licence": entry.licence,
        "source": dict(source),
        "thresholds": dict(entry.thresholds),
        "versions": {"segray": segray.__version__, "openvino": version("openvino")},
    }


def put(staging: Path, out: Path, card: Mapping[str, Any]) -> None:
    """Move an IR to its place; `card["files"]` names it. While a part is old, no card vouches and no .xml is there."""
    (staging / resolve.CARD).write_text(json.dumps(card, indent=2) + "\n", "utf-8")
    names = sorted(card["files"])  # .bin before .xml
    (out / resolve.CARD).unlink(missing_ok=True)
    (out / names[-1]).unlink(missing_ok=True)
    for name in (*names, resolve.CARD):
        (staging / name).replace(out / name)
