"""Which image of a truth is which image of a label set: by key, by the end of the path, or by the bare name.

This module knows names of images. A name that equals a key always counts first. No two images are ever taken for one.
Where names and keys are equal, nothing is kept. Otherwise some 100 bytes of each image stay in memory.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray.analytics.evaluation.ground_truth import GroundTruthIndex, key_hash
from segray.analytics.query import key_ranges
from segray.analytics.query.key_ranges import KeySampler
from segray.errors import UserError
from segray.label_set.snapshot import Snapshot
from segray.storage.store import Store
from segray.storage.uris import is_http

FILES_BY = ("key", "basename", "suffix")
_SAME, _SUFFIX, _BASENAME = "same", "suffix", "basename"
_WORDS = {
    _SAME: "by another spelling of their name, or by coco_url",
    _SUFFIX: "by the end of their path",
    _BASENAME: "by the last part of their path",
}
_NONE, _SEVERAL = -1, -2  # in place of a row of the label set
_BATCH = 10_000  # names that are looked up together
_MAX_PARTS = 32  # of a path, from its end
_EXAMPLES = 100


@dataclass(frozen=True)
class ImageMatch:
    """The key of each image of the truth.

    sampler: the keys of both sides. keys: keys of the label set that are no names of the truth. rows: (n,) int64, by
    the image's position in the truth's index, an index into keys, or -1 where the name in the truth is the key. notes:
    what is told.
    """

    sampler: KeySampler = field(default_factory=KeySampler)
    keys: pa.Array | None = field(default=None, repr=False)
    rows: NDArray[np.int64] | None = field(default=None, repr=False)
    notes: Sequence[str] = ()

    def key(self, position: int, name: str) -> str:
        """Return the key of an image, from its position in the index and its name in the truth."""
        if self.rows is None or self.keys is None or self.rows[position] < 0:
            return name
        return str(self.keys[int(self.rows[position])].as_py())


def match(
    index: GroundTruthIndex,
    state: Snapshot,
    store: Store,
    sampler: KeySampler,
    *,
    files_by: str | None = None,
    allow_unlisted: bool = False,
) -> ImageMatch:
    """Match the images of a truth with those of a label set.

    Without a choice, names count that equal a key, or that differ from a key in Unicode form or slashes alone. If no
    name equals a key, the ends of paths count, and then the last parts, where they fit one to one.

    Args:
        index: The truth.
        state: The label set.
        store: Storage of the truth.
        sampler: The sampler with the names of the truth. The keys of the label set are added.
        files_by: A member of FILES_BY, or None to choose.
        allow_unlisted: Accept images of the label set that the truth does not list.

    Raises:
        UserError: No image is in both, two images fit one, or the truth lacks a labelled image and allow_unlisted is
            false.
    """
    if files_by is not None and files_by not in FILES_BY:
        raise UserError("no such way to match images", found=files_by, hint=f"choose from {', '.join(FILES_BY)}")
    common, total, first = _add_keys(index, state, sampler)
    if common == total > 0:
        return ImageMatch(sampler)
    labelled = _unlisted_images(index, state, first, total)
    where = f"{state.root}, {index.path}"
    matched = _match_others(index, where, store, labelled, files_by) if total else None
    result, unlisted = ImageMatch(sampler), labelled.keys
    if matched is not None and matched.rows is not None:
        result = replace(matched, sampler=_new_sampler(index, state))
        is_left = np.ones(len(labelled.keys), np.bool_)
        is_left[matched.rows[matched.rows >= 0]] = False
        unlisted = labelled.keys.filter(pa.array(is_left))
    _check_common(index, where, labelled, unlisted, allow_unlisted)
    return result


def match_dataset(
    index: GroundTruthIndex, images: Mapping[str, str], store: Store, where: str, files_by: str | None = None
) -> ImageMatch:
    """Match the images of a truth with those of a dataset, as `match` does. Images may be in one of both alone.

    images: URI by key. where: the truth and the dataset, for errors. Raise UserError if two images fit one.
    """
    keys = list(images)
    positions = index.positions(keys)
    has_key = np.zeros(len(index.ids), np.bool_)
    has_key[positions[positions >= 0]] = True
    others = [key for key, position in zip(keys, positions.tolist(), strict=True) if position < 0]
    unlisted = pa.array(others, pa.large_string()), pa.array([images[key] for key in others], pa.large_string())
    labelled = _Labelled(len(keys), min(keys, default=""), *unlisted, has_key)
    return _match_others(index, where, store, labelled, files_by) or ImageMatch()


def _add_keys(index: GroundTruthIndex, state: Snapshot, sampler: KeySampler) -> tuple[int, int, str]:
    """Add the keys of a label set to the sampler.

    Return the number of keys that the truth lists, the number of all keys, and the first key.
    """
    common, total, first = 0, 0, ""
    for batch in state.images.to_batches(columns=["image_key", "n_instances"], **key_ranges.NO_METADATA_CACHE):
        if names := batch.column("image_key").to_pylist():
            common += int((index.positions(names) >= 0).sum())
            sampler.add(names, key_ranges.weights(state, batch.column("n_instances")))
            total, first = total + len(names), min(first or names[0], *names)
    return common, total, first


@dataclass(frozen=True)
class _Labelled:
    """The images of a label set.

    total: number of images. first: the first key. keys, uris: of the images whose key the truth does not list. has_key:
    (n,) bool, by position in the index; whether the image's name is a key.
    """

    total: int
    first: str
    keys: pa.Array
    uris: pa.Array
    has_key: NDArray[np.bool_]


def _unlisted_images(index: GroundTruthIndex, state: Snapshot, first: str, total: int) -> _Labelled:
    """Return the images of a label set that the truth does not list by their keys."""
    uri = "uri" if "uri" in state.images.schema.names else "image_key"
    has_key = np.zeros(len(index.ids), np.bool_)
    keys, uris = [pa.array([], pa.large_string())], [pa.array([], pa.large_string())]
    for batch in state.images.to_batches(columns=list({"image_key", uri}), **key_ranges.NO_METADATA_CACHE):
        positions = index.positions(batch.column("image_key").to_pylist())
        has_key[positions[positions >= 0]] = True
        others = batch.filter(pa.array(positions < 0, pa.bool_()))
        keys.append(others.column("image_key").cast(pa.large_string()))
        uris.append(others.column(uri).cast(pa.large_string()))
    return _Labelled(total, first, pa.concat_arrays(keys), pa.concat_arrays(uris), has_key)


def _check_common(
    index: GroundTruthIndex, where: str, labelled: _Labelled, unlisted: pa.Array, allow_unlisted: bool
) -> None:
    """Raise UserError if no image is in both, or if the truth lacks a labelled image and allow_unlisted is false."""
    if len(unlisted) == labelled.total:
        raise UserError(
            "the truth and the label set have no image in common", where=where,
            found=f"label set: {labelled.first or 'no images'}, truth: {index.example}",
            hint="match them with --files-by suffix or basename, cut a folder off with --strip-prefix, or make the "
            "truth's file_name equal to image_key",
        )  # fmt: skip
    if len(unlisted) and not allow_unlisted:
        raise UserError(
            "the label set has images that the truth does not list", where=where,
            found=f"{len(unlisted)} of {labelled.total}, such as {min(unlisted.to_pylist())}",
            hint="check --truth, or leave these images out with --allow-unlisted",
        )  # fmt: skip


# ---- names that are no keys -----------------------------------------------------------------------


def _match_others(
    index: GroundTruthIndex, where: str, store: Store, labelled: _Labelled, files_by: str | None
) -> ImageMatch | None:
    """Match the names that are no keys, at the strictest level that fits; None if none fits.

    where: the truth and the images, for errors.
    """
    has_common = len(labelled.keys) < labelled.total
    tables = {level: _Table(level, labelled) for level in _levels(files_by, has_common)}
    rows = {level: np.full(len(index.ids), _NONE, np.int64) for level in tables}
    examples: dict[int, str] = {}
    for positions, names, urls in _batches(index, store, labelled.has_key):
        for level, table in tables.items():
            rows[level][positions] = table.find(names, urls)
        if len(examples) < _EXAMPLES:
            examples |= zip(positions.tolist(), names[:_EXAMPLES], strict=False)
    same = _unambiguous(rows.pop(_SAME))
    matched_rows, levels = same, [_SAME] if (same >= 0).any() else []
    for level, loose in rows.items():
        if levels and files_by is None:
            break
        others = np.where((same >= 0) | np.isin(loose, same[same >= 0]), _NONE, loose)
        if (clashing := _clash(others)) is not None:
            if files_by == level:
                raise _ambiguous(index, where, store, labelled, tables[level], clashing)
        elif (others >= 0).any():
            matched_rows = np.maximum(same, others)
            levels.append(level)
    if not levels:
        return None
    notes = _notes(index, labelled, same, matched_rows, levels, examples)
    return ImageMatch(keys=labelled.keys, rows=matched_rows, notes=notes)


def _levels(files_by: str | None, has_common: bool) -> tuple[str, ...]:
    """Return the ways of matching to try, the strictest first. has_common: whether some names are keys."""
    if files_by in (_SUFFIX, _BASENAME):
        return _SAME, files_by
    return (_SAME,) if files_by == "key" or has_common else (_SAME, _SUFFIX, _BASENAME)


def _batches(
    index: GroundTruthIndex, store: Store, has_key: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.int64], list[str], list[str]]]:
    """Yield positions, names and coco_urls of the truth's images whose names are no keys."""
    positions, names, urls = list[int](), list[str](), list[str]()
    for position, name, row in index.images(store):
        if has_key[position]:
            continue
        url = row.get("coco_url")
        positions.append(position)
        names.append(name)
        urls.append(url if isinstance(url, str) and url.isprintable() else "")
        if len(names) == _BATCH:
            yield np.array(positions), names, urls
            positions, names, urls = [], [], []
    if names:
        yield np.array(positions), names, urls


