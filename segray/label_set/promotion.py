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
from segray.storage.uris import absolute, join, name, parent


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


def promote(root: str, options: StorageOptions, *, force: bool = False, dry_run: bool = False) -> Promotion:
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
    store, uri = Store(options), absolute(root.rstrip("/"))
    folder, above = name(uri), parent(uri)
    if folder == CURRENT or not above or above.endswith(":/"):
        raise UserError(
            "a label set is promoted by its own folder, which lies in another",
            where=root,
            hint="give PARENT/NAME; readers then read PARENT/CURRENT",
        )
    pointer = join(above, CURRENT)
    before = named_folder(pointer, store)
    doubts = _doubts(uri, None if before in (None, folder) else join(above, str(before)), options, store)
    if doubts and not force:
        raise LabelSetError(
            "this label set should not be read instead of another yet",
            where=root,
            found="; ".join(doubts),
            hint="run `segray label` to its end and see `segray verify`; or promote it as it is with --force",
        )
    if not dry_run and before != folder:
        write_pointer(pointer, folder, store)
    return Promotion(pointer, folder, before, doubts, written=not dry_run and before != folder)


def _doubts(root: str, other: str | None, options: StorageOptions, store: Store) -> tuple[str, ...]:
    report = verify(root, options)
    found = [f"{each.kind}: {each.where}: {each.found}" for each in report.violations[:3]]
    if len(report.violations) > 3:
        found.append(f"and {len(report.violations) - 3} violations more")
    if (run := run_records.unfinished(store, root)) is not None:
        found.append(f"run {run.id} has not come to its end")
    if not report.counts["images"]:
        found.append("it holds no image")
    state = None if other is None else table_state(other, "images", options)
    theirs = 0 if state is None else sum(file.rows for file in live_files(state))
    if report.counts["images"] < theirs:
        found.append(f"it holds {report.counts['images']} images, and the current one {theirs}")
    return tuple(found)
