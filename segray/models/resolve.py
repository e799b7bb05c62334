"""The search for a configured model: its files, its adapter, its form and its fingerprint.

Knows names, files, the card beside a model, descriptions and fingerprints. Knows nothing of devices or of the meaning
of outputs. A model of the catalogue has a name. Any other model is told by the description that its file gives.

A card is a file `segray.json` beside the model, or in the folder of a SavedModel: {"contract": name, "form": name} and
any further keys. The card states what the model file alone cannot tell.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from segray.config import AUTO, ModelSettings
from segray.errors import ConfigError, ModelError
from segray.models import checkpoints, decoders, describe, engine, registry, zoo
from segray.models.adapters.adapter import ImageInput, ModelAdapter, ModelFormat
from segray.models.decoders import Decoder
from segray.models.describe import hugging_face, rf_detr
from segray.models.describe.facts import NAME_CLASSES
from segray.models.description import CONFIGURATION, Description
from segray.models.engine import Signature
from segray.models.fits import fits_of
from segray.models.metadata import CARD, read_card
from segray.models.registry import ADAPTERS, FAMILIES, adapter_of
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
    them; see `signature`. decoder: the user's decoder; None for a model that segray decodes. origin: where the files
    were fetched from, and their checksums; None for files that were not fetched.
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
    decoder: Decoder | None = None
    origin: Mapping[str, Any] | None = None

    def from_origin(self, origin: Mapping[str, Any]) -> ResolvedModel:
        """Return the model with the record of where its files are from."""
        return replace(self, origin=origin)

    def signature(self) -> Signature:
        """Return the inputs and outputs of the model; read the file only if the search for the model did not."""
        return engine.signature(self.path) if self.ports is None else self.ports

    def complete(self, settings: ModelSettings) -> ModelSettings:
        """Return the settings with the model's own values where they have none."""
        return settings.with_defaults(self.name, str(self.path), **asdict(self.adapter.defaults))


def keys_of(model: PathOrUrl) -> dict[str, str | None]:
    """Return the keys `name` and `path` of the section `model` for a model that a person names.

    Args:
        model: The path of a file or folder, a URL, or a name of the catalogue. A name takes
            `models/NAME/NAME.xml` where `segray models pull` has written it.

    Raises:
        ConfigError: The text is a word that is neither a file, a folder nor a name.
    """
    text = as_uri(model)
    if isinstance(model, str) and text in CATALOGUE:
        pulled = zoo.pulled_path(text)
        return {"name": text, "path": str(pulled) if pulled.is_file() else None}
    if isinstance(model, str) and re.fullmatch(r"[\w-]+", text) and not Path(text).exists():
        nearest = difflib.get_close_matches(text, CATALOGUE, n=1)
        similar = f" Did you mean {nearest[0]}?" if nearest else ""
        hint = f"Give the file or folder of your model, or a name of `segray models list`.{similar}"
        raise ConfigError("There is no such file, folder or model.", where="the model", found=repr(text), hint=hint)
    return {"name": AUTO, "path": text}


def resolve(
    name: str = AUTO, path: str | None = None, form: str | None = None, labels: Mapping[int, str] | None = None
) -> ResolvedModel:
    """Return the model of these keys of the section `model`; see `configured`."""
    return configured(ModelSettings.model_construct(name=name, path=path, form=form, labels=labels))


def configured(
    settings: ModelSettings, description: Description | None = None, decoder: Decoder | None = None
) -> ResolvedModel:
    """Return the configured model.

    Args:
        settings: The section `model` of the configuration.
        description: What the file says of itself, if it was read before; None to read it.
        decoder: The user's decoder that gave the description; None if segray did.

    Raises:
        ConfigError: The configuration does not settle the model or its form.
        ModelError: The files cannot be this model.
    """
    if description is None and settings.name in CATALOGUE:
        if settings.adapter is not None:
            hint = "Remove `model.name`, or remove `model.adapter`."
            what = f"{settings.name} has an adapter of segray."
            raise ConfigError(what, where="model.adapter", found=settings.adapter, hint=hint)
        return _resolve_named(settings, settings.name)
    return _resolve_described(settings, description, decoder)


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


def own_decoders(settings: ModelSettings) -> tuple[tuple[Decoder, ...], bool]:
    """Return the user's decoders that may know the model, and whether the model must be of one of them.

    Raises ConfigError if `model.name` is no family, or if a decoder has the name of a family.
    """
    own: tuple[Decoder, ...] = ()
    is_own = settings.adapter is not None
    if settings.adapter is not None:
        own = (decoders.by_reference(settings.adapter),)
        if settings.name not in (AUTO, own[0].name):
            hint = f"Remove `model.name`, or set `model.name` to {own[0].name}."
            what = f"The decoder {settings.adapter} has another name."
            raise ConfigError(what, where="model.name", found=settings.name, hint=hint)
    elif settings.name not in FAMILIES:
        is_own = settings.name != AUTO
        own = decoders.registered((settings.name,) if is_own else None)
        if is_own and not own:
            zoo.find(settings.name)  # Raises the error with the nearest name.
    for decoder in own:
        if decoder.name in (AUTO, *FAMILIES, *CATALOGUE):
            hint = "Give the decoder another name."
            what = f"segray has a model or family {decoder.name!r} of its own."
            raise ConfigError(what, where=decoder.code.source, found=decoder.code.reference, hint=hint)
    return own, is_own


