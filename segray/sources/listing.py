"""Listings of datasets: folders, buckets, manifests, archives, Parquet columns and videos, as image references.

Knows which files count as images and which files hold images. Planning reads the indexes of archives, Parquet files
and videos, but no image. References travel in batches of REF_BATCH_ROWS rows. A million references stay well below
1 GB.

    photos/  s3://bucket/photos  gs://...   every image below, by extension; key = path below the folder
    photos/**/*.jpg  s3://bucket/2024-*/*   every file that matches, whatever its extension; key = path below
                                            the folders before the first wildcard
    photo.jpg                               one image; key = its name
    list.txt                                one URI per line (UTF-8); key = the URI as written
    list.csv  list.parquet                  column `uri`, or the only column; optional columns `key`, `version`
    .../manifest.json                       an S3 Inventory report; keys and versions equal those of a listing

    shards/  train-*.tar  a.zip             a file that holds images gives each image; key = FILE/MEMBER,
    table.parquet                           FILE/ROW for a column of image bytes,
    drive.mp4                               FILE#t=12.480 for frames at `frames_per_s`; version = the file's version

A folder that holds images and shards is a folder of images, unless `kind` says otherwise. Listings of folders skip
hidden files and folders (.name) and the folders in BOOKKEEPING. Wildcards are *, ? and [...] within a name, and **
for any number of folders. A wildcard never matches a leading dot. A name that exists is taken literally, even with
wildcard characters. Relative URIs in a manifest start at the manifest's folder.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from difflib import get_close_matches
from itertools import islice

import pyarrow as pa

from segray import config
from segray.errors import SourceError
from segray.instances import ImageRef
from segray.sources import archives, manifest, parquet_images, s3_inventory, tar_archive, video, zip_archive
from segray.sources.archives import BrokenFileError, SourceSpec
from segray.sources.shard_index import Index
from segray.sources.uris import WILDCARD, extension, is_hidden, listed, pattern, split_glob
from segray.storage.store import ListedObject, Store
from segray.storage.uris import absolute, name, parent, scheme

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif"})
REF_BATCH_ROWS = 65_536
REF_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
    ]
)
AUTO = SourceSpec()
# Most shards whose indexes are read at the same time.
_AHEAD = 8


def read(
    uri: str,
    store: Store,
    *,
    extensions: frozenset[str] = IMAGE_EXTENSIONS,
    shape: SourceSpec = AUTO,
    index: Index | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the dataset at `uri` in batches of REF_SCHEMA, each key once.

    Rows are sorted by key, except those of manifests and inventories. A shard that cannot be read becomes one reference
    with the reason.

    Args:
        uri: A folder, glob, image, manifest, inventory report, or file that holds images.
        store: The store that reaches `uri`.
        extensions: Extensions of images, in lower case, without the dot.
        shape: The configured source: kind, members and further choices.
        index: Index of shards that earlier runs have read, if one is kept.

    Raises:
        SourceError: The dataset does not exist, holds no image, or its manifest cannot be read.
        FileNotFoundError, AccessError, InfrastructureError: As Store raises them.
    """
    uri = absolute(uri)
    yield from _batches(_Reading(store, extensions, shape, index).refs(uri), uri)
    if index is not None:
        index.forget()


def configured(source: config.SourceSettings, store: Store, index: Index | None = None) -> Iterator[pa.RecordBatch]:
    """Return the batches that `read` yields for the configured source."""
    chosen = SourceSpec(source.kind, source.members, source.frames_per_s, source.image_column, source.prefix)
    return read(source.uri, store, shape=chosen, index=index)


def refs(batch: pa.RecordBatch) -> list[ImageRef]:
    """Return the rows of a batch of REF_SCHEMA as image references."""
    return [ImageRef(*row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]


def _batches(found: Iterator[ImageRef], uri: str) -> Iterator[pa.RecordBatch]:
    while rows := list(islice(found, REF_BATCH_ROWS)):
        values = zip(*((ref.key, ref.uri, ref.version, ref.size_bytes) for ref in rows), strict=True)
        try:
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, field.type) for column, field in zip(values, REF_SCHEMA, strict=True)],
                schema=REF_SCHEMA,
            )
        except UnicodeEncodeError as error:
            raise SourceError(
                "A name that is not UTF-8", where=uri, found=ascii(error.object), hint="rename the file or move it away"
            ) from error


