"""The pointer CURRENT, which names the label set for readers.

    PARENT/CURRENT   the name of one folder beside it, such as v2

Knows the pointer's object and its content. promotion.py decides which label set may be current.
"""

from __future__ import annotations

from segray.errors import LabelSetError
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import PathOrUrl, as_uri, join, name, parent

CURRENT = "CURRENT"
_MAX_BYTES = 4096


def resolved(root: PathOrUrl, options: StorageOptions) -> str:
    """Return the label set that `root` means, as text.

    PARENT/CURRENT means the promoted label set. Any other root means itself. Raises LabelSetError where CURRENT is
    missing, or names no folder.
    """
    root = as_uri(root)
    uri = root.rstrip("/")
    if name(uri) != CURRENT:
        return root
    try:
        return read_pointer(uri, Store(options))
    except FileNotFoundError as exc:
        hint = "promote a label set with `segray promote PARENT/NAME`, or give the label set's own folder"
        raise LabelSetError("no label set is current here", where=root, found="no such object", hint=hint) from exc


def read_pointer(pointer: str, store: Store) -> str:
    """Return the label set that the pointer names.

    Raises FileNotFoundError for a missing pointer, and LabelSetError for invalid content.
    """
    folder = store.read(pointer, _MAX_BYTES).decode(errors="replace").strip()
    is_name = folder.isprintable() and "/" not in folder and folder not in ("", ".", "..", CURRENT)
    if not is_name:
        raise LabelSetError(
            "the pointer names no folder beside it",
            where=pointer,
            found=ascii(folder)[:80],
            hint="run `segray promote ROOT` again",
        )
    return join(parent(pointer), folder)


def named_folder(pointer: str, store: Store) -> str | None:
    """Return the name of the folder that the pointer names, None if there is no pointer."""
    try:
        return name(read_pointer(pointer, store))
    except FileNotFoundError:
        return None


def write_pointer(pointer: str, folder: str, store: Store) -> None:
    """Write the name `folder` to the pointer.

    The pointer is one small object, so it changes for all readers at once.
    """
    store.put(pointer, f"{folder}\n".encode())
