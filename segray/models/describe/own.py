"""Reader that asks a decoder of one's own, and checks the description that it gives.

Knows which facts a decoder may leave out, and how they follow from the ports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, get_args

from segray.errors import ConfigError
from segray.imaging.geometry import Resize, Rounding
from segray.models.decoders import Decoder, faults_named
from segray.models.describe import facts
from segray.models.describe.facts import PORTS
from segray.models.description import Description, category_ids
from segray.models.metadata import Metadata

if TYPE_CHECKING:
    from segray.models.engine import ModelPort, Signature

THRESHOLDS = ("score_threshold", "max_detections")
_EXTRA = "decoder"


def read(decoder: Decoder, signature: Signature, metadata: Metadata) -> Description | None:
    """Return the description that a decoder gives a model; None if the model is none of its own.

    Raises:
        ConfigError: The decoder raises an error, or its description cannot be used.
    """
    instance = decoder.new()
    with faults_named(decoder.code, "describe"):
        answer = instance.describe(signature, metadata)
    if answer is None:
        return None
    if not isinstance(answer, Description):
        raise _unusable(decoder, "It is neither a Description nor None.", answer)
    return _complete(answer, decoder, signature)


def _complete(given: Description, decoder: Decoder, signature: Signature) -> Description:
    """Return the description with the facts that the decoder left out."""
    name, port = _image(given, decoder, signature)
    labels = _labels(given.labels, decoder)
    size_hw = _size_hw(given.size_hw, decoder) or (port.size_hw if port is not None else None)
    missing = {
        *(key for key in given.missing if key == "size" and size_hw is None),
        *(("labels",) if not labels else ()),
    }
    description = replace(
        given,
        family=decoder.name,
        what=str(given.what or decoder.name),
        kind=str(given.kind),
        input_name=name,
        outputs=_outputs(given.outputs, decoder, signature.outputs),
        size_hw=size_hw,
        labels=labels,
        mean=_channels(given.mean, "mean", decoder),
        scale=_channels(given.scale, "scale", decoder),
        thresholds=_thresholds(given.thresholds, decoder),
        extra={**_extra(given.extra, decoder), _EXTRA: dict(decoder.identity)},
        missing=tuple(sorted(missing)),
        notes=tuple(map(str, given.notes)),
    )
    for key, choices in (("resize", get_args(Resize)), ("rounding", get_args(Rounding)), ("colour", ("RGB", "BGR"))):
        if getattr(description, key) not in choices:
            raise _unusable(decoder, f"{key} is none of {', '.join(choices)}.", getattr(description, key))
    stated = {field.name for field in fields(description)} - {"thresholds", "extra", "versions", "sources", "notes"}
    places = dict.fromkeys((*stated, *description.thresholds, *description.extra), f"decoder {decoder.code.reference}")
    if size_hw is not None and given.size_hw is None:
        places["size_hw"] = PORTS
    return replace(description, sources={**places, **{key: str(place) for key, place in given.sources.items()}})


def _image(given: Description, decoder: Decoder, signature: Signature) -> tuple[str, facts.ImagePort | None]:
    """Return the name of the image input and its port, which is None where the inputs leave the port open."""
    port = facts.image_port(signature)
    if given.input_name:
        if len(signature.inputs) > 1 and facts.index_by_name(signature.inputs, given.input_name) is None:
            what = f"There is no input {given.input_name!r}."
            raise _unusable(decoder, what, f"inputs {facts.ports_text(signature.inputs)}")
        return str(given.input_name), port
    if port is None:
        what = "The model has not one image input, so `input_name` must name it."
        raise _unusable(decoder, what, f"inputs {facts.ports_text(signature.inputs)}")
    return port.name, port


def _outputs(given: Any, decoder: Decoder, ports: tuple[ModelPort, ...]) -> dict[str, int]:
    """Return key -> position of the outputs. A name of an output stands for its position. None given: all by name."""
    if isinstance(given, Mapping) and not given:
        given = {facts.port_name(port) or f"output{position}": position for position, port in enumerate(ports)}
    if not isinstance(given, Mapping):
        raise _unusable(decoder, "outputs is no mapping key -> name or position of an output.", given)
    positions = {}
    for key, port in given.items():
        position = facts.index_by_name(ports, port) if isinstance(port, str) else port
        if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < len(ports):
            what = f"The model has no output {port!r}."
            raise _unusable(decoder, what, f"outputs {facts.ports_text(ports)}")
        positions[str(key)] = position
    return positions


def _labels(given: Any, decoder: Decoder) -> Mapping[int, str]:
    """Return category id -> name, from such a mapping or from names in the network's order."""
    if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
        labels: Mapping[int, str] = category_ids(tuple(given))
    elif isinstance(given, Mapping) and all(
        isinstance(key, int) and not isinstance(key, bool) and 0 <= key < 2**31 and isinstance(name, str)
        for key, name in given.items()
    ):
        labels = dict(given)
    else:
        raise _unusable(decoder, "labels is neither a list of names nor a mapping id -> name.", given)
    if fault := facts.fault_of_names(labels.values()):
        raise _unusable(decoder, fault, given)
    return labels


def _size_hw(given: Any, decoder: Decoder) -> tuple[int, int] | None:
    if given is None:
        return None
    sides = list(given) if isinstance(given, list | tuple) else []
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= 2**16 for side in sides):
        raise _unusable(decoder, "size_hw is neither (height, width) in pixels nor None.", given)
    return sides[0], sides[1]


def _channels(given: Any, key: str, decoder: Decoder) -> tuple[float, float, float] | None:
    if given is None:
        return None
    try:
        first, second, third = (float(number) for number in given)
    except (TypeError, ValueError):
        raise _unusable(decoder, f"{key} is neither three numbers nor None.", given) from None
    if key == "scale" and 0 in (first, second, third):
        raise _unusable(decoder, "scale has a 0.", given)
    return first, second, third


def _thresholds(given: Any, decoder: Decoder) -> dict[str, float]:
    if not isinstance(given, Mapping) or not given.keys() <= set(THRESHOLDS):
        raise _unusable(decoder, f"thresholds has other keys than {', '.join(THRESHOLDS)}.", given)
    most = {"score_threshold": 1, "max_detections": 32_767}
    for key, value in given.items():
        if not isinstance(value, int | float) or not 0 <= value <= most[key]:
            raise _unusable(decoder, f"{key} is no number from 0 to {most[key]}.", value)
    return dict(given)


def _extra(given: Any, decoder: Decoder) -> dict[str, Any]:
    try:
        copy = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        copy = None
    if not isinstance(copy, dict) or _EXTRA in copy:
        raise _unusable(decoder, f"extra is no mapping of JSON values without the key {_EXTRA!r}.", given)
    return copy


def _unusable(decoder: Decoder, what: str, found: object) -> ConfigError:
    text = found if isinstance(found, str) else repr(found)
    return ConfigError(
        f"The description by the decoder {decoder.code.reference} cannot be used. {what}",
        where=f"{decoder.code.source}: {decoder.code.reference}, describe",
        found=text[:300],
        hint="Correct `describe` of the decoder; docs/models/your-own-decoder.md has the facts of a description.",
    )