class _Reading:
    """A reader of one dataset, with the choices of the source."""

    def __init__(self, store: Store, extensions: frozenset[str], shape: SourceSpec, index: Index | None) -> None:
        self._store, self._extensions, self._shape, self._index = store, extensions, shape, index

    def refs(self, uri: str) -> Iterator[ImageRef]:
        if not uri.endswith("/") and self._store.exists(uri):
            return self._file(uri)
        if WILDCARD.search(uri):
            return self._taken(self._glob(uri))
        return self._chosen(_listing(uri, self._store), uri)

    # ---- files of the dataset ----

    def _file(self, uri: str) -> Iterator[ImageRef]:
        kind, last = self._shape.kind, extension(uri)
        if s3_inventory.is_report(uri) and kind != "manifest":
            return self._chosen(s3_inventory.entries(uri, self._store, self._shape.prefix), uri)
        named = last in manifest.FORMATS and kind in ("auto", "images", "manifest", *_HOLDERS)
        if named and not (last == "parquet" and (kind == "parquet" or (kind == "auto" and self._has_images(uri)))):
            found = manifest.refs(uri, self._store, self._extensions)
            return found if kind not in _HOLDERS else self._taken(map(self._entry, found))
        if kind in _HOLDERS or (kind == "auto" and last in _HOLDER_OF) or last in self._extensions:
            return self._taken(iter([self._store.stat(uri)]))
        holders = listed(_HOLDER_OF)
        if uri.lower().endswith(tar_archive.COMPRESSED):
            raise SourceError(
                "A compressed tar cannot be read from its middle",
                where=uri,
                hint="decompress it; images gain nothing by it",
            )
        raise SourceError(
            "Neither an image nor a manifest",
            where=uri,
            found=f"a file with extension {last!r}",
            hint=f"give a folder, a glob, an image ({listed(self._extensions)}), a file that holds images ({holders}) "
            f"or a manifest ({listed(manifest.FORMATS)})",
        )

    def _entry(self, ref: ImageRef) -> ListedObject:
        """Return the entry of a file that a manifest names. A version in the manifest wins over the store's."""
        there = self._store.stat(ref.uri)
        return ListedObject(ref.uri, ref.key, ref.version or there.version, there.size_bytes)

    def _has_images(self, uri: str) -> bool:
        """Return whether a Parquet file holds images, and is not a manifest with a column `uri`."""
        try:
            with self._store.reader(uri) as file:
                schema = parquet_images.opened(file).schema_arrow
        except BrokenFileError:
            return False
        if self._shape.image_column is None and "uri" in schema.names:
            return False
        return parquet_images.image_column(schema, self._shape.image_column) is not None

    def _chosen(self, entries: Iterator[ListedObject], uri: str) -> Iterator[ImageRef]:
        """Yield the images of a listing, chosen by extension: image files, or images in files that hold some.

        With kind `auto`, files that hold images count only in a listing without any image file.
        """
        kind = self._shape.kind
        wanted = _HOLDERS[kind].EXTENSIONS if kind in _HOLDERS else self._extensions
        others: Counter[str] = Counter()  # for the error message, so only counted until the first image
        holders: list[ListedObject] = []
        found = False

        def fitting() -> Iterator[ListedObject]:
            nonlocal found
            for entry in entries:
                last, hidden = extension(entry.key), is_hidden(entry.key)
                if last in wanted and not hidden:
                    found = True
                    yield entry
                elif not found:
                    if kind == "auto" and last in _HOLDER_OF and not hidden:
                        holders.append(entry)
                    others[("hidden " if hidden else "") + (f".{last}" if last else "without extension")] += 1

        yield from self._taken(fitting())
        if found:
            return
        kinds = {_HOLDER_OF[extension(entry.key)] for entry in holders}
        if len(kinds) == 1:
            yield from self._taken(iter(holders))
            return
        shown = ", ".join(f"{each} {n}" for each, n in others.most_common(8))
        hint = f"give a folder, prefix or glob with images ({listed(wanted)}); a glob takes any extension"
        if kinds:
            hint = f"set source.kind to one of {listed(kinds)}"
        raise SourceError(
            "Files of several kinds that hold images" if kinds else "No images here",
            where=uri,
            found=f"{others.total()} files: {shown}" if others else "no files at all",
            hint=hint,
        )

    def _glob(self, uri: str) -> Iterator[ListedObject]:
        root, glob = split_glob(uri)
        matches = pattern(glob).fullmatch
        files = found = 0
        for entry in _listing(root, self._store, prefix=WILDCARD.split(glob)[0]):
            files += 1
            if matches(entry.key):
                found += 1
                yield entry
        if not found:
            raise SourceError(
                "No file matches the glob",
                where=uri,
                found=f"{files} files below {root} begin as the pattern does",
                hint="correct the pattern: * stays within one folder, ** spans any number, case counts",
            )

    # ---- images in the files ----

    def _taken(self, entries: Iterator[ListedObject]) -> Iterator[ImageRef]:
        """Yield image files as they are, and the images of files that hold some, in the order of the entries.

        Up to _AHEAD files are opened at a time.
        """
        waiting: deque[Future[list[ImageRef]]] = deque()
        pool: ThreadPoolExecutor | None = None
        empty: list[ListedObject] = []
        any_image = False
        try:
            for entry in entries:
                kind = self._kind(entry)
                if kind is None:
                    yield from _done(waiting)
                    any_image = True
                    yield ImageRef(entry.key, entry.uri, entry.version, entry.size_bytes)
                    continue
                pool = pool or ThreadPoolExecutor(_AHEAD, thread_name_prefix="index")
                waiting.append(pool.submit(self._inside, kind, entry))
                empty = [*empty, entry][:3]
                if len(waiting) > _AHEAD:
                    for ref in waiting.popleft().result():
                        any_image = True
                        yield ref
            for ref in _done(waiting):
                any_image = True
                yield ref
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        if empty and not any_image:
            raise SourceError(
                "No images in these files",
                where=", ".join(entry.uri for entry in empty),
                found=f"no member with one of the extensions {listed(self._extensions)}"
                + (f" that matches {self._shape.members!r}" if self._shape.members else ""),
                hint="give files that hold images, or correct source.members",
            )

    def _kind(self, entry: ListedObject) -> str | None:
        """Return the kind of reader that the file needs, None for an image."""
        if self._shape.kind != "auto":
            return self._shape.kind if self._shape.kind in _HOLDERS else None
        return _HOLDER_OF.get(extension(entry.key) or extension(entry.uri))

    def _inside(self, kind: str, file: ListedObject) -> list[ImageRef]:
        if self._index is not None and kind == "tar":
            return self._index.refs(file, self._shape, self._extensions, lambda: self._read(kind, file))
        return self._read(kind, file)

    def _read(self, kind: str, file: ListedObject) -> list[ImageRef]:
        try:
            return _READERS[kind](self._store, file, self._shape, self._extensions)
        except BrokenFileError as error:
            return [archives.broken(file, str(error))]
        except FileNotFoundError:
            return [archives.broken(file, "the file is gone")]


