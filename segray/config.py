"""The configuration: one YAML file as one frozen, validated object with a digest.

Knows every key, its meaning, unit and default. Leaves the use of the values to others. An unknown key is an error
that names the nearest valid key. Secrets are never configuration: key and secret come from the environment.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from segray import _dates
from segray.errors import ConfigError
from segray.limits import DEFAULT_LIMITS
from segray.storage.addresses import AddressFault, address_fault, root_fault
from segray.storage.options import StorageOptions
from segray.storage.uris import PathOrUrl, as_path, as_uri

TEMPLATES = Path(__file__).parent / "configs"
_REFERENCE_HINT = "see every key: segray init --all reference.yaml"

_ClassId = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Name = Annotated[str, Field(min_length=1)]
_Fraction = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
_Side = Annotated[int, Field(ge=1, le=16_384)]

# A class in a module, both with dots; no name of a file.
_CLASS = re.compile(r"(?!.*\.py:)(?!\d)\w+(\.(?!\d)\w+)*:(?!\d)\w+(\.(?!\d)\w+)*")

# model.name of a model that tells by its file what it is.
AUTO = "auto"


def _parse_depth(value: object) -> object:
    """Return the bits of 16-bit samples: "auto", or a whole number."""
    if value == "auto" or (type(value) is int and 8 <= value <= 16):
        return value
    raise PydanticCustomError("bit_depth", "not auto, nor a whole number from 8 to 16")


def _parse_duration(value: object) -> float:
    try:
        return _dates.parse_duration(value)
    except ValueError as exc:
        raise PydanticCustomError("duration", "{reason}", {"reason": str(exc)}) from exc


_Duration = Annotated[float, Field(ge=0, le=100 * 366 * 86_400), BeforeValidator(_parse_duration)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _raise_fault(fault: AddressFault | None) -> None:
    if fault is not None:
        raise PydanticCustomError("address", "{what}", {"what": fault.what, "hint": fault.hint})


class TilesSettings(_Section):
    """How large images are cut into windows. Sides are in pixels."""

    size: int = Field(ge=64, le=32_768)
    overlap: float = Field(default=0.2, ge=0, lt=0.9)
    whole: bool = True


_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key"})


class StorageSettings(_Section):
    """Access to object storage. Keys and secrets come from the environment variables of each store."""

    endpoint_url: str | None = StorageOptions.endpoint_url
    region: str | None = StorageOptions.region
    anonymous: bool = StorageOptions.anonymous
    profile: str | None = Field(default=StorageOptions.profile, min_length=1)
    retries: int = Field(default=StorageOptions.retries, ge=0)
    timeout_s: float = Field(default=StorageOptions.timeout_s, gt=0)
    http_headers: Mapping[str, str] | None = StorageOptions.http_headers
    addressing: Literal["auto", "path", "virtual"] = StorageOptions.addressing
    requester_pays: bool = StorageOptions.requester_pays
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = StorageOptions.sse
    sse_kms_key_id: str | None = Field(default=StorageOptions.sse_kms_key_id, min_length=1)

    @field_validator("sse_kms_key_id")
    @classmethod
    def _check_encryption(cls, key: str | None, info: ValidationInfo) -> str | None:
        if key and not (info.data.get("sse") or "").startswith("aws:kms"):
            raise PydanticCustomError("sse", "needs storage.sse: aws:kms or aws:kms:dsse")
        return key

    @field_validator("http_headers")
    @classmethod
    def _refuse_credentials(cls, headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
        """Return the headers. Refuse headers that hold a secret, without repeating their values."""
        secret = sorted({name for name in headers or {} if name.lower() in _SECRET_HEADERS})
        if secret:
            message = "{names} may hold a secret, and run records contain the configuration"
            raise PydanticCustomError("secret", message, {"names": ", ".join(secret)})
        return headers

    @field_validator("endpoint_url")
    @classmethod
    def _refuse_secrets(cls, url: str | None) -> str | None:
        """Return the endpoint's URL. Refuse a URL that may hold a secret.

        Run records contain the configuration, so the configuration must not contain a secret. The error does not repeat
        the refused URL.
        """
        if url and ("@" in url or "?" in url):
            raise PydanticCustomError("secret", "an endpoint is a host and a port, without user, password or query")
        return url


class SourceSettings(_Section):
    """The images to label, and how to find them."""

    uri: str = Field(min_length=1)
    base: str | None = Field(default=None, min_length=1)
    kind: Literal["auto", "images", "tar", "zip", "parquet", "video", "manifest"] = "auto"
    members: str | None = Field(default=None, min_length=1)
    frames_per_s: float = Field(default=1.0, gt=0, le=240)
    image_column: str | None = Field(default=None, min_length=1)
    uri_column: str | None = Field(default=None, min_length=1)
    prefix: str = ""
    deleted: Literal["keep", "retire"] = "keep"
    max_retired_fraction: float = Field(default=0.1, ge=0, le=1)
    failed: Literal["keep", "retry"] = "keep"
    retry_unreachable_after: _Duration | None = 86_400.0
    storage: StorageSettings | None = None
    tiles: TilesSettings | None = None

    @field_serializer("storage")
    def _keep_set_keys(self, storage: StorageSettings | None) -> dict[str, Any] | None:
        """Return the keys that are set. All other keys come from the section `storage`."""
        return None if storage is None else storage.model_dump(mode="json", exclude_unset=True)

    @field_validator("uri", "base")
    @classmethod
    def _refuse_mistyped(cls, uri: str | None) -> str | None:
        """Return the address. Refuse a mistyped scheme, which would name a local folder."""
        _raise_fault(address_fault(uri or ""))
        return uri


class OutputSettings(_Section):
    """The place of the label set."""

    root: str = Field(min_length=1)

    @field_validator("root")
    @classmethod
    def _refuse_unusable(cls, root: str) -> str:
        """Return the root. Refuse a root that deltalake would change or cannot write to."""
        _raise_fault(root_fault(root))
        return root


class PreprocessingSettings(_Section):
    """Facts of a model's input that replace those of its file; None keeps the file's.

    mean, scale: one number a channel in the order of `colour`, for levels 0..255, used as (x - mean) / scale.
    """

    resize: Literal["letterbox", "corner", "stretch"] | None = None
    pad: int | None = Field(default=None, ge=0, le=255)
    colour: Literal["RGB", "BGR"] | None = None
    mean: tuple[float, float, float] | None = None
    scale: tuple[_Positive, _Positive, _Positive] | None = None


class ModelSettings(_Section):
    """The model that labels: its files, precision, thresholds and post-processing.

    score_threshold, max_detections, nms and nms_iou: None for the model's own; see `with_defaults`. sha256: of the file
    at `path`, or of several files by name. on_change: what to do when a model at an address changed since its copy was
    fetched.
    """

    name: str = AUTO
    path: str | None = None
    sha256: _Sha256 | Mapping[_Name, _Sha256] | None = None
    on_change: Literal["refuse", "take", "keep"] = "refuse"
    form: Literal["original", "converted"] | None = None
    adapter: str | None = None
    precision: Literal["auto", "f32", "bf16", "f16", "int8"] = "auto"
    labels: Mapping[_ClassId, _Name] | None = Field(default=None, min_length=1)
    size: tuple[_Side, _Side] | None = None
    preprocessing: PreprocessingSettings | None = None
    score_threshold: _Fraction | None = None
    class_thresholds: Mapping[int | str, _Fraction] = Field(default_factory=dict)
    score_floor: _Fraction | None = None
    max_detections: int | None = Field(default=None, ge=1, le=32_767)
    min_area: int = Field(default=0, ge=0)
    nms: Literal["per_class", "fast", "cross_class"] | None = None
    nms_iou: _Fraction | None = None
    paste: Literal["tile", "reframe"] | None = None
    scaled_decode: bool = False
    fixed_shapes: int = Field(default=0, ge=0, le=64)
    cache_dir: str | None = None

    @field_validator("path")
    @classmethod
    def _refuse_mistyped(cls, path: str | None) -> str | None:
        """Return the path. Refuse a mistyped scheme, which would name a local file."""
        _raise_fault(address_fault(path or ""))
        return path

    @field_validator("adapter")
    @classmethod
    def _refuse_no_class(cls, adapter: str | None) -> str | None:
        """Return MODULE:CLASS. Refuse another text, such as the name of a file."""
        if adapter is not None and not _CLASS.fullmatch(adapter):
            raise PydanticCustomError("class", "not MODULE:CLASS, such as my_module:MyDecoder")
        return adapter

    def with_defaults(self, name: str, path: str, **options: Any) -> Self:
        """Return the settings with this name and path, and with these values of the options that have none.

        A model without a path keeps none: its files come with segray.
        """
        unset = {key: value for key, value in options.items() if getattr(self, key) is None}
        return self.model_copy(update={"name": name, "path": None if self.path is None else path, **unset})


class ImageSettings(_Section):
    """Limits of an image, and how its samples are read. An image over a limit is refused before pixels are allocated.

    bit_depth: bits that 16-bit samples of files use; "auto" to tell by each image's samples.
    """

    max_bytes: int = Field(default=DEFAULT_LIMITS.max_bytes, ge=1)
    max_pixels: int = Field(default=DEFAULT_LIMITS.max_pixels, ge=1)
    max_side_px: int = Field(default=DEFAULT_LIMITS.max_side_px, ge=1)
    bit_depth: Annotated[Any, BeforeValidator(_parse_depth)] = DEFAULT_LIMITS.bit_depth
    timeout_s: float = Field(default=120, gt=0)


class PoolSettings(_Section):
    """A group of equal workers. count: None for one worker per node that has room."""

    device: str = "CPU"
    count: int | None = Field(default=None, ge=1)
    num_cpus: float | None = Field(default=None, gt=0)
    resources: Mapping[str, float] = Field(default_factory=dict)
    threads: int | None = Field(default=None, ge=1)
    max_rss_mb: int | None = Field(default=None, ge=1)


class ClusterSettings(_Section):
    """The Ray cluster. address: None starts one on this machine, "auto" joins the cluster that this process runs in."""

    address: str | None = None
    stall_timeout_s: float = Field(default=600, gt=0)
    start_timeout_s: float = Field(default=120, gt=0)
    head_timeout_s: float = Field(default=20, gt=0, le=45)
    autoscaling: bool = False


class PublishSettings(_Section):
    """How finished units become visible."""

    batch_images: int = Field(default=50_000, ge=1)
    file_rows: int = Field(default=2_000_000, ge=1)
    timeout_s: float = Field(default=3600, gt=0)


class NodeType(_Section):
    """A kind of machine that `segray plan` estimates a run for.

    speed: of one core, relative to a core of this machine. memory_gb: memory of the machine, in GB.
    """

    name: str = Field(min_length=1)
    cpus: int = Field(ge=1)
    speed: float = Field(default=1.0, gt=0)
    memory_gb: float | None = Field(default=None, gt=0)
    price_per_hour: float | None = Field(default=None, ge=0)


class PlanSettings(_Section):
    """The sample that `segray plan` measures, and the prices for its estimate."""

    sample_images: int = Field(default=64, ge=1, le=100_000)
    sample_s: float = Field(default=15, ge=0)
    nodes: tuple[NodeType, ...] = ()
    price_per_1000_reads: float | None = Field(default=None, ge=0)
    price_per_1000_writes: float | None = Field(default=None, ge=0)
    price_per_gb_month: float | None = Field(default=None, ge=0)


class Config(_Section):
    """The complete configuration of a run."""

    source: SourceSettings
    output: OutputSettings
    as_of: date | None = None
    model: ModelSettings
    image: ImageSettings = ImageSettings()
    workers: tuple[PoolSettings, ...] = Field(default=(PoolSettings(),), min_length=1)
    cluster: ClusterSettings = ClusterSettings()
    storage: StorageSettings = StorageSettings()
    publish: PublishSettings = PublishSettings()
    plan: PlanSettings = PlanSettings()
    unit_images: int = Field(default=256, ge=1, le=100_000)
    max_attempts: int = Field(default=3, ge=1, le=100)
    max_failed_fraction: float = Field(default=0.01, ge=0, le=1)
    report: bool = True

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.source.tiles and self.model.scaled_decode:
            raise PydanticCustomError(
                "scale", "source.tiles needs all pixels, model.scaled_decode drops pixels; set one"
            )
        return self

    def storage_options(self) -> StorageOptions:
        """Return the options for reaching the label set."""
        return StorageOptions(**self.storage.model_dump())

    def source_storage_options(self) -> StorageOptions:
        """Return the options for reaching the images: `source.storage` over `storage`."""
        return StorageOptions(**self.source_storage_values())

    def source_storage_values(self) -> dict[str, Any]:
        """Return the keys of `source.storage` over those of `storage`."""
        own = {} if self.source.storage is None else self.source.storage.model_dump(exclude_unset=True)
        return self.storage.model_dump() | own

    def digest(self) -> str:
        """Return a hash of every value as 16 hexadecimal digits, for run records."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _ignore(note: str) -> None:
    """Ignore a note."""