def _resolve_described(
    settings: ModelSettings, description: Description | None, decoder: Decoder | None
) -> ResolvedModel:
    """Return a model of a family; the configuration overrides what its file says."""
    own, is_own = own_decoders(settings) if description is None else ((), False)
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
        described = describe.describe(path, ports, own, own_alone=is_own)
        if described is None and settings.name == AUTO and not is_own:
            name = _name_by_ports(ports, path)
            return _resolve_named(settings.model_copy(update={"name": name, "path": str(path)}), name, ports)
        decoder = next((one for one in own if described is not None and one.name == described.family), None)
        if decoder is None or described is None:
            description = _checked(described, settings, path, ports, own if is_own else ())
        else:
            description = described
    effective = _with_settings(description, settings)
    if decoder is None:
        registry.check(effective)
    adapter = adapter_of(effective, decoder)
    if settings.form is not None:
        hint = "Remove `model.form`. The forms original and converted belong to models with a name."
        raise ConfigError("The model has one form only.", where="model.form", found=settings.form, hint=hint)
    if settings.labels is not None:
        adapter = adapter.with_labels(settings.labels)
    files = tuple(file for file in engine.model_files(path) if file.name != CARD)
    (form,) = adapter.forms.values()
    fingerprint = _fingerprint(path, files, adapter.name, form.name, description)
    return ResolvedModel(
        description.family, adapter, form, path, files, fingerprint, description, effective, ports, decoder
    )


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


def _checked(
    description: Description | None,
    settings: ModelSettings,
    path: Path,
    ports: Signature,
    own: tuple[Decoder, ...] = (),
) -> Description:
    """Return the description; raise ConfigError unless it is of the configured family, which segray decodes.

    own: the user's decoders that the model must be of.
    """
    if own:
        raise ConfigError(
            f"The decoder {own[0].code.reference} says that the model is none of its own.",
            where=str(path),
            found=f"outputs {'; '.join(map(str, ports.outputs))}",
            hint="Check `model.path`, and `describe` of the decoder, which returned None.",
        )
    if description is None:
        raise ConfigError(
            f"The file does not tell that it is a model of {settings.name}.",
            where=str(path),
            found=f"outputs {'; '.join(map(str, ports.outputs))}",
            hint=f"Run `segray models inspect {path}`, or describe the model in {CARD} beside it.",
        )
    if description.family == hugging_face.UNDECIDED or (
        hugging_face.is_one(description) and settings.name in hugging_face.PROCESSORS
    ):
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
        return hugging_face.as_processor(description, settings.name, CONFIGURATION)
    names = list(hugging_face.PROCESSORS)
    raise ConfigError(
        "The file does not tell which image processor the model has.",
        where=str(path),
        found=description.what,
        hint=f"Set `model.name` to {', '.join(names[:-1])} or {names[-1]}, whichever the model is. The config.json of "
        "transformers beside the file tells it too.",
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
            found=_reason_why_missing(missing, description),
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
    sources = {**description.sources, **dict.fromkeys(facts, CONFIGURATION)}
    return replace(description, **facts, missing=(), sources=sources)


def _reason_why_missing(missing: tuple[str, ...], description: Description) -> str:
    """Return what the file has in place of missing facts, for errors."""
    notes = [note for note in description.notes if "labels" in missing and note.endswith(NAME_CLASSES)]
    return " ".join(note.removesuffix(NAME_CLASSES).strip() for note in notes) or "nothing in the file or beside it"


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


# ---- checksums ------------------------------------------------------------------------------------


def check_checksums(settings: ModelSettings, model: ResolvedModel) -> None:
    """Raise ModelError if a file has another checksum than `model.sha256` says."""
    if settings.sha256 is None:
        return
    folder = model.path if model.path.is_dir() else model.path.parent
    opened = model.path.relative_to(folder).as_posix()
    names = [opened] if isinstance(settings.sha256, str) else list(settings.sha256)
    digests = {name: sha256(folder / name) if (folder / name).is_file() else "no such file" for name in names}
    if wrong := wrong_checksums(settings, digests, opened):
        raise checksum_error(str(model.path), wrong)


def wrong_checksums(settings: ModelSettings, digests: Mapping[str, str], opened: str) -> dict[str, str]:
    """Return the files whose checksum differs from `model.sha256`, with both checksums as a text.

    Args:
        settings: The section `model` of the configuration.
        digests: File name -> SHA-256. Files that are not named here are not compared.
        opened: Name of the file that a single checksum of the configuration is for.
    """
    expected = {opened: settings.sha256} if isinstance(settings.sha256, str) else settings.sha256 or {}
    return {
        name: f"{digests[name]}, expected {digest.lower()}"
        for name, digest in expected.items()
        if name in digests and digests[name] != digest.lower()
    }


def checksum_error(where: str, wrong: Mapping[str, str]) -> ModelError:
    """Return the error for files with another checksum than `model.sha256` says."""
    return ModelError(
        "The model's files are not the ones that `model.sha256` names.",
        where=where,
        found="; ".join(f"{name}: {found}" for name, found in wrong.items()),
        hint="Check where the files come from, or correct `model.sha256`.",
    )


def sha256(file: Path) -> str:
    """Return the SHA-256 of the file's content, as 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
