"""Failed rows of a label set: which of them a run tries again, and what a person hears of the others.

Knows the columns of failed rows and the rule that selects some of them. Lists, plans and commits nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from segray.label_set import schema
from segray.tasks import ALL_STAGES

UNREACHABLE = "Unreachable"  # in the column `error`: an address that did not answer while others did
_UNKNOWN_STAGE = "unknown"
_IS_FAILED = pc.field("status") == "failed"

# The messages of images that are over a limit name the limit's key.
LIMITS = ("max_bytes", "max_pixels", "max_side_px")
_COLUMNS = ("image_key", "version", "batch", "stage", "error", "run_id", "labelled_at")
# The messages of refused images begin with the image's size, WIDTHxHEIGHT, if it was known.
_SIZE = r"^(?P<width>\d{1,9})x(?P<height>\d{1,9})\b"
ROWS = pa.schema(
    [schema.IMAGES.field(name) for name in _COLUMNS]
    + [pa.field(name, pa.bool_()) for name in LIMITS]
    + [pa.field("width", pa.int64()), pa.field("height", pa.int64())]
)


@dataclass(frozen=True)
class RetryRule:
    """The rule which failed rows a command tries again.

    stages: failed rows of these stages; ALL_STAGES stands for every stage.
    before: the start of the command. Later rows are results of this command or of one beside it, and are kept.
    unreachable_before: unreachable images that failed before this moment are tried again too; None for none.
    """

    stages: Set[str]
    before: datetime
    unreachable_before: datetime | None = None

    def selects(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Return which of the failed rows are tried again, (rows,) bool. rows: as `read` returns them."""
        is_selected = _of_stages(rows, self.stages)
        if self.unreachable_before is not None:
            is_selected |= is_unreachable(rows) & _labelled_before(rows, self.unreachable_before)
        return is_selected & _labelled_before(rows, self.before)


def read(images: ds.Dataset) -> pa.Table:
    """Return the failed rows of the table `images` as ROWS.

    max_bytes and so on say which limit refused the image. width and height are the image's, null where unknown.
    A table without failed rows costs the reading of one column.
    """
    if not images.count_rows(filter=_IS_FAILED):
        return ROWS.empty_table()
    columns = {name: pc.field(name) for name in _COLUMNS}
    columns |= {name: pc.match_substring(pc.field("message"), f"image.{name}") for name in LIMITS}
    size = pc.extract_regex(pc.field("message"), pattern=_SIZE)
    columns |= {side: pc.struct_field(size, side) for side in ("width", "height")}
    return images.to_table(columns, filter=_IS_FAILED).cast(ROWS)


def is_unreachable(rows: pa.Table) -> NDArray[np.bool_]:
    """Return which rows are of images whose address did not answer, (rows,) bool."""
    matches = pc.and_(pc.equal(rows["stage"], "read"), pc.equal(rows["error"], UNREACHABLE))
    return np.asarray(pc.fill_null(matches, False).to_numpy())


def tried_by(planned: pa.Table, rows: pa.Table) -> NDArray[np.bool_]:
    """Return which failed rows came from a new try of a planned row, (rows,) bool.

    planned: rows that a plan tries again, as schema.RETIRED. rows: failed rows of today.
    """
    pairs = set(zip(planned["image_key"].to_pylist(), planned["batch"].to_pylist(), strict=True))
    keys = {key for key, _ in pairs}
    today = zip(rows["image_key"].to_pylist(), rows["batch"].to_pylist(), strict=True)
    return np.fromiter((key in keys and (key, batch) not in pairs for key, batch in today), np.bool_, len(rows))


def by_stage(rows: pa.Table) -> dict[str, int]:
    """Return the number of failed rows by stage, the most common first."""
    counts = pc.value_counts(pc.fill_null(rows["stage"], _UNKNOWN_STAGE)).to_pylist()
    return {entry["values"]: entry["counts"] for entry in sorted(counts, key=lambda entry: -entry["counts"])}


def raised_limits(
    rows: pa.Table, limits: Mapping[str, int], config_of: Callable[[str], Mapping[str, Any]]
) -> dict[str, tuple[int, int, int]]:
    """Return the limits that refused images and were raised since: old limit, new limit and number of images, by key.

    An image whose known size is over the limit of today does not count.

    Args:
        rows: Failed rows, as `read` returns them.
        limits: The limits of today: max_bytes, max_pixels and max_side_px.
        config_of: Returns the section `image` of a run's configuration, by the run's id; empty if it is not recorded.
    """
    raised: dict[str, tuple[int, int, int]] = {}
    for name in LIMITS:
        of_limit = rows.filter(pc.and_(pc.fill_null(rows[name], False), _is_within(rows, name, limits[name])))
        for entry in pc.value_counts(of_limit["run_id"]).to_pylist():
            before = config_of(entry["values"]).get(name)
            if before is not None and before < limits[name]:
                lowest, _, images = raised.get(name, (before, 0, 0))
                raised[name] = min(lowest, before), limits[name], images + entry["counts"]
    return raised


def _is_within(rows: pa.Table, name: str, limit: int) -> pa.ChunkedArray:
    """Return which images are within a limit, as far as their size is known."""
    if name == "max_bytes":  # No more of a file is read than the limit, so its size is unknown.
        return pa.chunked_array([pa.repeat(True, len(rows))])
    measure = pc.multiply if name == "max_pixels" else pc.max_element_wise
    return pc.fill_null(pc.less_equal(measure(rows["width"], rows["height"]), limit), True)


def _labelled_before(rows: pa.Table, moment: datetime) -> NDArray[np.bool_]:
    labelled_at = rows["labelled_at"]
    return np.asarray(pc.less_equal(labelled_at, pa.scalar(moment, labelled_at.type)).to_numpy())


def _of_stages(rows: pa.Table, stages: Set[str]) -> NDArray[np.bool_]:
    if ALL_STAGES in stages:
        return np.ones(len(rows), np.bool_)
    return np.asarray(pc.is_in(rows["stage"], pa.array(sorted(stages), pa.string())).to_numpy())