def load(path: PathOrUrl | None, overrides: Sequence[str] = (), *, note: Callable[[str], None] = _ignore) -> Config:
    """Return the validated configuration of a YAML file, after `key=value` overrides.

    Args:
        path: The YAML file; None if the overrides say everything.
        overrides: Texts `key=value` with a dotted key and a YAML value, such as `source.uri=photos`. The value of a key
            whose type is text is the text itself. `null`, or no text, is the null of a key that may be null.
        note: Receives which day `today` is.

    Raises:
        ConfigError: The file is missing or not YAML, a key is unknown, or a value has a wrong type or range.
    """
    if path is None:
        return validate({}, _COMMAND_LINE, overrides, note=note)
    file = as_path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            "cannot read the configuration",
            where=str(file),
            found=str(exc),
            hint="check the path, or write a configuration: segray init FILE; without one, name images and labels: "
            "segray label SOURCE OUTPUT --model MODEL",
        ) from exc
    return validate(_parse_yaml(text, str(file)), str(file), overrides, note=note)


def write_template(file: Path, *, every_key: bool) -> None:
    """Write a commented configuration to a new file: one for a local folder, or the reference with every key.

    Raises:
        ConfigError: The file exists, or cannot be written.
    """
    template = TEMPLATES / ("reference.yaml" if every_key else "local.yaml")
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(template.read_text("utf-8"))
    except FileExistsError as exc:
        raise ConfigError(
            "the file exists", where=str(file), hint="give another file name, or delete the file"
        ) from exc
    except OSError as exc:
        raise ConfigError(
            "cannot write the configuration", where=str(file), found=str(exc), hint="check the path"
        ) from exc


