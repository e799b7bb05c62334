"""Reader of what Hugging Face transformers keeps beside a model: config.json and preprocessor_config.json.

Knows class names, the image processor and its numbers. Other programs write a config.json too, so a file that does not
name a model of transformers tells nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segray.errors import ModelError
from segray.models import metadata as values
from segray.models.describe import facts
from segray.models.metadata import CONFIG, PROCESSOR

# Beginnings of the names of models and of their image processors, in lower case -> family.
_FAMILIES: Mapping[str, str] = {"mask2former": "mask2former", "maskformer": "maskformer", "eomt": "eomt"}
# Deviations and factors below are no numbers of a real processor.
_SMALLEST = 1e-9


@dataclass(frozen=True)
class TransformersConfig:
    """What the two files say. where: the file's name, for sources; "" where nothing is said.

    model_type: as transformers has it; "" without config.json. family: family of the image processor, else of the
    model. labels: class names in the network's order; None if the file has none but LABEL_0. mean, scale: for levels
    0..255. size: the processor's entry.
    """

    model_type: str = ""
    family: str | None = None
    where_family: str = ""
    labels: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    size: Mapping[str, Any] = field(default_factory=dict)


def read(folder: Path) -> TransformersConfig:
    """Return what the files in this folder say; nothing where there are none.

    Raises:
        ModelError: A file of transformers cannot be read, or has values of other kinds.
    """
    config = values.json_beside(folder / CONFIG)
    processor = values.json_beside(folder / PROCESSOR)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        model_type, config = "", {}
    of_processor = _family(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    family, where = (of_processor, PROCESSOR) if of_processor else (_family(model_type), CONFIG)
    mean, scale = _levels(processor, folder / PROCESSOR) if of_processor else (None, None)
    size = processor.get("size") if of_processor else None
    return TransformersConfig(
        model_type,
        family,
        where if family else "",
        _labels(config, folder / CONFIG),
        mean,
        scale,
        size if isinstance(size, dict) else {},
    )


def _family(name: object) -> str | None:
    """Return the family of the name of a model or of an image processor; None for others."""
    text = name.casefold() if isinstance(name, str) else ""
    return next((family for start, family in _FAMILIES.items() if text.startswith(start)), None)


def _labels(config: Mapping[str, Any], file: Path) -> tuple[str, ...] | None:
    if "id2label" not in config:
        return None
    names = facts.names_of(config["id2label"], f"{file}, id2label")
    # transformers writes such names where nobody named the classes.
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def _levels(processor: Mapping[str, Any], file: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and scale for levels 0..255; None for what the processor does not state.

    The processor multiplies levels by a factor, subtracts the mean and divides by the deviation. It can leave out each.
    """
    factor = values.number(processor.get("rescale_factor", 1 / 255), f"{file}, rescale_factor", low=_SMALLEST)
    if processor.get("do_rescale") is False:
        factor = 1.0
    if processor.get("do_normalize") is False:
        return (0.0,) * 3, (1 / factor,) * 3
    mean = _three(processor.get("image_mean"), f"{file}, image_mean")
    scale = _three(processor.get("image_std"), f"{file}, image_std", low=_SMALLEST)
    return (
        None if mean is None else tuple(part / factor for part in mean),
        None if scale is None else tuple(part / factor for part in scale),
    )


def _three(value: object, where: str, low: float = -math.inf) -> tuple[float, ...] | None:
    """Return a number for each channel; None if nothing is stated. One number stands for all channels."""
    if value is None:
        return None
    parts = value if isinstance(value, list) else [value] * 3
    if len(parts) != 3:
        hint = f"Correct {PROCESSOR}, or remove the file and set `model.preprocessing`."
        what = "The image processor does not state a number for each of the three channels."
        raise ModelError(what, where=where, found=repr(value)[:80], hint=hint)
    return tuple(values.number(part, where, low=low) for part in parts)
