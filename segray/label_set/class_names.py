"""Class names: the partition value of a name, the folder of a value, and the class that a person's text means.

Knows text alone. A label set records the value of each class in label_set.json, and the recorded value holds: label
sets of earlier versions have values of a-z, 0-9 and _ for all names.

    name                value of the column `class`     folder
    tennis racket       tennis_racket                   class=tennis_racket
    hard_hat            hard%5Fhat                      class=hard%255Fhat
    болт 1              болт_1                          class=%D0%B1%D0%BE%D0%BB%D1%82_1
    a/b                 a/b                             class=a%2Fb
    null                %6Eull                          class=%256Eull

A value is the name with _ for each space. Signs that would be ambiguous are percent-encoded: % and _ themselves, and
the first letter of null. A folder is the percent-encoded value. Delta Lake, DuckDB, Polars and Arrow decode folders, so
that all of them show the value. A value of more than 240 bytes in its folder ends with a hash of the name.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from urllib.parse import quote, unquote

from segray.label_set import schema

# A file system takes 255 bytes for the name of a folder, of which `class=` needs six.
_MAX_FOLDER_BYTES = 240
_EMPTY = "%"  # No other value ends with a percent sign.
_HASHED = "%~"  # No other value has these two characters: a percent sign comes before 25, 5F, 6E or 4E.
_HASH_CHARS = 32


def partition_value(name: str) -> str:
    """Return the value of the column `class` for a class name. Two names never give one value."""
    value = name.replace("%", "%25").replace("_", "%5F").replace(" ", "_") or _EMPTY
    if name.casefold() == "null":  # DuckDB 1.4 reads a folder class=null as SQL's NULL.
        value = f"%{ord(name[0]):X}{name[1:]}"
    if len(_folder_name(value)) <= _MAX_FOLDER_BYTES:
        return value
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_CHARS]
    return f"{_start(value)}{_HASHED}{digest}"


def _start(value: str) -> str:
    """Return as many characters of the value as leave room for a hash in the name of its folder."""
    room = _MAX_FOLDER_BYTES - len(quote(_HASHED, safe="")) - _HASH_CHARS
    sizes = [len(_folder_name(character)) for character in value]
    end = 0
    while room >= sizes[end]:
        room, end = room - sizes[end], end + 1
    return value[:end].rstrip("%")


def name_of_value(value: str) -> str | None:
    """Return the class name of a value that `partition_value` returned; None for a value that ends with a hash."""
    if _HASHED in value:
        return None
    if value == _EMPTY:
        return ""
    return re.sub("%(25|5F|6E|4E)", lambda escape: chr(int(escape[1], 16)), value.replace("_", " "))


def partition_folder(value: str) -> str:
    """Return the folder of a partition value below its table's folder."""
    return f"{schema.PARTITION}={_folder_name(value)}"


def value_of_folder(folder: str) -> str:
    """Return the partition value of a folder that `partition_folder` returned."""
    return unquote(folder.removeprefix(f"{schema.PARTITION}="), errors="surrogatepass")


def _folder_name(value: str) -> str:
    return quote(value, safe="", errors="surrogatepass")


# ---- what people write ----------------------------------------------------------------------------


def folded(name: str) -> str:
    """Return a name without the differences that people overlook: case, composition, and _ or - in place of a space."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name).casefold()).strip() or name


def find_class(text: str, names: Mapping[int, str], values: Mapping[int, str] | None = None) -> int | None:
    """Return the id of the class that a person's text means; None for no class, or where several could be meant.

    The text is the name or the partition value of a class, or else what one class alone is called once folded.

    Args:
        text: What a person or another tool wrote.
        names: Class name by category id.
        values: Partition value by category id; None for the values of new label sets.
    """
    if values is None:
        values = {number: partition_value(name) for number, name in names.items()}
    exact = [number for number, name in names.items() if name == text]
    exact = exact or [number for number, value in values.items() if value == text]
    if exact:
        return exact[0]
    similar = [number for number, name in names.items() if folded(name) == folded(text)]
    return similar[0] if len(similar) == 1 else None