def validate(
    values: Mapping[str, Any], where: str, overrides: Sequence[str] = (), *, note: Callable[[str], None] = _ignore
) -> Config:
    """Return the validated configuration of a plain mapping, after `key=value` overrides.

    Args:
        values: The configuration as nested mappings and lists, with paths as text or Path. The function does not change
            them.
        where: Name of the mapping, for errors.
        overrides: As for `load`.
        note: As for `load`.

    Raises:
        ConfigError: As for `load`.
    """
    merged = _with_paths_as_text(copy.deepcopy(dict(values)))
    for override in overrides:
        _apply_override(merged, override)
    _fill_dates(merged, where, note)
    try:
        return Config.model_validate(merged)
    except ValidationError as exc:
        raise _config_error(exc, where) from exc


class _ModelOnly(_Section):
    """The sections of a configuration that a model without a run has."""

    model: ModelSettings
    tiles: TilesSettings | None = None


def validate_model(
    model: Mapping[str, Any], where: str, *, tiles: Mapping[str, Any] | None = None
) -> tuple[ModelSettings, TilesSettings | None]:
    """Return the validated section `model`, and the key `source.tiles`.

    Args:
        model: The values of the section.
        where: Name of the mapping, for errors.
        tiles: The values of `source.tiles`; None for no tiles.

    Raises:
        ConfigError: As for `load`.
    """
    values = {"model": _with_paths_as_text(dict(model)), **({} if tiles is None else {"tiles": dict(tiles)})}
    try:
        sections = _ModelOnly.model_validate(values)
    except ValidationError as exc:
        raise _config_error(exc, where) from exc
    return sections.model, sections.tiles