def _done(waiting: deque[Future[list[ImageRef]]]) -> Iterator[ImageRef]:
    while waiting:
        yield from waiting.popleft().result()


def _listing(uri: str, store: Store, prefix: str = "") -> Iterator[ListedObject]:
    try:
        yield from store.list(uri, prefix=prefix)
    except FileNotFoundError as error:
        raise SourceError(
            "No such folder or file", where=uri, found=_nearby(uri, store), hint="correct source.uri"
        ) from error


def _nearby(uri: str, store: Store) -> str:
    """Return names like that of `uri` in its folder, for error messages; "" for remote URIs.

    Listing a bucket could take hours, so only local folders are searched.
    """
    if scheme(uri):
        return ""
    folder = parent(uri) or "/"
    names = store.names(folder)
    close = get_close_matches(name(uri), names) or names[:5]
    return f"{folder} holds {', '.join(close)}" if close else f"{folder} is empty or missing"


# ---- files that hold images, by kind --------------------------------------------------------------

_HOLDERS = {"tar": tar_archive, "zip": zip_archive, "parquet": parquet_images, "video": video}
_HOLDER_OF: Mapping[str, str] = {last: kind for kind, module in _HOLDERS.items() for last in module.EXTENSIONS}


def _tar(store: Store, file: ListedObject, shape: SourceSpec, extensions: frozenset[str]) -> list[ImageRef]:
    def part(start: int, size: int) -> bytes:
        return store.read_range(file.uri, start, size)

    return archives.refs("tar", file, tar_archive.members(part, file.size_bytes), shape, extensions)


def _zip(store: Store, file: ListedObject, shape: SourceSpec, extensions: frozenset[str]) -> list[ImageRef]:
    with store.reader(file.uri) as stream:
        return archives.refs("zip", file, zip_archive.members(stream), shape, extensions)


def _parquet(store: Store, file: ListedObject, shape: SourceSpec, extensions: frozenset[str]) -> list[ImageRef]:
    with store.reader(file.uri) as stream:
        return parquet_images.refs(file, parquet_images.opened(stream), shape)


def _video(store: Store, file: ListedObject, shape: SourceSpec, extensions: frozenset[str]) -> list[ImageRef]:
    with store.reader(file.uri) as stream:
        return video.refs(file, stream, shape)


_READERS: Mapping[str, Callable[[Store, ListedObject, SourceSpec, frozenset[str]], list[ImageRef]]] = {
    "tar": _tar,
    "zip": _zip,
    "parquet": _parquet,
    "video": _video,
}
