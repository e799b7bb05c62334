"""Checks of the arguments of functions that programs call, by the annotations of the functions.

Knows annotations and values. Knows nothing of what a function does. An annotation of a library that is not imported,
such as `pa.Table`, takes any value.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec, TypeVar

from segray.errors import ArgumentError

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

_MOST_NAMES, _MOST_TEXT = 12, 80
# Names that callers of other libraries know, and segray's names for the same thing.
_OTHER_NAMES = {
    "conf": "min_score", "confidence": "min_score", "threshold": "min_score", "score_threshold": "min_score",
    "path": "root", "n": "limit", "num_images": "limit", "max_images": "limit", "config": "settings",
    "options": "settings", "verbose": "progress", "save_dir": "output", "out_dir": "output", "class_names": "classes",
}  # fmt: skip


@dataclass(frozen=True)
class Within:
    """The range of a number: least <= number <= most. None for no limit."""

    least: float | None = None
    most: float | None = None

    def holds(self, number: Any) -> bool:
        """Return whether a number lies in the range. NaN lies in no range."""
        return (self.least is None or number >= self.least) and (self.most is None or number <= self.most)

    def __str__(self) -> str:
        if self.most is None:
            return "" if self.least is None else f" of at least {self.least:g}"
        return f" of at most {self.most:g}" if self.least is None else f" from {self.least:g} to {self.most:g}"


# A score or a share, and a number of things.
Share = Annotated[float, Within(0, 1)]
Count = Annotated[int, Within(0)]
PositiveCount = Annotated[int, Within(1)]

_NUMBERS: Mapping[Any, tuple[type, str]] = {
    int: (typing.SupportsIndex, "a whole number"),
    float: (typing.SupportsFloat, "a number"),
}
_KINDS = {str: "text", bool: "True or False", bytes: "bytes", type(None): "None", os.PathLike: "a path"}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Return a function that checks the names and values of its arguments first, and raises ArgumentError.

    A missing argument stays Python's own TypeError.
    """
    signature = inspect.signature(function)
    takes_any_name = any(value.kind is value.VAR_KEYWORD for value in signature.parameters.values())

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not takes_any_name:
            for name, value in kwargs.items():
                if name not in signature.parameters:
                    raise _unknown(function, name, value, signature.parameters)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)
        for name, annotation in _annotations(function).items():
            if name in given and not _fits(given[name], annotation):
                raise _unfit(function, name, given[name], annotation)
        return function(*args, **kwargs)

    return call


def checked_methods(kind: C) -> C:
    """Return a class whose public methods, and whose call, check their arguments."""
    for name, value in list(vars(kind).items()):
        is_public = not name.startswith("_") or name == "__call__"
        if is_public and inspect.isfunction(value):
            setattr(kind, name, checked(value))
    return kind


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name that is meant by a wrong one; None where none is similar."""
    listed = list(names)
    if (other := _OTHER_NAMES.get(name)) in listed:
        return other
    similar = difflib.get_close_matches(name, listed, 1, 0.6)
    return similar[0] if similar else None


# ---- annotations ----------------------------------------------------------------------------------


@functools.cache
def _annotations(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the annotations of the parameters whose names can all be resolved."""
    names = vars(sys.modules[function.__module__])
    resolved = dict[str, Any]()
    for name, text in function.__annotations__.items():
        try:
            resolved[name] = eval(text, dict(names)) if isinstance(text, str) else text
        except (NameError, AttributeError):  # A name that is imported for type checkers alone.
            continue
    resolved.pop("return", None)
    return resolved


def _fits(value: Any, annotation: Any) -> bool:
    """Return whether a value is of the kind that an annotation names."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        ranges = [part for part in parts[1:] if isinstance(part, Within)]
        return _fits(value, parts[0]) and all(limit.holds(value) for limit in ranges)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is typing.Literal:
        return isinstance(value, str | int) and value in parts
    if annotation in _NUMBERS:
        return isinstance(value, _NUMBERS[annotation][0]) and not isinstance(value, bool | str)
    if typing.is_typeddict(annotation):
        return isinstance(value, Mapping) and all(
            _fits(value[name], part) for name, part in typing.get_type_hints(annotation).items() if name in value
        )
    kind = type(None) if annotation is None else origin or annotation
    # Functions know themselves what is like an array, and what else they go through.
    if kind in (Any, Iterable) or not isinstance(kind, type) or kind.__module__.startswith("numpy"):
        return True
    if kind is tuple and Ellipsis not in parts:
        is_fixed = isinstance(value, tuple | list) and len(value) == len(parts)
        return is_fixed and all(_fits(entry, part) for entry, part in zip(value, parts, strict=True))
    if issubclass(kind, Mapping):
        pairs = value.items() if isinstance(value, Mapping) else ()
        is_open = len(parts) != 2 or all(_fits(one, parts[0]) and _fits(two, parts[1]) for one, two in pairs)
        return isinstance(value, Mapping) and is_open
    if issubclass(kind, Collection) and len(parts) == 1:  # A Sequence may be a set, an array or a column of pandas.
        is_list = isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)
        return is_list and all(_fits(entry, parts[0]) for entry in value)
    return isinstance(value, kind)


def _words(annotation: Any) -> str:
    """Return what an annotation takes, in words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _words(parts[0]) + "".join(str(part) for part in parts[1:] if isinstance(part, Within))
    if origin in (typing.Union, types.UnionType):
        return _either([_words(part) for part in parts])
    if origin is typing.Literal:
        return _either([repr(part) for part in parts])
    if annotation in _NUMBERS:
        return _NUMBERS[annotation][1]
    if typing.is_typeddict(annotation):
        hints = typing.get_type_hints(annotation).items()
        return "a mapping with " + ", ".join(f"{name}: {_words(part)}" for name, part in hints if name.islower())
    kind = type(None) if annotation is None else origin or annotation
    if kind in _KINDS:
        return _KINDS[kind]
    if kind is Any or not isinstance(kind, type):
        return "any value"
    if kind.__module__.startswith("numpy"):
        return "an array"
    if issubclass(kind, Mapping):
        return f"a mapping of {_words(parts[0])} to {_words(parts[1])}" if len(parts) == 2 else "a mapping"
    if kind is tuple and Ellipsis not in parts:
        return f"a pair ({', '.join(_words(part) for part in parts)})"
    if issubclass(kind, Collection) and len(parts) == 1:
        return f"a list of {_words(parts[0])}"
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _either(words: list[str]) -> str:
    distinct = list(dict.fromkeys(words))
    return " or ".join(distinct) if len(distinct) < 3 else f"{', '.join(distinct[:-1])} or {distinct[-1]}"


# ---- errors ---------------------------------------------------------------------------------------


def _unknown(function: Callable[..., Any], name: str, value: Any, names: Iterable[str]) -> ArgumentError:
    own = [known for known in names if known != "self"]
    meant = nearest(name, own)
    more = ", ..." if len(own) > _MOST_NAMES else ""
    hint = f"did you mean {meant}?" if meant else f"the arguments are {', '.join(own[:_MOST_NAMES])}{more}"
    what = f"there is no argument {name}"
    return ArgumentError(what, where=function.__qualname__, found=shortened(value), hint=hint)


def _unfit(function: Callable[..., Any], name: str, value: Any, annotation: Any) -> ArgumentError:
    where = f"{function.__qualname__}({name}=...)"
    return ArgumentError(
        f"wrong value of {name}", where=where, found=shortened(value), hint=f"give {_words(annotation)}"
    )


def shortened(value: Any) -> str:
    """Return a value and its type as one line of an error."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + '...'} ({type(value).__name__})"