def nested(keys: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values of dotted keys as nested mappings, for `validate`. A later key wins over an earlier one.

    Args:
        keys: Dotted keys, such as `source.tiles.size`, with Python's values.
        where: Name of the mapping, for errors.

    Raises:
        ConfigError: A key goes on where an earlier key has a single value.
    """
    values: dict[str, Any] = {}
    for key, value in keys.items():
        _set_value(values, str(key).split("."), copy.deepcopy(value), f"{where}: {key}")
    return values


def _with_paths_as_text(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return as_uri(value)
    return {key: _with_paths_as_text(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _fill_dates(values: dict[str, Any], where: str, note: Callable[[str], None]) -> None:
    """Parse `as_of`, and replace date placeholders in source.uri and output.root by dates as seen from `as_of`.

    A source.uri with a date also sets source.base to the folder before the date, unless source.base is set. Raises
    ConfigError for a placeholder without `as_of`.
    """
    day, zone = (None, None) if values.get("as_of") is None else _dates.parse_day(values["as_of"])
    values["as_of"] = day
    if zone is not None:
        note(f"as_of: today is {day}, the day in {zone}")
    for section, key in (("source", "uri"), ("output", "root")):
        section_values = values.get(section)
        address = section_values.get(key) if isinstance(section_values, dict) else None
        if not isinstance(section_values, dict) or not isinstance(address, str) or not _dates.has_date(address):
            continue
        if day is None:
            raise ConfigError(
                f"{section}.{key} asks for a date, and as_of is not set",
                where=where,
                found=address,
                hint="pass the day of the run: --as-of 2026-11-20, or --set as_of=2026-11-20",
            )
        section_values[key] = _dates.fill_dates(address, day, f"{section}.{key}")
        if section == "source" and section_values.get("base") is None:
            section_values["base"] = _dates.folder_before_date(address) or None


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        hint = "correct the YAML syntax, or write a configuration: segray init FILE"
        raise ConfigError("the configuration is not valid YAML", where=where, found=str(exc), hint=hint) from exc
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            "the configuration must be a mapping of keys",
            where=where,
            found=type(values).__name__,
            hint=_REFERENCE_HINT,
        )
    return values


def parse_texts(data: bytes, where: str, what: str) -> dict[str, str | list[str]]:
    """Return a mapping of texts to texts, or to lists of texts, from YAML or JSON. 007 and yes stay text.

    what: the name of such a file, for errors.

    Raises:
        ConfigError: The data is no such mapping.
    """
    hint = f"write the {what} as lines `NAME: NAME`"
    values = parse_yaml_texts(data, where, what)
    if not isinstance(values, dict):
        raise ConfigError(f"the {what} is no mapping", where=where, found=type(values).__name__, hint=hint)
    for name, value in values.items():
        texts = value if isinstance(value, list) else [value]
        if not isinstance(name, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise ConfigError(f"the {what} has a value that is no text", where=where, found=str(name)[:60], hint=hint)
    return values


def parse_yaml_texts(data: bytes, where: str, what: str) -> Any:
    """Return the mappings, lists and texts of YAML or JSON. Numbers and yes stay text.

    The arguments and the error are those of parse_texts.
    """
    try:
        return yaml.load(data.decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        hint = f"write the {what} as YAML or JSON"
        raise ConfigError(f"the {what} is not valid YAML", where=where, found=str(exc), hint=hint) from exc


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError("--set takes key=value", found=override, hint="for example --set output.root=out")
    path = key.split(".")
    _set_value(values, path, _parse_value(text, override, _type_of(path)), f"--set {override}")


def _set_value(values: dict[str, Any], path: Sequence[str], value: Any, where: str) -> None:
    """Set a value in nested mappings and lists, which get the sections that they lack."""
    *parents, last = path
    section: Any = values
    for name in parents:
        section = _child(section, name, where)
    if isinstance(section, list):
        section[_list_index(section, last, where)] = value
    else:
        section[last] = value


def _type_of(path: Sequence[str]) -> tuple[Any, ...]:
    """Return the types that a key may have; none for an unknown key."""
    types: tuple[Any, ...] = (Config,)
    for name in path:
        types = tuple(inner for kind in types for inner in _child_types(kind, name))
    return types


def _child_types(kind: Any, name: str) -> tuple[Any, ...]:
    """Return the types of an entry of a section, list or mapping."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _alternatives(kind.model_fields[name].annotation) if name in kind.model_fields else ()
    if get_origin(kind) is tuple:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) is Mapping:
        return _alternatives(get_args(kind)[1])
    return ()


