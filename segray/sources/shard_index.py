"""Where the images in a shard lie, remembered from one run to the next.

Knows one small object for each shard, named by what decides its content; so a nightly run reads no shard that it knows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from segray.instances import ImageRef
from segray.sources.archives import SourceSpec
from segray.storage.store import Entry, Store
from segray.storage.uris import join

# Of what an index says: another one when the rules of members.py or tar.py change.
_EDITION = 1


class Index:
    """The indexes below `folder`. keep: whether new ones are written there; a label set without any has none."""

    def __init__(self, store: Store, folder: str, *, keep: bool) -> None:
        self._store, self._folder, self._keep = store, folder, keep
        self._there: set[str] | None = None
        self._used: set[str] = set()

    def refs(
        self, file: Entry, shape: SourceSpec, extensions: frozenset[str], read: Callable[[], list[ImageRef]]
    ) -> list[ImageRef]:
        """What is remembered of this version of the file, or what `read` gives. Threads may share it."""
        if not file.version:
            return read()
        facts = [_EDITION, file.uri, file.key, file.version, asdict(shape), sorted(extensions)]
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32] + ".parquet"
        uri = join(self._folder, name)
        self._used.add(name)
        if name in self._names():
            try:
                columns = pq.read_table(pa.BufferReader(self._store.read(uri))).columns
                return [ImageRef(*row) for row in zip(*(column.to_pylist() for column in columns), strict=True)]
            except (FileNotFoundError, pa.ArrowException, TypeError):
                pass  # Only remembered: it is made again.
        found = read()
        if self._keep:
            self._store.put(uri, _written(found))
        return found

    def forget(self) -> None:
        """Delete what was not asked for since this was made: shards that changed or are gone."""
        if self._keep:
            for name in sorted(self._names() - self._used):
                self._store.delete(join(self._folder, name))

    def _names(self) -> set[str]:
        if self._there is None:
            self._there = set(self._store.names(self._folder))
        return self._there


def _written(refs: list[ImageRef]) -> bytes:
    sink = pa.BufferOutputStream()
    columns = {name: [getattr(ref, name) for ref in refs] for name in ("key", "uri", "version", "size_bytes")}
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())
