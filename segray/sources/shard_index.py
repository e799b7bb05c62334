"""The index of the images in tar shards, kept from one run to the next.

Knows one small object for each shard. The object's name is a hash of all that decides the content of the index. A
nightly run therefore reads no indexed shard again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from segray.instances import ImageRef
from segray.sources.archives import ImagesInside, SourceSpec
from segray.storage.store import ListedObject, Store
from segray.storage.uris import join

# Version of the content of an index. Increase this number when the rules of archives.py or tar_archive.py change.
_FORMAT_VERSION = 3
_LEFT_OUT = "segray:left_out"


class Index:
    """The indexes of shards below `folder`. keep: whether to write new indexes."""

    def __init__(self, store: Store, folder: str, *, keep: bool) -> None:
        self._store, self._folder, self._keep = store, folder, keep
        self._stored_names: set[str] | None = None
        self._used: set[str] = set()

    def images(
        self, file: ListedObject, spec: SourceSpec, extensions: frozenset[str], read: Callable[[], ImagesInside]
    ) -> ImagesInside:
        """Return the images in this version of the file, from its index if there is one, else from `read`.

        A file without a version is always read. Threads may call this method at once.

        Args:
            file: The shard.
            spec: The configured source.
            extensions: Extensions of images, in lower case, without the dot.
            read: Returns the images of the shard by reading the shard.
        """
        if not file.version:
            return read()
        identity = [_FORMAT_VERSION, file.uri, file.key, file.version, asdict(spec), sorted(extensions)]
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32] + ".parquet"
        uri = join(self._folder, name)
        self._used.add(name)
        if name in self._list_names():
            try:
                return _decode(self._store.read(uri))
            except (FileNotFoundError, pa.ArrowException, TypeError, ValueError):
                pass  # An index is only a cache, so a missing or broken index is written again.
        images = read()
        if self._keep:
            self._store.put(uri, _encode(images))
        return images

    def delete_unused(self) -> None:
        """Delete the indexes that no call of `images` used: their shards changed or are gone."""
        if self._keep:
            for name in sorted(self._list_names() - self._used):
                self._store.delete(join(self._folder, name))

    def _list_names(self) -> set[str]:
        if self._stored_names is None:
            self._stored_names = set(self._store.names(self._folder))
        return self._stored_names


def _encode(images: ImagesInside) -> bytes:
    sink = pa.BufferOutputStream()
    columns = {name: [getattr(ref, name) for ref in images.refs] for name in ("key", "uri", "version", "size_bytes")}
    table = pa.table(columns).replace_schema_metadata({_LEFT_OUT: json.dumps(images.left_out)})
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _decode(data: bytes) -> ImagesInside:
    table = pq.read_table(pa.BufferReader(data))
    refs = [ImageRef(*row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True)]
    return ImagesInside(refs, json.loads((table.schema.metadata or {}).get(_LEFT_OUT.encode(), b"{}")))