def _parse_value(text: str, override: str, types: Sequence[Any]) -> Any:
    """Return the value of an override. types: the types that the key may have."""
    if str in types and set(types) <= {str, type(None)}:
        if text in ("", "null") and type(None) in types:
            return None
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        hint = "put quotes around a value with special characters"
        raise ConfigError("the value is not valid YAML", where=f"--set {override}", found=str(exc), hint=hint) from exc


def _child(section: Any, name: str, where: str) -> Any:
    if isinstance(section, list):
        return section[_list_index(section, name, where)]
    child = section.setdefault(name, {})
    if child is None:
        child = section[name] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(
            f"{name} holds a single value, not a section",
            where=where,
            found=repr(child),
            hint=f"end the key at {name}",
        )
    return child


def _list_index(section: list[Any], name: str, where: str) -> int:
    if not name.isdigit() or int(name) >= len(section):
        raise ConfigError("no such entry in the list", where=where, found=name, hint=f"use 0 to {len(section) - 1}")
    return int(name)


_COMMAND_LINE = "the command line"
# What a command line says in place of a section.
_OPTIONS = {"source": "SOURCE", "output": "OUTPUT", "model": "--model PATH|NAME"}


def _config_error(exc: ValidationError, where: str) -> ConfigError:
    """Return the first error of a validation as a ConfigError that names the key."""
    # A misspelt key also gives an error for the missing key. The unknown key is the helpful error.
    problem = min(exc.errors(include_url=False), key=lambda entry: entry["type"] != "extra_forbidden")
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        similar_key = _similar_key(path)
        hint = f"did you mean {similar_key}?" if similar_key else _REFERENCE_HINT
        if path[-1].startswith("batch"):
            hint = "leave the key out: each image is inferred by itself, on several threads at once"
        return ConfigError(f"unknown configuration key {key}", where=where, found=repr(problem["input"]), hint=hint)
    if problem["type"] == "secret":
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
        return ConfigError(f"{key}: {problem['msg']}", where=where, found="not shown here", hint=hint)
    if problem["type"] == "address":
        hint = f"correct {key}: {problem['ctx']['hint']}"
        return ConfigError(f"{key}: {problem['msg']}", where=where, found=repr(problem["input"]), hint=hint)
    if problem["type"] == "missing":
        option = _OPTIONS.get(key, f"--set {key}=...")
        hint = f"pass {option}" if where == _COMMAND_LINE else f"add {key} to the configuration, or pass {option}"
        return ConfigError(f"the configuration lacks {key}", where=where, hint=hint)
    if problem["type"] == "string_type" and not isinstance(problem["input"], Mapping | list):
        hint = f"write the text of {key} in quotes: YAML reads some texts as numbers, dates, true, false or null"
        return ConfigError(f"{key} is not text", where=where, found=repr(problem["input"]), hint=hint)
    return ConfigError(f"{key}: {problem['msg']}", where=where, found=repr(problem["input"]), hint=_REFERENCE_HINT)


