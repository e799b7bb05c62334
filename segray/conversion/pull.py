"""Installation of a model: download, verify, unpack, convert, check, and write a card.

Knows the order of these steps and the folder that they leave. The addresses are in the catalogue, segray/models/zoo.py.

    INTO/NAME/download/     the downloads, kept
    INTO/NAME/unpacked/     the archive's content, until the IR is complete
    INTO/NAME/NAME.xml      the IR, its .bin beside it
    INTO/NAME/segray.json   the card, written last: with right checksums on the card, all steps are complete

Each of these appears under its name when complete. A repetition after any interruption resumes at the next step.
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
from segray.conversion import inspect_model
from segray.conversion.tensorflow import convert as tensorflow_convert
from segray.errors import ConfigError, InfrastructureError, ModelError
from segray.models import checkpoints, engine, fits, metadata, resolve
from segray.models.registry import ADAPTERS
from segray.models.zoo import FormName, ModelSource, ZooModel
from segray.storage import download

Note = Callable[[str], None]


@dataclass(frozen=True)
class InstalledModel:
    """A model that `segray label` can use. sha256: file name -> checksum. already: the model was installed before."""

    name: str
    form: str
    xml: Path
    sha256: Mapping[str, str]
    already: bool = False


@dataclass(frozen=True)
class Callbacks:
    """Functions that report progress. note: a step begins. progress: bytes of a download."""

    note: Note = lambda text: None
    progress: download.Progress = lambda done_bytes, total_bytes: None


def pull(
    entry: ZooModel,
    into: Path,
    *,
    plain: bool = False,
    callbacks: Callbacks = Callbacks(),
    retry_policy: download.RetryPolicy = download.DEFAULT_RETRY_POLICY,
) -> InstalledModel:
    """Install the published model in the folder `into`/NAME; a complete installation is kept.

    Args:
        entry: The model's entry in the catalogue.
        into: Parent folder of the installation.
        plain: Keep a TensorFlow graph as OpenVINO converts it.
        callbacks: Functions that report progress.
        retry_policy: How long to keep trying each address.

    Raises:
        ModelError: The files are not the published ones, or cannot be converted on this machine.
        InfrastructureError: No address gives the files. The same call resumes.
    """
    if not entry.sources:
        hint = f"Set `model.name` to {entry.name} and leave out model.path."
        raise ConfigError(f"{entry.name} comes with segray.", where="NAME", found=entry.name, hint=hint)
    folder = into / entry.name
    with folder_lock(folder):
        if ready := installed_model(entry.name, folder):
            return ready
        source, sha256 = _download_first_source(entry, folder / "download", callbacks, retry_policy)
        original = _unpacked_model(source, folder, callbacks)
        parts = {"files": sha256, "model": source.model}
        _convert(entry, original, folder, entry.form, parts, callbacks, published=True, plain=plain)
        shutil.rmtree(folder / "unpacked", ignore_errors=True)
        return _installed_now(entry.name, folder)


def convert(
    entry: ZooModel,
    path: Path,
    out: Path,
    *,
    form: FormName | None = None,
    plain: bool = False,
    callbacks: Callbacks = Callbacks(),
) -> InstalledModel:
    """Write the model at `path` as an IR with a card into the folder `out`, which holds no other model.

    Args:
        entry: The model's entry in the catalogue.
        path: Frozen graph, SavedModel, ONNX, IR of any version that can be read or rewritten, or YOLACT's .pth.
        out: The folder of the IR.
        form: original or converted, where the files do not tell; None otherwise.
        plain: Keep a TensorFlow graph as OpenVINO converts it.
        callbacks: Functions that report progress.

    Raises:
        ModelError: The files are of another model.
        ConfigError: The form is unknown.
    """
    path = engine.model_root(path)
    with folder_lock(out):
        _convert(entry, path, out, form, {"model": path.name}, callbacks, published=False, plain=plain)
        return _installed_now(entry.name, out)


def installed_model(name: str, folder: Path) -> InstalledModel | None:
    """Return the model in `folder` if its files have the checksums on its card; None otherwise."""
    xml, card = folder / f"{name}.xml", metadata.read_card(folder)
    sha256 = card.get("files", {})
    files = (xml, xml.with_suffix(".bin"))
    if not all(file.is_file() and resolve.sha256(file) == sha256.get(file.name) for file in files):
        return None
    return InstalledModel(name, card["form"], xml, sha256, already=True)


def _installed_now(name: str, folder: Path) -> InstalledModel:
    """Return the model that this call installed; raise InfrastructureError if the files changed meanwhile."""
    model = installed_model(name, folder)
    if model is None:
        raise InfrastructureError(
            "The files of the model changed during the installation.",
            where=str(folder),
            found="checksums that differ from the card",
            hint="Run the same command again.",
        )
    return replace(model, already=False)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock the folder, created if needed, against other processes that install into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        hint = "Set --into or --out to another folder."
        raise InfrastructureError(
            "segray cannot use the folder.", where=str(folder), found=str(error), hint=hint
        ) from error
    try:
        _lock_folder(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock_folder(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        hint = "Wait for the other process, or stop that process."
        raise InfrastructureError(
            "Another process writes to the folder.", where=str(folder), found="a locked folder", hint=hint
        ) from error


# ---- sources --------------------------------------------------------------------------------------


def _download_first_source(
    entry: ZooModel, folder: Path, callbacks: Callbacks, retry_policy: download.RetryPolicy
) -> tuple[ModelSource, dict[str, str]]:
    """Return the first source of which all files could be downloaded, and their SHA-256 by name."""
    failures = []
    for source in entry.sources:
        try:
            return source, _download_source(source, folder, callbacks, retry_policy)
        except InfrastructureError as error:
            failures.append(error)
    last = failures[-1]
    reasons = "; ".join(error.found or error.what for error in failures)
    raise InfrastructureError(last.what, where=str(folder), found=reasons, hint=last.hint) from last


def _download_source(
    source: ModelSource, folder: Path, callbacks: Callbacks, retry_policy: download.RetryPolicy
) -> dict[str, str]:
    sha256 = {}
    for file in source.files:
        callbacks.note(f"fetching {file.name}")
        sha256[file.name] = download.download_file(
            file.urls,
            folder / file.name,
            sha256=file.sha256,
            sha384=file.sha384,
            size_bytes=file.size_bytes,
            progress=callbacks.progress,
            retry_policy=retry_policy,
        )
    return sha256


def _unpacked_model(source: ModelSource, folder: Path, callbacks: Callbacks) -> Path:
    """Return the path of the model to convert, unpacked if it comes in an archive."""
    root = folder / "download"
    if source.archived:
        callbacks.note(f"unpacking {source.files[0].name}")
        download.unpack(root / source.files[0].name, folder / "unpacked")
        root = folder / "unpacked"
    model = root / source.model
    if not model.exists():
        found = ", ".join(sorted(str(file.relative_to(root)) for file in root.rglob("*"))[:20])
        hint = f"Expected: {source.holds}. Remove {folder}, then run the same command again."
        raise ModelError(f"The archive does not contain {source.model}.", where=str(root), found=found, hint=hint)
    return model


# ---- conversion -----------------------------------------------------------------------------------


def _convert(
    entry: ZooModel,
    path: Path,
    out: Path,
    form: str | None,
    source: Mapping[str, Any],
    callbacks: Callbacks,
    *,
    published: bool,
    plain: bool,
) -> None:
    """Make the IR and its card in a staging folder, then move both to `out`.

    published: raise ModelError if the model differs from the catalogue's description.
    """
    _check_folder(entry, path, out)
    staging = out / ".converting"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        callbacks.note(f"converting {path.name}")
        xml = staging / f"{entry.name}.xml"
        form, rewritten = _write_ir(entry, path, xml, form, callbacks, plain)
        model = _identify(entry, path, xml, form, published)
        install(staging, out, _card(entry, model, {**source, **rewritten}))
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _identify(entry: ZooModel, path: Path, xml: Path, form: str | None, published: bool) -> resolve.ResolvedModel:
    """Return the model of the IR at `xml`, made from `path`; raise ModelError if the IR is of another model."""
    ports, forms = engine.signature(xml), ADAPTERS[entry.name].forms
    if all(engine.absent_outputs(ports, model_format) for model_format in forms.values()):
        engine.check(ports, forms[form or entry.form], str(path))
    try:
        model = resolve.resolve(entry.name, str(xml), form)
    except ConfigError as error:
        hint = error.hint.replace("Set model.form:", "Set --form:")
        raise ConfigError(error.what, where=str(path), found="several possible forms", hint=hint) from error
    engine.check(ports, model.form, str(path))
    unlike = fits.differences(ports, entry, model.form)
    if published and unlike:
        hint = "Remove the folder and run the same command again. If the error stays, the published files have changed."
        raise ModelError(
            "The model differs from the published model.", where=str(path), found="; ".join(unlike), hint=hint
        )
    return model


def _check_folder(entry: ZooModel, path: Path, out: Path) -> None:
    if (stated := metadata.read_card(out).get("contract", entry.name)) != entry.name:
        hint = "Set --out to a folder for this model alone."
        raise ModelError("The folder holds another model.", where=str(out / metadata.CARD), found=stated, hint=hint)
    if path.resolve() == (out / f"{entry.name}.xml").resolve():
        hint = "Set --out to another folder."
        raise ModelError("The converted model would overwrite its source.", where=str(path), found=str(out), hint=hint)


def _write_ir(
    entry: ZooModel, path: Path, xml: Path, form: str | None, callbacks: Callbacks, plain: bool
) -> tuple[str | None, Mapping[str, Any]]:
    """Write the IR of the model at `path`; return its form, if known, and facts on the conversion for the card."""
    if path.suffix in checkpoints.SUFFIXES:
        return _convert_checkpoint(entry, path, xml, form or entry.form), {}
    if inspect_model.is_old_ir(path):
        from segray.conversion import ir_v5

        ir_v5.convert(path, xml)
        (xml.parent / metadata.CARD).unlink(missing_ok=True)
    elif entry.kind == "tensorflow" and form != "converted" and not plain:
        return form, tensorflow_convert.save(path, xml, callbacks.note)
    else:
        engine.save(engine.read(path), xml)
    return form, {}


def _convert_checkpoint(entry: ZooModel, path: Path, xml: Path, form: str) -> str:
    if entry.kind != "checkpoint":
        hint = f"Expected: {entry.how_to_get}"
        raise ModelError(f"{entry.name} is not made from a checkpoint.", where=str(path), found=path.suffix, hint=hint)
    from segray.conversion import yolact

    yolact.convert(path, xml, form="original" if form == "original" else "converted")
    (xml.parent / metadata.CARD).unlink()
    return form


def _card(entry: ZooModel, model: resolve.ResolvedModel, source: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "contract": model.adapter.name,
        "form": model.form.name,
        "files": {file.name: resolve.sha256(file) for file in model.files},
        "labels": {str(number): name for number, name in model.adapter.labels.items()},
        "licence": entry.licence,
        "source": dict(source),
        "thresholds": dict(entry.thresholds),
        "versions": {"segray": segray.__version__, "openvino": version("openvino")},
    }


def install(staging: Path, out: Path, card: Mapping[str, Any]) -> None:
    """Move an IR and its card from `staging` to `out`; `card["files"]` names the files.

    During the move, `out` has neither a card nor an .xml, so that no old part passes as current.
    """
    (staging / metadata.CARD).write_text(json.dumps(card, indent=2) + "\n", "utf-8")
    names = sorted(card["files"])  # .bin before .xml
    (out / metadata.CARD).unlink(missing_ok=True)
    (out / names[-1]).unlink(missing_ok=True)
    for name in (*names, metadata.CARD):
        (staging / name).replace(out / name)
