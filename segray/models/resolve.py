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
    """An adapter and its files on disk. fingerprint: 64 hex digits over file contents, contract name and form name."""

    name: str
    contract: ModelAdapter
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
    contract = _contract(name)
    place = _path(name, path)
    _check_readable(name, place)
    files = tuple(file for file in engine.model_files(place) if file.name != CARD)
    chosen = _form(contract, name, place, form)
    fingerprint = _fingerprint(place, files, contract.name, chosen.name)
    if labels is not None:
        contract = contract.with_labels(labels)
    return ResolvedModel(name, contract, chosen, place, files, fingerprint)


def _contract(name: str) -> ModelAdapter:
    zoo.find(name)
    if name not in ADAPTERS:
        found = f"contracts: {', '.join(ADAPTERS)}"
        raise ConfigError(
            f"{name} cannot be decoded yet.", where="model.name", found=found, hint="Choose one of those."
        )
    return ADAPTERS[name]


def _path(name: str, path: str | None) -> Path:
    if path is not None:
        return engine.model_root(Path(path))
    if name != "stickers":
        raise ConfigError(f"{name} needs its files.", where="model.path", found="nothing", hint=HOW_TO_GET[name])
    return EMBEDDED


def _check_readable(name: str, path: Path) -> None:
    """Raise ModelError if the files are missing or too old, with a hint for this model."""
    if not path.exists():
        hint = f"Check model.path; to get the model: {HOW_TO_GET[name]}"
        raise ModelError("The model does not exist.", where=str(path), found=engine.near(path), hint=hint)
    if path.suffix == ".xml" and path.is_file() and (version := engine.ir_version(path)) < engine.OLDEST_IR:
        what = f"IR v{version} is no longer read by OpenVINO."
        raise ModelError(what, where=str(path), found=f"version {version}", hint=HOW_TO_GET[name])


def _form(contract: ModelAdapter, name: str, path: Path, asked: str | None) -> ModelFormat:
    """Return the form from the configuration or the card, else the only form whose outputs the file has."""
    card = _card(path, contract, name)
    stated = card.get("form")
    if asked and stated and asked != stated:
        found, hint = f"the card says {stated!r}, model.form {asked!r}", "Remove model.form, or correct the card."
        raise ConfigError("The model's form is stated twice.", where=str(path), found=found, hint=hint)
    chosen = asked or stated or _told_by_outputs(contract, path)
    if chosen not in contract.forms:
        hint = f"Choose {' or '.join(contract.forms)}."
        raise ConfigError(f"{name} has no form {chosen!r}.", where="model.form", found=repr(chosen), hint=hint)
    return contract.forms[chosen]


def _card(path: Path, contract: ModelAdapter, name: str) -> Mapping[str, Any]:
    card = read_card(path)
    if card.get("contract", name) not in (name, contract.name):
        what = f"The card beside the model speaks of another model than {name}."
        hint = "Check model.name and model.path."
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
        hint = "Correct or remove it."
        raise ModelError(
            "The card beside the model is not JSON.", where=str(file), found=str(error), hint=hint
        ) from error
    if not isinstance(card, dict):
        hint = "Correct or remove it."
        raise ModelError(
            "The card beside the model is no JSON object.", where=str(file), found=repr(card)[:80], hint=hint
        )
    return card


def _told_by_outputs(contract: ModelAdapter, path: Path) -> str:
    forms = list(contract.forms.values())
    if len(forms) > 1:
        found = engine.signature(path)
        forms = [form for form in forms if not engine.absent_outputs(found, form)] or forms
    if len(forms) == 1:
        return forms[0].name
    raise ConfigError(
        f"The file does not tell in which form {contract.name} is.",
        where="model.form",
        found=f"nothing in the configuration, no {CARD} beside {path}",
        hint="Set model.form: " + "; ".join(f"{form.name!r} if {_describe(form.image)}" for form in forms) + ".",
    )


def _describe(image: ImageInput) -> str:
    if image.mean is None and image.scale is None:
        return f"it takes {image.colour} 0..255, with mean and scale inside"
    return f"it takes normalised {image.colour}, with mean {image.mean} and scale {image.scale} outside"


def _fingerprint(path: Path, files: tuple[Path, ...], contract: str, form: str) -> str:
    lines = [f"contract {contract}", f"form {form}"]
    for file in files:
        digest = sha256(file)
        # A renamed or moved model is the same model, but names inside a SavedModel have a meaning.
        lines.append(f"{file.relative_to(path) if path.is_dir() else file.suffix} {digest}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sha256(file: Path) -> str:
    """Return the SHA-256 of the file's content, as 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