# Names of other libraries, and the keys of segray that do the same.
_NAMES_ELSEWHERE = {
    "conf": "model.score_threshold", "confidence": "model.score_threshold", "threshold": "model.score_threshold",
    "min_score": "model.score_threshold", "iou": "model.nms_iou", "imgsz": "model.size", "image_size": "model.size",
    "max_det": "model.max_detections", "half": "model.precision", "dtype": "model.precision",
    "fp16": "model.precision", "names": "model.labels", "classes": "model.labels", "class_names": "model.labels",
    "num_threads": "workers.threads", "num_workers": "workers.count", "device": "workers.device",
    "threads": "workers.threads",
}  # fmt: skip


def _similar_key(path: Sequence[str]) -> str | None:
    """Return the valid key that is most like an unknown one, preferably of the same section."""
    valid_keys = _keys(Config)
    if path[-1] in _NAMES_ELSEWHERE and path[:-1] in ([], ["model"]):
        return _NAMES_ELSEWHERE[path[-1]]
    if matches := difflib.get_close_matches(".".join(path), valid_keys, 1, 0.5):
        return matches[0]
    section = ".".join(path[:-1])
    keys_of_section = [key for key in valid_keys if key.rsplit(".", 1)[0] == section]
    return next(iter(difflib.get_close_matches(path[-1], keys_of_section or valid_keys, 1, 0.3)), None)


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every dotted key of a section, and the names of its sections."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for field_type in _type_parts(field.annotation):
            if isinstance(field_type, type) and issubclass(field_type, BaseModel):
                keys += _keys(field_type, f"{prefix}{name}.")
    return keys


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the types that an annotation allows, without the limits of their values."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (UnionType, Union):
        return tuple(inner for part in get_args(annotation) for inner in _alternatives(part))
    return (annotation,)


def _type_parts(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (tuple, UnionType):
        return get_args(annotation)
    return (annotation,)
