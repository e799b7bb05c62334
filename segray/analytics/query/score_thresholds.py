"""Smallest scores by class: their file, and the part of a label set that is over them.

This module knows names of classes and conditions on rows. The evaluation finds the thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import cast

import pyarrow as pa
import pyarrow.dataset as ds

from segray import config
from segray.errors import UserError
from segray.label_set.class_names import find_class
from segray.label_set.schema import PARTITION
from segray.label_set.snapshot import Snapshot
from segray.storage.store import Store
from segray.storage.uris import as_uri

KEY = "class_thresholds"  # of the section `model` of a configuration
Thresholds = Mapping[str, float] | PathLike[str] | str | None
_HINT = "write lines CLASS: SCORE, as `segray threshold ROOT --truth TRUTH --out FILE` does"


def applied(state: Snapshot, thresholds: Thresholds, store: Store) -> Snapshot:
    """Return the label set without the instances that are under the threshold of their class.

    Classes without a threshold keep all instances. The table `images` does not change.

    Args:
        state: The label set.
        thresholds: Smallest score by class, or a file with such scores; None for no thresholds.
        store: Storage of the file.

    Raises:
        UserError: A class or a score is wrong, or there is no such file.
    """
    if thresholds is None:
        return state
    by_partition = _by_partition(state, read(thresholds, store))
    return replace(state, instances=state.instances.filter(_condition(by_partition)))


def sql_condition(state: Snapshot, thresholds: Thresholds, store: Store) -> str:
    """Return the condition of `applied` in SQL, on a row of `instances`. The arguments are those of `applied`."""
    if thresholds is None:
        return "true"
    by_partition = _by_partition(state, read(thresholds, store))
    cases = "".join(f" WHEN {quoted(value)} THEN score >= {score!r}" for value, score in by_partition.items())
    return f'CASE "{PARTITION}"{cases} ELSE true END' if cases else "true"


def read(thresholds: Mapping[str, float] | PathLike[str] | str, store: Store) -> dict[str, float]:
    """Return the smallest score by class, of a mapping or of a file in YAML or JSON.

    A file is a mapping of classes to scores, alone or as `class_thresholds`, below `model` or not.
    """
    if isinstance(thresholds, Mapping):
        return {name: _score(value, name, "thresholds") for name, value in thresholds.items()}
    path = as_uri(thresholds)
    try:
        data = store.read(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        hint = "check the path, or write the file with `segray threshold ROOT --truth TRUTH --out FILE`"
        raise UserError("no such file of thresholds", where=path, found=type(error).__name__, hint=hint) from error
    values: object = config.parse_yaml_texts(data, path, "file of thresholds")
    for key in ("model", KEY):
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            values = values[key]
    if not isinstance(values, dict):
        raise UserError("the file of thresholds is no mapping", where=path, found=type(values).__name__, hint=_HINT)
    return {str(name): _score(value, str(name), path) for name, value in values.items()}


def lines(thresholds: Mapping[str, float]) -> str:
    """Return lines for the section `model` of a configuration."""
    return "\n".join(
        [f"{KEY}:", *(f"  {json.dumps(name, ensure_ascii=False)}: {score!r}" for name, score in thresholds.items())]
    )


def file(thresholds: Mapping[str, float], comment: str) -> str:
    """Return the text of a file of thresholds, which is also part of a configuration. comment: its first line."""
    body = "".join(f"  {line}\n" for line in lines(thresholds).splitlines())
    return f"# {' '.join(comment.split())}\nmodel:\n{body}"


def _score(value: object, name: str, where: str) -> float:
    try:
        score = float(cast("str | float", value))
    except (TypeError, ValueError):
        score = -1.0
    if not 0 <= score <= 1:
        raise UserError("a threshold is no score from 0 to 1", where=where, found=f"{name}: {value}", hint=_HINT)
    return score


def _by_partition(state: Snapshot, thresholds: Mapping[str, float]) -> dict[str, float]:
    """Return the smallest score by value of the column `class`."""
    by_partition: dict[str, float] = {}
    for name, score in thresholds.items():
        class_id = find_class(name, state.classes, state.partitions)
        if class_id is None and name.isdecimal() and int(name) in state.classes:
            class_id = int(name)
        if class_id is None:
            names = sorted(state.classes.values())
            raise UserError(
                "a threshold is for a class that the label set does not have", where=state.root, found=name,
                hint=f"choose from {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}",
            )  # fmt: skip
        by_partition[state.partitions[class_id]] = score
    return by_partition


def _condition(by_partition: Mapping[str, float]) -> ds.Expression:
    partition, score = ds.field(PARTITION), ds.field("score")
    condition = ~partition.isin(pa.array(list(by_partition), pa.string()))
    for value, threshold in by_partition.items():
        condition |= (partition == value) & (score >= threshold)
    return condition


def quoted(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"
