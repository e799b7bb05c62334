"""Class maps of the command line and of files: names of a truth with those of a label set.

This module knows how people write a map. class_matching knows what a map means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from segray import config
from segray.analytics.evaluation.class_matching import ClassMap
from segray.errors import UserError
from segray.storage.store import Store
from segray.storage.uris import as_uri

Map = Mapping[str, str | Sequence[str]]


def pairs(class_map: Map | Path | str | None, store: Store) -> ClassMap:
    """Return the pairs of a map, or of a file that holds a map as YAML or JSON.

    A list of classes of the label set stands for a pair with each of them.
    """
    if class_map is None:
        return ()
    if not isinstance(class_map, Mapping):
        path = as_uri(class_map)
        try:
            data = store.read(path)
        except (FileNotFoundError, IsADirectoryError) as error:
            hint = "check the path, or write --class-map TRUTH=LABEL"
            raise UserError("no such class map", where=path, found=type(error).__name__, hint=hint) from error
        class_map = config.parse_texts(data, path, "class map")
    result = [
        (str(category), str(name))
        for category, names in class_map.items()
        for name in ([names] if isinstance(names, (str, int)) else names)
    ]
    return tuple(result)


def from_options(texts: Sequence[str]) -> Map | Path | None:
    """Return the map of --class-map: one file, or TRUTH=LABEL once for each pair."""
    if not texts:
        return None
    if len(texts) == 1 and ("=" not in texts[0] or Path(texts[0]).is_file()):
        return Path(texts[0])
    names: dict[str, list[str]] = {}
    for text in texts:
        category, separator, name = text.partition("=")
        if not separator or not category.strip() or not name.strip():
            raise UserError(
                "--class-map takes one file, or TRUTH=LABEL for each class", found=text,
                hint='for example --class-map "Stop Sign=stop sign"',
            )  # fmt: skip
        names.setdefault(category.strip(), []).append(name.strip())
    return names
