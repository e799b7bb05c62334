"""The search for a configured model: its files, its adapter, its form and its fingerprint.

Knows names, files, the card beside a model, descriptions and fingerprints. Knows nothing of devices or of the meaning
of outputs. A model of the catalogue has a name. Any other model is told by the description that its file gives.

A card is a file `segray.json` beside the model, or in the folder of a SavedModel: {"contract": name, "form": name} and
any further keys. The card states what the model file alone cannot tell.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segray.config import AUTO, ModelSettings
from segray.errors import ConfigError, ModelError
from segray.models import checkpoints, describe, engine, zoo
from segray.models.adapters.adapter import ImageInput, ModelAdapter, ModelFormat
from segray.models.describe import hugging_face, rf_detr
from segray.models.description import Description
from segray.models.engine import Signature
from segray.models.fits import fits_of
from segray.models.metadata import CARD, read_card
from segray.models.registry import ADAPTERS, FAMILIES
from segray.models.zoo import CATALOGUE
from segray.storage.uris import PathOrUrl, as_uri

EMBEDDED = Path(__file__).parents[1] / "synthetic" / "model" / "stickers.xml"

HOW_TO_GET: Mapping[str, str] = {name: entry.how_to_get for name, entry in zoo.CATALOGUE.items()}


@dataclass(frozen=True)
class ResolvedModel:
    """A model: its adapter, form and files on disk.

    name: name in the catalogue, or the family of a model that describes itself. path: the path that OpenVINO opens.
    fingerprint: 64 hex digits over the contents of the files, the adapter's name, the form's name and the description.
    description: what the file says of itself; None for a model of the catalogue. effective: the description with the
    facts of the configuration in place of the file's. ports: the model's inputs and outputs, if the search had to read
    them; see `signature`.
    """

    name: str
    adapter: ModelAdapter
    form: ModelFormat
    path: Path
    files: tuple[Path, ...]
    fingerprint: str
    description: Description | None = None
    effective: Description | None = None
    ports: Signature | None = None

    def signature(self) -> Signature:
        """Return the inputs and outputs of the model; read the file only if the search for the model did not."""
        return engine.signature(self.path) if self.ports is None else self.ports

    def complete(self, settings: ModelSettings) -> ModelSettings:
        """Return the settings with the model's own values where they have none."""
        return settings.with_defaults(self.name, str(self.path), **asdict(self.adapter.defaults))


def resolve(
    name: str = AUTO, path: str | None = None, form: str | None = None, labels: Mapping[int, str] | None = None
) -> ResolvedModel:
    """Return the model of these keys of the section `model`; see `configured`."""
    return configured(ModelSettings.model_construct(name=name, path=path, form=form, labels=labels))


def keys_of(model: PathOrUrl) -> dict[str, str]:
    """Return the keys `name` and `path` of the section `model` for a model that a person names.

    Args:
        model: A name of the catalogue, or the path of a file or folder. For a name, `models/NAME/NAME.xml` is taken
            where `segray models pull` has written it.
    """
    name = os.fspath(model)
    if isinstance(model, str) and name in CATALOGUE and not Path(name).exists():
        pulled = Path("models", name, f"{name}.xml")
        return {"name": name, "path": str(pulled)} if pulled.is_file() else {"name": name}
    return {"path": as_uri(model)}


def configured(settings: ModelSettings, description: Description | None = None) -> ResolvedModel:
    """Return the configured model.

    Args:
        settings: The section `model` of the configuration.
        description: What the file says of itself, if it was read before; None to read it.

    Raises:
        ConfigError: The configuration does not settle the model or its form.
        ModelError: The files cannot be this model.
    """
    if description is None and settings.name in CATALOGUE:
        return _resolve_named(settings, settings.name)
    return _resolve_described(settings, description)


def _resolve_named(settings: ModelSettings, name: str, ports: Signature | None = None) -> ResolvedModel:
    """Return a model of the catalogue. ports: those of the file, if they were read before."""
    _refuse_keys_of_described_models(settings, name)
    adapter = _adapter(name)
    model_path = _model_path(name, settings.path)
    _check_readable(name, model_path)
    files = tuple(file for file in engine.model_files(model_path) if file.name != CARD)
    model_form, ports = _resolve_form(adapter, name, model_path, settings.form, ports)
    fingerprint = _fingerprint(model_path, files, adapter.name, model_form.name)
    if settings.labels is not None:
        adapter = adapter.with_labels(settings.labels)
    return ResolvedModel(name, adapter, model_form, model_path, files, fingerprint, ports=ports)


# ---- models that describe themselves --------------------------------------------------------------


