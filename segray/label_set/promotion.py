"""Promotion of one of several label sets in a folder: readers of PARENT/CURRENT then read the promoted one.

Knows when a label set may be promoted. Labels nothing and moves nothing. current_pointer.py knows the pointer.
"""

from __future__ import annotations

from dataclasses import dataclass

from segray.errors import LabelSetError, UserError
from segray.label_set import run_records
from segray.label_set.current_pointer import CURRENT, named_folder, write_pointer
from segray.label_set.delta_log import live_files
from segray.label_set.snapshot import table_state
from segray.label_set.validation import verify
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import PathOrUrl, absolute, as_uri, join, name, parent


@dataclass(frozen=True)
class Promotion:
    """The result of a promotion.

    pointer: URI of CURRENT. current: the folder that was to be promoted. before: the folder that the pointer named,
    None if there was none. doubts: reasons against the promotion. written: whether the pointer was changed.
    """

    pointer: str
    current: str
    before: str | None
    doubts: tuple[str, ...]
    written: bool


def promote(root: PathOrUrl, options: StorageOptions, *, force: bool = False, dry_run: bool = False) -> Promotion:
    """Make PARENT/CURRENT name the label set at `root`.

    Args:
        root: The label set's own folder, which must lie in another folder.
        options: Access to storage.
        force: Promote the label set in spite of doubts.
        dry_run: Write nothing.

    Raises:
        LabelSetError: There is no label set. Without force also: the label set is broken or incomplete, or has fewer
            images than the current one.
        UserError: `root` is CURRENT itself, or does not lie in another folder.
    """
    store, uri = Store(options), absolute(as_uri(root).rstrip("/"))
    folder, parent_uri = name(uri), parent(uri)
    if folder == CURRENT or not parent_uri or parent_uri.endswith(":/"):
        raise UserError(
            "segray promotes only a label set whose folder lies in another folder",
            where=as_uri(root),
            hint="give PARENT/NAME; readers then read PARENT/CURRENT",
        )
    pointer = join(parent_uri, CURRENT)
    before = named_folder(pointer, store)
    current_root = None if before in (None, folder) else join(parent_uri, str(before))
    doubts = _doubts(uri, current_root, options, store)
    if doubts and not force:
        raise LabelSetError(
            "this label set should not become the current one yet",
            where=as_uri(root),
            found="; ".join(doubts),
            hint="let `segray label` finish and run `segray verify`, or promote the label set as it is with --force",
        )
    if not dry_run and before != folder:
        write_pointer(pointer, folder, store)
    return Promotion(pointer, folder, before, doubts, written=not dry_run and before != folder)


def _doubts(root: str, current_root: str | None, options: StorageOptions, store: Store) -> tuple[str, ...]:
    """Return the reasons against the promotion. current_root: the present label set, None if there is no other."""
    report = verify(root, options)
    doubts = [f"{violation.kind}: {violation.where}: {violation.found}" for violation in report.violations[:3]]
    if len(report.violations) > 3:
        doubts.append(f"and {len(report.violations) - 3} violations more")
    if (run := run_records.unfinished(store, root)) is not None:
        doubts.append(f"run {run.id} is not finished")
    images = report.counts["images"]
    if not images:
        doubts.append("the label set holds no image")
    state = None if current_root is None else table_state(current_root, "images", options)
    current_images = 0 if state is None else sum(file.rows for file in live_files(state))
    if images < current_images:
        doubts.append(f"the label set holds {images} images, the current one {current_images}")
    return tuple(doubts)
