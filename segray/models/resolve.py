"""The search for a configured model: its files, its form and its fingerprint.

Knows names, files, the card beside a model and fingerprints. Knows nothing of devices or of the meaning of outputs.

A card is a file `segray.json` beside the model, or in the folder of a SavedModel: {"contract": name, "form": name} and
any further keys. The card states what the model file alone cannot tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segray.errors import ConfigError, ModelError
from segray.models import engine, zoo
from segray.models.adapters.adapter import ImageInput, ModelAdapter, ModelFormat
from segray.models.registry import ADAPTERS

CARD = "segray.json"
EMBEDDED = Path(__file__).parents[1] / "synthetic" / "model" / "stickers.xml"

HOW_TO_GET: Mapping[str, str] = {name: entry.how_to_get for name, entry in zoo.CATALOGUE.items()}


@dataclass(frozen=True)
class ResolvedModel:
    """A model: its adapter, form and files on disk.

    name: model.name. path: the path that OpenVINO opens. fingerprint: 64 hex digits over the contents of the files, the
    adapter's name and the form's name.
    """

    name: str
    adapter: ModelAdapter
    form: ModelFormat
    path: Path
    files: tuple[Path, ...]
    fingerprint: str


def resolve(
    name: str, path: str | None = None, form: str | None = None, labels: Mapping[int, str] | None = None
) -> ResolvedModel:
    """Return the configured model.

    Args:
        name: model.name.
        path: model.path, None for the embedded model.
        form: model.form, None to take the form from the card or from the outputs.
        labels: model.labels, category id -> class name, None for the adapter's own.

    Raises:
        ConfigError: The configuration does not settle the model or its form.
        ModelError: The files cannot be this model.
    """
    adapter = _adapter(name)
    model_path = _model_path(name, path)
    _check_readable(name, model_path)
    files = tuple(file for file in engine.model_files(model_path) if file.name != CARD)
    model_form = _resolve_form(adapter, name, model_path, form)
    fingerprint = _fingerprint(model_path, files, adapter.name, model_form.name)
    if labels is not None:
        adapter = adapter.with_labels(labels)
    return ResolvedModel(name, adapter, model_form, model_path, files, fingerprint)


def _adapter(name: str) -> ModelAdapter:
    zoo.find(name)
    if name not in ADAPTERS:
        hint = f"Set `model.name` to one of {', '.join(ADAPTERS)}."
        raise ConfigError(f"{name} cannot be decoded yet.", where="model.name", found="no adapter", hint=hint)
    return ADAPTERS[name]


def _model_path(name: str, path: str | None) -> Path:
    if path is not None:
        return engine.model_root(Path(path))
    if name != "stickers":
        raise ConfigError(f"{name} needs its files.", where="model.path", found="nothing", hint=HOW_TO_GET[name])
    return EMBEDDED


def _check_readable(name: str, path: Path) -> None:
    """Raise ModelError if the files are missing or too old, with a hint for this model."""
    if not path.exists():
        hint = (
            "The stickers come with segray. Remove `model.path`, or add --set model.path=null."
            if name == "stickers"
            else f"Check `model.path`. To get the model: {HOW_TO_GET[name]}"
        )
        raise ModelError("The model does not exist.", where=str(path), found=engine.similar_names(path), hint=hint)
    if path.suffix == ".xml" and path.is_file() and (version := engine.ir_version(path)) < engine.OLDEST_IR:
        what = f"OpenVINO no longer reads IR v{version}."
        raise ModelError(what, where=str(path), found=f"version {version}", hint=HOW_TO_GET[name])


def _resolve_form(adapter: ModelAdapter, name: str, path: Path, configured_form: str | None) -> ModelFormat:
    """Return the form from the configuration or the card, else the only form whose outputs the file has."""
    card_form = _card_of(path, adapter, name).get("form")
    if configured_form and card_form and configured_form != card_form:
        found = f"the card says {card_form!r}, model.form {configured_form!r}"
        hint = f"Remove `model.form`, or correct `form` in {CARD}."
        raise ConfigError("The card and `model.form` state different forms.", where=str(path), found=found, hint=hint)
    form_name = configured_form or card_form or _form_of_outputs(adapter, path)
    if form_name not in adapter.forms:
        hint = f"Set `model.form` to {' or '.join(adapter.forms)}."
        raise ConfigError(f"{name} has no form {form_name!r}.", where="model.form", found=repr(form_name), hint=hint)
    return adapter.forms[form_name]


def _card_of(path: Path, adapter: ModelAdapter, name: str) -> Mapping[str, Any]:
    """Return the card beside the model; raise ConfigError if the card names another model."""
    card = read_card(path)
    if card.get("contract", name) not in (name, adapter.name):
        what = f"The card beside the model describes another model than {name}."
        hint = "Check `model.name` and `model.path`."
        raise ConfigError(what, where=str(path), found=f"contract {card.get('contract')!r}", hint=hint)
    return card


def read_card(path: Path) -> Mapping[str, Any]:
    """Return the card beside the model file at `path`, or in that folder; empty if there is no card."""
    file = (path if path.is_dir() else path.parent) / CARD
    if not file.is_file():
        return {}
    try:
        card = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        hint = f"Correct {CARD}, or remove the file."
        raise ModelError(
            "The card beside the model is not JSON.", where=str(file), found=str(error), hint=hint
        ) from error
    if not isinstance(card, dict):
        hint = f"Correct {CARD}, or remove the file."
        raise ModelError(
            "The card beside the model is not a JSON object.", where=str(file), found=repr(card)[:80], hint=hint
        )
    return card


def _form_of_outputs(adapter: ModelAdapter, path: Path) -> str:
    """Return the name of the only form whose outputs the file has; raise ConfigError if several forms remain."""
    forms = list(adapter.forms.values())
    if len(forms) > 1:
        ports = engine.signature(path)
        forms = [form for form in forms if not engine.absent_outputs(ports, form)] or forms
    if len(forms) == 1:
        return forms[0].name
    raise ConfigError(
        f"The file does not tell in which form {adapter.name} is.",
        where="model.form",
        found=f"no model.form in the configuration, no {CARD} beside {path}",
        hint="Set model.form: " + "; ".join(f"{form.name!r} if {_describe(form.image)}" for form in forms) + ".",
    )


def _describe(image: ImageInput) -> str:
    if image.mean is None and image.scale is None:
        return f"the graph takes {image.colour} 0..255 and applies mean and scale"
    return f"the graph takes normalised {image.colour}, with mean {image.mean} and scale {image.scale}"


def _fingerprint(path: Path, files: tuple[Path, ...], adapter_name: str, form_name: str) -> str:
    lines = [f"contract {adapter_name}", f"form {form_name}"]
    for file in files:
        digest = sha256(file)
        # A renamed or moved model is the same model, but names inside a SavedModel have a meaning.
        lines.append(f"{file.relative_to(path) if path.is_dir() else file.suffix} {digest}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sha256(file: Path) -> str:
    """Return the SHA-256 of the file's content, as 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