def _resolve_described(settings: ModelSettings, description: Description | None) -> ResolvedModel:
    """Return a model of a family; the configuration overrides what its file says."""
    if settings.name not in (AUTO, *FAMILIES):
        zoo.find(settings.name)  # Raises the error with the nearest name.
    if settings.path is None:
        raise ConfigError(
            "The configuration names no model.",
            where="model",
            found="neither model.path nor model.name",
            hint=f"Set `model.path` to the file or folder of your model, or `model.name` to {', '.join(CATALOGUE)}.",
        )
    path, ports = describe.model_file(Path(settings.path)), None
    if description is None:
        ports = _ports(path)
        described = describe.describe(path, ports)
        if described is None and settings.name == AUTO:
            name = _name_by_ports(ports, path)
            return _resolve_named(settings.model_copy(update={"name": name, "path": str(path)}), name, ports)
        description = _checked(described, settings, path, ports)
    effective = _with_settings(description, settings)
    adapter = FAMILIES[description.family](effective)
    if settings.form is not None:
        hint = "Remove `model.form`. The forms original and converted belong to models with a name."
        raise ConfigError("The model has one form only.", where="model.form", found=settings.form, hint=hint)
    if settings.labels is not None:
        adapter = adapter.with_labels(settings.labels)
    files = tuple(file for file in engine.model_files(path) if file.name != CARD)
    (form,) = adapter.forms.values()
    fingerprint = _fingerprint(path, files, adapter.name, form.name, description)
    return ResolvedModel(description.family, adapter, form, path, files, fingerprint, description, effective, ports)


def _ports(path: Path) -> Signature:
    """Return the ports of the model at `path`; raise ModelError with the way to get one for a checkpoint."""
    if checkpoints.is_checkpoint(path):
        raise ModelError(
            "A checkpoint has weights but no graph.",
            where=str(path),
            found=f"suffix {path.suffix!r}",
            hint=checkpoints.way_to_model(path),
        )
    return engine.signature(path)


def _name_by_ports(ports: Signature, path: Path) -> str:
    """Return the only model of the catalogue that the file fits; raise ConfigError unless there is exactly one."""
    names = list(dict.fromkeys(fit.name for fit in fits_of(ports, path)))
    if len(names) == 1:
        return names[0]
    if names:
        what = "The file fits several models."
        found, hint = ", ".join(names), f"Set `model.name` to {' or '.join(names)}."
    else:
        what = "The file does not tell what model it is."
        found = f"inputs {'; '.join(map(str, ports.inputs))}; outputs {'; '.join(map(str, ports.outputs))}"
        hint = f"Run `segray models inspect {path}`. segray takes the models on `segray models list`, and its families."
    raise ConfigError(what, where=str(path), found=found, hint=hint)


def _checked(description: Description | None, settings: ModelSettings, path: Path, ports: Signature) -> Description:
    """Return the description; raise ConfigError unless it is of the configured family, which segray decodes."""
    if description is None:
        raise ConfigError(
            f"The file does not tell that it is a model of {settings.name}.",
            where=str(path),
            found=f"outputs {'; '.join(map(str, ports.outputs))}",
            hint=f"Run `segray models inspect {path}`, or describe the model in {CARD} beside it.",
        )
    if description.family == hugging_face.UNDECIDED:
        return _of_processor(description, settings, path)
    if description.family not in FAMILIES:
        raise ConfigError(
            f"segray cannot decode models of the family {description.family} yet.",
            where=str(path),
            found=description.what,
            hint=f"Use a model of {', '.join(FAMILIES)}, or one that `segray models list` shows.",
        )
    if settings.name not in (AUTO, description.family):
        raise ConfigError(
            f"The file says that it is no {settings.name}.",
            where=str(path),
            found=f"{description.what}, of the family {description.family}",
            hint=f"Remove `model.name`, or set `model.name` to {description.family}.",
        )
    return description


def _of_processor(description: Description, settings: ModelSettings, path: Path) -> Description:
    """Return the description with the configured processor; raise ConfigError if none is configured."""
    if settings.name in hugging_face.PROCESSORS:
        return hugging_face.as_processor(description, settings.name, "configuration")
    names = list(hugging_face.PROCESSORS)
    raise ConfigError(
        "The file does not tell which image processor the model has.",
        where=str(path),
        found=description.what,
        hint=f"Set `model.name` to {', '.join(names[:-1])} or {names[-1]}, whichever the model is.",
    )


