"""The check of an output root that holds no label set yet: the root must be free.

Knows what may lie at a root before the first run. Writes nothing.
"""

from __future__ import annotations

from pathlib import Path

from segray.errors import LabelSetError
from segray.label_set import delta_log
from segray.label_set.snapshot import COMMIT_ORDER, table_state, table_uri
from segray.storage.store import Store
from segray.storage.uris import join, local_path, scheme

_OTHER_ROOT = "set `output.root` to another folder"


def check_free(store: Store, root: str) -> None:
    """Raise LabelSetError for a root that is no folder, or that holds a table of another program."""
    if not scheme(root):
        _check_path(Path(local_path(root)))
    if store.names(join(root, "_delta_log")):
        raise LabelSetError(
            "the output root is a Delta table of another program", where=root, found="_delta_log", hint=_OTHER_ROOT
        )
    for name in COMMIT_ORDER:
        state = table_state(root, name, store.options)
        if state is not None and not set(delta_log.table_schema(name).names) <= set(state.schema.names):
            raise LabelSetError(
                "the output root holds a Delta table of another program",
                where=table_uri(root, name),
                found=f"columns {', '.join(state.schema.names)[:200]}",
                hint=_OTHER_ROOT,
            )


def _check_path(root: Path) -> None:
    """Raise LabelSetError if the root, or a folder above the root, is a file or a link without a target."""
    for path in (root, *root.parents):
        if path.is_dir():
            return
        if path.is_symlink() and not path.exists():
            raise LabelSetError(
                "the output root is a link without a target",
                where=str(path),
                found=f"a link to {path.readlink()}",
                hint="create the folder that the link names, or " + _OTHER_ROOT,
            )
        if path.exists():
            raise LabelSetError("the output root is not a folder", where=str(path), found="a file", hint=_OTHER_ROOT)