class _Table:
    """The forms of the label set's keys at one level, and the row of each, sorted by hash."""

    def __init__(self, level: str, labelled: _Labelled) -> None:
        self._level = level
        hashes, rows = array("Q"), array("q")
        for row, (key, uri) in enumerate(zip(labelled.keys, labelled.uris, strict=True)):
            for form in _forms_of_key(level, key.as_py(), uri.as_py()):
                hashes.append(key_hash(form))
                rows.append(row)
        order = np.argsort(np.frombuffer(hashes, np.uint64), kind="stable")
        self._hashes, self._rows = np.frombuffer(hashes, np.uint64)[order], np.frombuffer(rows, np.int64)[order]

    def find(self, names: Sequence[str], urls: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each name, (n,) int64, _NONE or _SEVERAL."""
        matches = np.full(len(names), _NONE, np.int64)
        for number, (name, url) in enumerate(zip(names, urls, strict=True)):
            rows = self.rows_of(name, url)
            if rows:
                matches[number] = rows[0] if len(rows) == 1 else _SEVERAL
        return matches

    def rows_of(self, name: str, url: str) -> list[int]:
        """Return two of the rows that fit a name, or fewer. A row has each of its forms once."""
        hashes = np.array([key_hash(form) for form in _forms_of_name(self._level, name, url)], np.uint64)
        rows = set[int]()
        for start, value in zip(np.searchsorted(self._hashes, hashes).tolist(), hashes, strict=True):
            while start < len(self._hashes) and self._hashes[start] == value and len(rows) < 2:
                rows.add(int(self._rows[start]))
                start += 1
        return sorted(rows)


def _forms_of_key(level: str, key: str, uri: str) -> set[str]:
    path = _normal(key)
    if level == _SAME:
        return {path, uri}
    if level == _BASENAME:
        return {path.rpartition("/")[2]}
    return {f"whole {path}", *(f"end {end}" for end in _ends(path))}


def _forms_of_name(level: str, name: str, url: str) -> set[str]:
    """Return the forms of a name in the truth. A name fits a key if both have a form in common."""
    path = _normal(name)
    if level == _SAME:
        return {path, name, *([url] if url else [])}
    if level == _BASENAME:
        return {path.rpartition("/")[2]}
    return {f"end {path}", *(f"whole {end}" for end in _ends(path))}


def _normal(path: str) -> str:
    """Return a path in one Unicode form, with single slashes in place of backslashes, without the query of a URL."""
    if is_http(path):
        path = path.partition("#")[0].partition("?")[0]
    return str(PurePosixPath(unicodedata.normalize("NFC", path.replace("\\", "/"))))


def _ends(path: str) -> list[str]:
    """Return the ends of a path that begin with a whole part, the path itself included."""
    parts = [part for part in path.split("/")[-_MAX_PARTS:] if part]
    return [path, *("/".join(parts[start:]) for start in range(len(parts)))]


# ---- one to one -----------------------------------------------------------------------------------


def _unambiguous(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows, with _NONE where several rows fit an image or several images fit a row."""
    values, counts = np.unique(rows[rows >= 0], return_counts=True)
    return np.where((rows >= 0) & ~np.isin(rows, values[counts > 1]), rows, _NONE)


def _clash(rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the positions of an image that several rows fit, or of two images that one row fits; None without such."""
    if len(several := np.flatnonzero(rows == _SEVERAL)):
        return several[:1]
    values, counts = np.unique(rows[rows >= 0], return_counts=True)
    return np.flatnonzero(rows == values[counts > 1][0])[:2] if (counts > 1).any() else None


def _ambiguous(
    index: GroundTruthIndex,
    where: str,
    store: Store,
    labelled: _Labelled,
    table: _Table,
    positions: NDArray[np.int64],
) -> UserError:
    clashing_positions = set(positions.tolist())
    names, keys = set[str](), set[str]()
    for position, name, row in index.images(store):
        if position in clashing_positions:
            url = row.get("coco_url")
            names.add(name)
            keys |= {labelled.keys[k].as_py() for k in table.rows_of(name, url if isinstance(url, str) else "")}
    return UserError(
        "two images fit one", where=where,
        found=f"truth: {' and '.join(sorted(names))}, label set: {' and '.join(sorted(keys))}",
        hint="match them with --files-by suffix, or cut a folder off with --strip-prefix",
    )  # fmt: skip


def _new_sampler(index: GroundTruthIndex, state: Snapshot) -> KeySampler:
    """Return a sampler of the label set's keys alone, each with the weight of both sides."""
    sampler = KeySampler()
    for batch in state.images.to_batches(columns=["image_key"], **key_ranges.NO_METADATA_CACHE):
        sampler.add(batch.column("image_key").to_pylist(), [index.row_weight] * batch.num_rows)
    key_ranges.add_images(sampler, state)
    return sampler


def _notes(
    index: GroundTruthIndex,
    labelled: _Labelled,
    same: NDArray[np.int64],
    matched_rows: NDArray[np.int64],
    levels: Sequence[str],
    examples: Mapping[int, str],
) -> list[str]:
    notes = []
    for level in levels:
        is_matched = same >= 0 if level == _SAME else (matched_rows >= 0) & (same < 0)
        count = int(is_matched.sum())
        example = next((position for position in examples if is_matched[position]), None)
        words = (
            "" if example is None else f", such as {examples[example]} for {labelled.keys[int(matched_rows[example])]}"
        )
        notes.append(f"{count} of {len(index.ids)} images of the truth are matched {_WORDS[level]}{words}")
    return notes