def _with_settings(description: Description, settings: ModelSettings) -> Description:
    """Return the description with the facts that the configuration states."""
    given = {} if settings.preprocessing is None else settings.preprocessing.model_dump(exclude_none=True)
    facts: dict[str, Any] = {("pad_value" if key == "pad" else key): value for key, value in given.items()}
    if settings.size is not None:
        facts["size_hw"] = settings.size
    if settings.labels is not None:
        facts["labels"] = settings.labels
    missing = tuple(key for key in description.missing if getattr(settings, key) is None)
    if missing:
        raise ConfigError(
            f"The file does not tell the model's {' and '.join(missing)}.",
            where=description.what,
            found="nothing in the file or beside it",
            hint=" ".join(how_to_state(key, description) for key in missing),
        )
    expected = len(description.labels) or description.extra.get("classes")
    # A network with columns can be named in several ways; its adapter checks the names.
    is_counted = expected is not None and "columns" not in description.extra
    if settings.labels is not None and is_counted and expected != len(settings.labels):
        raise ConfigError(
            "The labels are not as many as the network's classes.",
            where="model.labels",
            found=f"{len(settings.labels)} labels, {expected} classes",
            hint="Name each class of the network in `model.labels`, in the network's order.",
        )
    sources = {**description.sources, **dict.fromkeys(facts, "configuration")}
    return replace(description, **facts, missing=(), sources=sources)


def how_to_state(key: str, description: Description) -> str:
    """Return how to state a missing fact, for errors."""
    sizes = f" {rf_detr.SIZES}" if key == "size" and description.family == "rf_detr" else ""
    return f"{_HOW_TO_STATE[key]}{sizes}"


_HOW_TO_STATE: Mapping[str, str] = {
    "size": "Set `model.size` to the height and width of the network's input, such as [640, 640].",
    "labels": "Set `model.labels` to the classes in the network's order, such as {1: bolt, 2: nut}.",
}


def _refuse_keys_of_described_models(settings: ModelSettings, name: str) -> None:
    for key in ("size", "preprocessing"):
        if getattr(settings, key) is not None:
            hint = f"Remove `model.{key}`. The key is for models that describe themselves."
            what = f"{name} has its own preprocessing."
            raise ConfigError(what, where=f"model.{key}", found=str(getattr(settings, key)), hint=hint)


# ---- models of the catalogue ----------------------------------------------------------------------


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
        raise engine.missing_error(path, "The model does not exist.", hint)
    if path.suffix == ".xml" and path.is_file() and (version := engine.ir_version(path)) < engine.OLDEST_IR:
        what = f"OpenVINO no longer reads IR v{version}."
        raise ModelError(what, where=str(path), found=f"version {version}", hint=HOW_TO_GET[name])


def _resolve_form(
    adapter: ModelAdapter, name: str, path: Path, configured_form: str | None, ports: Signature | None
) -> tuple[ModelFormat, Signature | None]:
    """Return the form from the configuration or the card, else the only form whose outputs the file has.

    The second result is the file's ports, if they are known or had to be read.
    """
    card_form = _card_of(path, adapter, name).get("form")
    if configured_form and card_form and configured_form != card_form:
        found = f"the card says {card_form!r}, model.form {configured_form!r}"
        hint = f"Remove `model.form`, or correct `form` in {CARD}."
        raise ConfigError("The card and `model.form` state different forms.", where=str(path), found=found, hint=hint)
    form_name = configured_form or card_form
    if not form_name:
        if ports is None and len(adapter.forms) > 1:
            ports = engine.signature(path)
        form_name = _form_of_outputs(adapter, path, ports)
    if form_name not in adapter.forms:
        hint = f"Set `model.form` to {' or '.join(adapter.forms)}."
        raise ConfigError(f"{name} has no form {form_name!r}.", where="model.form", found=repr(form_name), hint=hint)
    return adapter.forms[form_name], ports


def _card_of(path: Path, adapter: ModelAdapter, name: str) -> Mapping[str, Any]:
    """Return the card beside the model; raise ConfigError if the card names another model."""
    card = read_card(path)
    if card.get("contract", name) not in (name, adapter.name):
        what = f"The card beside the model describes another model than {name}."
        hint = "Check `model.name` and `model.path`."
        raise ConfigError(what, where=str(path), found=f"contract {card.get('contract')!r}", hint=hint)
    return card


def _form_of_outputs(adapter: ModelAdapter, path: Path, ports: Signature | None) -> str:
    """Return the name of the only form whose outputs the file has; raise ConfigError if several forms remain.

    ports: those of the file; None if the adapter has one form.
    """
    forms = list(adapter.forms.values())
    if ports is not None:
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


def _fingerprint(
    path: Path, files: tuple[Path, ...], adapter_name: str, form_name: str, description: Description | None = None
) -> str:
    lines = [f"contract {adapter_name}", f"form {form_name}"]
    if description is not None:
        lines.append(f"description {json.dumps(description.facts_of_rows(), sort_keys=True)}")
    for file in files:
        digest = sha256(file)
        # A renamed or moved model is the same model, but names inside a SavedModel have a meaning.
        lines.append(f"{file.relative_to(path) if path.is_dir() else file.suffix} {digest}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def sha256(file: Path) -> str:
    """Return the SHA-256 of the file's content, as 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
