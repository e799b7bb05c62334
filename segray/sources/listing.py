"""Listings of datasets: folders, buckets, manifests, archives, Parquet columns and videos, as image references.

Knows which files count as images, and which files are containers: files that hold images. Planning reads the indexes
of archives, Parquet files and videos, but no image. References travel in batches of REF_BATCH_ROWS rows. A million
references take well below 1 GB.

    photos/  s3://bucket/photos  gs://...   every image below, by extension; key = path below the folder
    photos/**/*.jpg  s3://bucket/2024-*/*   every file that matches, with any extension; key = path below
                                            the folders before the first wildcard
    photo.jpg                               one image; key = its name
    shards-{000..099}.tar                   each of these files; one that is missing is told
    list.txt  list.txt.gz                   one URI per line; key = the URI as written
    list.csv .tsv .jsonl .parquet           column `uri`, or the one that `uri_column` or a known name tells;
    lists/*.csv.gz                          optional columns `key`, `version`; several manifests are one list
    .../manifest.json                       an S3 Inventory report; keys and versions equal those of a listing

    shards/  train-*.tar  a.zip             every image in a container; key = FILE/MEMBER,
    table.parquet                           FILE/ROW for a column of image bytes,
    drive.mp4                               FILE#t=12.480 for frames at `frames_per_s`; version = the file's version

A folder with images and containers is a folder of images, unless `kind` says otherwise. Listings of folders skip
hidden files and folders (.name) and the folders in BOOKKEEPING. Wildcards are *, ? and [...] within a name, and **
for any number of folders. A wildcard never matches a leading dot. A file, folder or prefix that exists is taken
literally, even with wildcard characters. Relative URIs in a manifest start at the manifest's folder.

An entry that cannot be listed is left out, and PassedOver names it. PassedOver also counts the files of a folder that
are not taken. A file whose name is not UTF-8, and a container that storage refuses while others can be read, become one
unreadable reference. The files of the label set are left out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice

import pyarrow as pa

from segray import config
from segray.errors import AccessError, SourceError
from segray.imaging.containers import heif_is_installed
from segray.instances import ImageRef
from segray.sources import archives, manifest, parquet_images, s3_inventory, tar_archive, video, zip_archive
from segray.sources.archives import BrokenFileError, ImagesInside, SourceSpec
from segray.sources.braces import expand
from segray.sources.own_files import is_own_file
from segray.sources.passed_over import HIDDEN, NO_EXTENSION, OTHERS, FileCounts, PassedOver, counts_text, kind_of
from segray.sources.shard_index import Index
from segray.sources.source_form import SourceForm, form_of
from segray.sources.uris import (
    WILDCARD,
    comma_list,
    extension,
    folder_pattern,
    inside,
    is_hidden,
    pattern,
    split_braces,
    split_glob,
)
from segray.storage.store import ListedObject, Store, Walk, bounded_map
from segray.storage.uris import absolute, join, name, parent, scheme

_HEIF_EXTENSIONS = frozenset({"heic", "heif", "hif"})
IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jfif", "jpe", "mpo", "png", "webp", "bmp", "tif", "tiff", "gif", "avif", "jp2", "j2k", "jxl"}
) | (_HEIF_EXTENSIONS if heif_is_installed() else frozenset())
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
# Containers whose indexes are read at the same time, at most.
_OPEN_AT_ONCE = 8
# Extensions of archives and compressed files that segray does not open, beside those of compressed tars.
_PACKED = frozenset({"7z", "rar", "lzh", "cab", "ace", "arj", "iso", "dmg", "gz", "bz2", "xz", "zst", "lz4"})
# Files of Parquet writers that describe other files and hold no row.
_PARQUET_SUMMARIES = ("_metadata", "_common_metadata")


def read(
    uri: str,
    store: Store,
    *,
    extensions: frozenset[str] = IMAGE_EXTENSIONS,
    spec: SourceSpec = AUTO,
    index: Index | None = None,
    label_set: str | None = None,
    passed_over: PassedOver | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the dataset at `uri` in batches of REF_SCHEMA, each key once.

    Rows are sorted by key, except those of manifests and inventories. A container that cannot be read becomes one
    reference with the reason.

    Args:
        uri: A folder, glob, image, manifest, inventory report, or container.
        store: The store that reaches `uri`.
        extensions: Extensions of images, in lower case, without the dot.
        spec: The configured source: kind, members and further choices.
        index: Index of the tar shards that earlier runs have read, if there is one.
        label_set: Root of the label set. Its files are no part of the dataset.
        passed_over: Receives the entries that are left out.

    Raises:
        SourceError: The dataset does not exist, holds no image, or its manifest cannot be read.
        FileNotFoundError, AccessError, InfrastructureError: As Store raises them.
    """
    uri = absolute(uri)
    reader = _DatasetReader(store, extensions, spec, index, label_set, passed_over or PassedOver())
    yield from _batches(reader.refs(uri), uri)
    if index is not None:
        index.delete_unused()


def configured(
    source: config.SourceSettings,
    store: Store,
    index: Index | None = None,
    *,
    label_set: str | None = None,
    passed_over: PassedOver | None = None,
) -> Iterator[pa.RecordBatch]:
    """Return the batches that `read` yields for the configured source."""
    spec = SourceSpec(
        source.kind, source.members, source.frames_per_s, source.image_column, source.prefix, source.uri_column
    )
    return read(source.uri, store, spec=spec, index=index, label_set=label_set, passed_over=passed_over)


def refs(batch: pa.RecordBatch) -> list[ImageRef]:
    """Return the rows of a batch of REF_SCHEMA as image references."""
    return [ImageRef(*row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]


def _batches(refs: Iterator[ImageRef], uri: str) -> Iterator[pa.RecordBatch]:
    while rows := list(islice(refs, REF_BATCH_ROWS)):
        values = zip(*((ref.key, ref.uri, ref.version, ref.size_bytes) for ref in rows), strict=True)
        try:
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, field.type) for column, field in zip(values, REF_SCHEMA, strict=True)],
                schema=REF_SCHEMA,
            )
        except UnicodeEncodeError as error:
            raise SourceError(
                "A name that is not UTF-8",
                where=uri,
                found=ascii(error.object),
                hint="rename the file, or move the file out of the dataset",
            ) from error


@dataclass(frozen=True)
class _UnreadFile:
    """A container that storage refuses, or a Parquet file without a column of images."""

    file: ListedObject
    error: AccessError | SourceError


_Inside = ImagesInside | _UnreadFile


class _DatasetReader:
    """A reader of one dataset, with the settings of the source."""

    def __init__(
        self,
        store: Store,
        extensions: frozenset[str],
        spec: SourceSpec,
        index: Index | None,
        label_set: str | None,
        passed_over: PassedOver,
    ) -> None:
        self._store, self._extensions, self._spec, self._index = store, extensions, spec, index
        self._label_set, self._passed_over = label_set, passed_over

    def refs(self, uri: str) -> Iterator[ImageRef]:
        match form_of(uri, self._store):
            case SourceForm.FILE:
                return self._images_of_file(uri)
            case SourceForm.GLOB:
                return self._images_of_files(self._matching_files(uri), uri)
            case SourceForm.BRACES:
                return self._images_of_files(self._named_files(uri), uri)
            case SourceForm.FOLDER:
                entries = self._listing(uri, lambda key: not is_hidden(key[:-1]))
                if self._spec.kind == "manifest":
                    return self._images_of_files((entry for entry in entries if not is_hidden(entry.key)), uri)
                return self._select_images(entries, uri)

    def _listing(self, uri: str, enters: Callable[[str], bool], prefix: str = "") -> Iterator[ListedObject]:
        """Yield the files below a folder, without those of the label set."""
        is_own = is_own_file(self._label_set, uri)
        walk = Walk(lambda key: enters(key) and not is_own(join(uri, key)), self._passed_over.add_unread)
        try:
            for entry in self._store.list(uri, prefix=prefix, walk=walk):
                if not is_own(entry.uri):
                    yield entry
        except FileNotFoundError as error:
            raise SourceError(
                "No such folder or file",
                where=uri,
                found=_similar_names(uri, self._store),
                hint="correct the address of the images: SOURCE of the command, `source.uri` of a configuration",
            ) from error

    # ---- files of the dataset ----

    def _images_of_file(self, uri: str) -> Iterator[ImageRef]:
        kind, file_extension = self._spec.kind, extension(uri)
        if s3_inventory.is_report(uri) and kind != "manifest":
            entries = s3_inventory.entries(uri, self._store, self._spec.prefix)
            is_own = is_own_file(self._label_set, uri)
            return self._select_images((entry for entry in entries if not is_own(entry.uri)), uri)
        if self._is_manifest(uri):
            return self._images_of_manifests(iter([uri]))
        is_container = kind in _CONTAINERS or (kind == "auto" and file_extension in _CONTAINER_OF)
        if is_container or file_extension in self._extensions:
            return self._open_containers(iter([self._store.stat(uri)]))
        if tar_archive.compressed_ending(uri):
            raise _compressed_tar_error(uri)
        if _is_packed(file_extension):
            raise SourceError(
                "A packed file", where=uri, hint="unpack the file; segray reads .tar and .zip as they are"
            )
        raise SourceError(
            "Neither an image nor a manifest",
            where=uri,
            found=f"a file with extension {file_extension!r}",
            hint=f"give a folder, a glob, an image ({comma_list(self._extensions)}), "
            f"a file that holds images ({comma_list(_CONTAINER_OF)}) or a manifest ({comma_list(manifest.FORMATS)})",
        )

    def _is_manifest(self, uri: str) -> bool:
        """Return whether the file is a manifest. A Parquet file may be a manifest or a container."""
        kind, file_format = self._spec.kind, manifest.format_of(uri)
        if file_format != "parquet":
            return bool(file_format)
        return kind != "parquet" and not (kind == "auto" and self._has_images(uri))

    def _images_of_files(self, entries: Iterator[ListedObject], uri: str) -> Iterator[ImageRef]:
        """Yield the images of files that a glob or braces name: of manifests, containers, or the files themselves."""
        file_format = manifest.format_of(uri)
        if self._spec.kind != "manifest" and file_format in ("", "parquet"):
            yield from self._open_containers(self._without_compressed_tars(entries))
            return
        others = FileCounts()
        uris: list[str] = []
        for entry in entries:
            if manifest.format_of(entry.uri):
                uris.append(entry.uri)
            else:
                others.add(kind_of(extension(entry.key)))
        if not uris:
            counts = ", ".join(f"{what} {n}" for what, n in others.by_kind.most_common(8)) or "no files at all"
            raise SourceError(
                "No manifest here", where=uri, found=counts, hint=f"give manifests ({comma_list(manifest.FORMATS)})"
            )
        self._tell_passed_over(others.by_kind)
        yield from self._images_of_manifests(iter(uris))

    def _without_compressed_tars(self, entries: Iterator[ListedObject]) -> Iterator[ListedObject]:
        """Yield the entries that a glob or braces name, without compressed tars, which are told."""
        compressed = FileCounts()
        any_other, example = False, ""
        for entry in entries:
            ending = tar_archive.compressed_ending(entry.uri)
            if ending:
                compressed.add(kind_of(ending))
                example = example or entry.uri
            else:
                any_other = True
                yield entry
        if example and not any_other:
            raise _compressed_tar_error(example)
        self._tell_passed_over(compressed.by_kind)

    def _images_of_manifests(self, uris: Iterator[str]) -> Iterator[ImageRef]:
        """Yield the images that manifests name. A manifest may name containers too, if `kind` is auto or theirs."""
        extensions = self._extensions | _CONTAINER_OF.keys()
        reading = manifest.ManifestReading(extensions, self._spec.uri_column, self._passed_over.tell)
        refs = manifest.refs(uris, self._store, reading)
        if self._spec.kind in _CONTAINERS:
            return self._open_containers(map(self._file_entry, refs))
        return refs if self._spec.kind != "auto" else self._images_and_containers(refs)

    def _images_and_containers(self, refs: Iterator[ImageRef]) -> Iterator[ImageRef]:
        """Yield the images that a manifest names, and the images of the containers among them."""
        any_image = False
        for ref in refs:
            if ref.uri.lower().endswith(_CONTAINER_ENDINGS) or tar_archive.compressed_ending(ref.uri):
                yield from self._open_containers(map(self._named_entry, chain([ref], refs)), any_image=any_image)
                return
            any_image = True
            yield ref

    def _named_entry(self, ref: ImageRef) -> ListedObject:
        """Return the entry of an image or container that a manifest names."""
        if self._kind_of_uri(ref.uri) is None:
            return ListedObject(ref.uri, ref.key, ref.version, ref.size_bytes)
        return self._file_entry(ref)

    def _file_entry(self, ref: ImageRef) -> ListedObject:
        """Return the entry of a file that a manifest names. A version in the manifest overrides the store's version."""
        try:
            stored = self._store.stat(ref.uri)
        except (FileNotFoundError, AccessError):  # Told when the file is opened, with the other files.
            return ListedObject(ref.uri, ref.key, ref.version, -1)
        return ListedObject(ref.uri, ref.key, ref.version or stored.version, stored.size_bytes)

    def _has_images(self, uri: str) -> bool:
        """Return whether a Parquet file holds images and is no manifest with a column `uri`."""
        try:
            with self._store.reader(uri) as file:
                schema = parquet_images.open_table(file).schema_arrow
        except BrokenFileError:
            return False
        is_named = self._spec.uri_column in schema.names
        if is_named or (self._spec.image_column is None and "uri" in schema.names):
            return False
        return parquet_images.image_column(schema, self._spec.image_column) is not None

    def _select_images(self, entries: Iterator[ListedObject], uri: str) -> Iterator[ImageRef]:
        """Yield the images of a listing, selected by extension: image files, or images in containers.

        With kind `auto`, containers count only in a listing without any image file.
        """
        kind = self._spec.kind
        extensions = _CONTAINERS[kind].EXTENSIONS if kind in _CONTAINERS else self._extensions
        skipped: Counter[str] = Counter()  # for the error message, so only counted until the first image
        passed_over = FileCounts()
        containers: list[ListedObject] = []
        any_image = False

        def matching_entries() -> Iterator[ListedObject]:
            nonlocal any_image
            for entry in entries:
                file_extension, hidden = extension(entry.key), is_hidden(entry.key)
                if file_extension in extensions and not hidden:
                    any_image = True
                    yield entry
                    continue
                if name(entry.key) in _PARQUET_SUMMARIES and not hidden:
                    self._passed_over.add(entry.key, "a Parquet file without rows")
                    continue
                if entry.size_bytes >= 0 or scheme(entry.uri):  # A link without a target is told already.
                    passed_over.add(
                        HIDDEN if hidden else kind_of(tar_archive.compressed_ending(entry.key) or file_extension)
                    )
                if not any_image:
                    if kind == "auto" and file_extension in _CONTAINER_OF and not hidden:
                        containers.append(entry)
                    ending = tar_archive.compressed_ending(entry.key) or file_extension
                    description = f".{ending}" if ending else NO_EXTENSION
                    skipped[f"hidden {description}" if hidden else description] += 1

        yield from self._open_containers(matching_entries())
        if any_image:
            self._tell_passed_over(passed_over.by_kind)
            return
        if any(extension(entry.key) == "ts" for entry in containers):
            containers = list(self._without_program_text(containers))
        containers = self._without_stray_tables(containers)
        kinds = {_CONTAINER_OF[extension(entry.key)] for entry in containers}
        if len(kinds) == 1:
            yield from self._open_containers(iter(containers))
            taken = {kind_of(extension(entry.key)) for entry in containers} | {kind_of("parquet")}
            self._tell_passed_over({kind: n for kind, n in passed_over.by_kind.items() if kind not in taken})
            return
        counts = ", ".join(f"{description} {n}" for description, n in skipped.most_common(8))
        found = f"{skipped.total()} files: {counts}" if skipped else "no files at all"
        if kinds:
            hint = f"set source.kind to one of {comma_list(kinds)}"
            raise SourceError("Files of several kinds that hold images", where=uri, found=found, hint=hint)
        hints = [f"give a folder, prefix or glob with images ({comma_list(extensions)})", "a glob takes any extension"]
        endings = {kind[1:] for kind in skipped if kind.startswith(".")}
        if manifests := endings & manifest.FORMATS.keys():
            hints.append(f"source.kind=manifest reads the images that {_dotted(manifests)} files name")
        if packed := {ending for ending in endings if _is_packed(ending)}:
            hints.append(f"unpack {_dotted(packed)} before")
        raise SourceError("No images here", where=uri, found=found, hint="; ".join(hints))

    def _without_program_text(self, containers: list[ListedObject]) -> Iterator[ListedObject]:
        """Yield the containers without .ts files that are no videos, but TypeScript."""
        may_be_video = bounded_map(self._may_be_video, containers, lambda entry: video.TS_START_BYTES)
        for entry, is_kept in zip(containers, may_be_video, strict=True):
            if is_kept:
                yield entry
            else:
                self._passed_over.add(entry.key, "not a video")

    def _may_be_video(self, entry: ListedObject) -> bool:
        """Return False for a .ts file that is no video, True for any other file."""
        if extension(entry.key) != "ts":
            return True
        try:
            return video.is_transport_stream(self._store.read_range(entry.uri, 0, video.TS_START_BYTES))
        except (AccessError, FileNotFoundError):
            return True  # Told when the file is opened, with the other files.

    def _tell_passed_over(self, counts: Mapping[str, int]) -> None:
        """Tell the numbers of files that are left out by kind, and the setting that takes them."""
        kinds = {kind[1:] for kind in counts if kind.startswith(".")}
        known = {"images": kinds & self._extensions}
        for kind, module in _CONTAINERS.items():
            known[kind] = kinds & module.EXTENSIONS
        advice = [f"source.kind={kind} takes {_dotted(known[kind])}" for kind in known if known[kind]]
        packed = {kind for kind in kinds if _is_packed(kind)}
        heif = (kinds & _HEIF_EXTENSIONS) - self._extensions
        others = kinds - packed - heif - set().union(*known.values())
        if others or counts.keys() & {NO_EXTENSION, OTHERS}:
            advice.append("a glob in source.uri takes files of any extension")
        if heif:
            advice.append(f"pip install 'segray[heif]' on every node takes {_dotted(heif)}")
        if packed:
            advice.append(f"unpack {_dotted(packed)} before")
        self._passed_over.add_files(counts, advice)

    def _without_stray_tables(self, containers: list[ListedObject]) -> list[ListedObject]:
        """Return the containers without Parquet files, if none of these holds images and there are other containers."""
        tables = [entry for entry in containers if extension(entry.key) in parquet_images.EXTENSIONS]
        others = [entry for entry in containers if extension(entry.key) not in parquet_images.EXTENSIONS]
        if not tables or not others:
            return containers
        refused: list[str] = []
        for entry in tables:
            try:
                if self._has_images(entry.uri):
                    return containers
            except AccessError:
                refused.append(entry.key)
        for entry in tables:
            is_refused = entry.key in refused
            reason = "storage refuses it" if is_refused else "a Parquet file without a column of images"
            self._passed_over.add(entry.key, reason)
        return others

    def _matching_files(self, uri: str) -> Iterator[ListedObject]:
        root, glob = split_glob(uri)
        matches, enters = pattern(glob).fullmatch, folder_pattern(glob).fullmatch
        files = matched = 0
        for entry in self._listing(root, lambda key: enters(key) is not None, WILDCARD.split(glob)[0]):
            files += 1
            if matches(entry.key):
                matched += 1
                yield entry
        if not matched:
            raise SourceError(
                "No file matches the glob",
                where=uri,
                found=f"{files} files below {root} whose names begin like the pattern",
                hint="correct the pattern: * stays within one folder, ** spans any number, case counts",
            )

    def _named_files(self, uri: str) -> Iterator[ListedObject]:
        """Return the files that braces name, sorted by key. A file that is missing keeps its entry."""
        root = split_braces(uri)[0].rstrip("/")
        uris = expand(uri)
        if any(WILDCARD.search(pattern_uri) for pattern_uri in uris):
            matching = (entry for pattern_uri in uris for entry in self._matching_files(pattern_uri))
            by_key = {entry.uri[len(root) + 1 :]: entry for entry in matching}
            return iter([ListedObject(by_key[key].uri, key, *_state(by_key[key])) for key in sorted(by_key)])
        refs = [ImageRef(file_uri[len(root) + 1 :], file_uri) for file_uri in uris]
        entries = list(bounded_map(self._file_entry, refs, lambda ref: 0))
        missing = [entry for entry in entries if not entry.version and entry.size_bytes < 0]
        if len(missing) == len(entries):
            raise SourceError(
                "No file of these names",
                where=uri,
                found=f"{len(entries):,} names, such as {uris[0]}",
                hint="correct the braces in source.uri; for folders add a pattern, as in {train,val}/**/*.jpg",
            )
        return iter(sorted(entries, key=lambda entry: entry.key))

    # ---- images in containers ----

    def _open_containers(self, entries: Iterator[ListedObject], *, any_image: bool = False) -> Iterator[ImageRef]:
        """Yield image files as they are, and the images of containers, in the order of the entries.

        Up to _OPEN_AT_ONCE containers are open at a time. any_image: whether other files have given an image already.
        """
        pending: deque[Future[_Inside]] = deque()
        unread: list[_UnreadFile] = []
        pool: ThreadPoolExecutor | None = None
        empty: list[ListedObject] = []
        left_out = FileCounts()

        def finished(most_running: int) -> Iterator[ImageRef]:
            """Yield the images of containers, until at most `most_running` containers are being read."""
            nonlocal any_image
            while len(pending) > most_running:
                images = pending.popleft().result()
                if isinstance(images, _UnreadFile):
                    unread.append(images)
                    continue
                self._passed_over.add_members(images.left_out)
                for member_kind, count in images.left_out.items():
                    left_out.add(member_kind, count)
                any_image = any_image or bool(images.refs)
                yield from images.refs

        try:
            for entry in entries:
                kind = self._kind(entry)
                if not _is_text(entry.key):
                    yield _unnamed(entry)
                elif kind is None and tar_archive.compressed_ending(entry.uri):
                    yield from finished(0)
                    yield archives.broken(entry, "a compressed tar is not read; decompress the tar")
                elif kind is None:
                    yield from finished(0)
                    any_image = True
                    yield ImageRef(entry.key, entry.uri, entry.version, entry.size_bytes)
                elif kind == "parquet" and name(entry.key) in _PARQUET_SUMMARIES:
                    self._passed_over.add(entry.key, "a Parquet file without rows")
                else:
                    pool = pool or ThreadPoolExecutor(_OPEN_AT_ONCE, thread_name_prefix="index")
                    pending.append(pool.submit(self._try_images_inside, kind, entry))
                    empty = [*empty, entry][:3]
                    yield from finished(_OPEN_AT_ONCE)
            yield from finished(0)
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        if unread and not any_image:
            raise unread[0].error
        yield from self._unread_refs(unread)
        if empty and not any_image:
            raise SourceError(
                "No images in these files",
                where=", ".join(entry.uri for entry in empty),
                found=f"no member with one of the extensions {comma_list(self._extensions)}"
                + (f" that matches {self._spec.members!r}" if self._spec.members else "")
                + (f"; members: {counts_text(left_out.by_kind)}" if left_out.by_kind else ""),
                hint="give files that hold images, or set source.members to a glob that names the members",
            )

    def _kind(self, entry: ListedObject) -> str | None:
        """Return the kind of a container, None for an image."""
        if self._spec.kind != "auto":
            return self._spec.kind if self._spec.kind in _CONTAINERS else None
        return self._kind_of_uri(entry.uri)

    def _kind_of_uri(self, uri: str) -> str | None:
        kind = _CONTAINER_OF.get(extension(uri))
        return None if kind is not None and inside(uri) is not None else kind

    def _unread_refs(self, unread: Iterable[_UnreadFile]) -> Iterator[ImageRef]:
        """Yield a reference with the reason for each refused file. Parquet files without images are passed over."""
        for unread_file in unread:
            file, error = unread_file.file, unread_file.error
            if isinstance(error, AccessError):
                yield archives.broken(file, f"storage refuses this file: {error.short()}")
            else:
                self._passed_over.add(file.key, "a Parquet file without a column of images")

    def _try_images_inside(self, kind: str, file: ListedObject) -> _Inside:
        try:
            return self._images_inside(kind, file)
        except (AccessError, SourceError) as error:
            return _UnreadFile(file, error)

    def _images_inside(self, kind: str, file: ListedObject) -> ImagesInside:
        if self._index is not None and kind == "tar":
            return self._index.images(file, self._spec, self._extensions, lambda: self._read_images(kind, file))
        return self._read_images(kind, file)

    def _read_images(self, kind: str, file: ListedObject) -> ImagesInside:
        try:
            if file.size_bytes < 0:
                self._store.stat(file.uri)  # Raises for a file that is gone or refused.
            return _READERS[kind](self._store, file, self._spec, self._extensions)
        except BrokenFileError as error:
            return ImagesInside([archives.broken(file, str(error))])
        except FileNotFoundError:
            return ImagesInside([archives.broken(file, "the file is gone")])


def _compressed_tar_error(uri: str) -> SourceError:
    return SourceError(
        "A compressed tar cannot be read from its middle",
        where=uri,
        hint="decompress the tar; compressed images hardly shrink further",
    )


def _is_packed(ending: str) -> bool:
    """Return whether a file with this extension must be unpacked before."""
    return ending in _PACKED or bool(tar_archive.compressed_ending(f"x.{ending}"))


def _state(entry: ListedObject) -> tuple[str, int]:
    return entry.version, entry.size_bytes


def _dotted(extensions: Iterable[str]) -> str:
    return comma_list(f".{extension}" for extension in extensions)


def _is_text(key: str) -> bool:
    """Return whether a table can hold the key. A file name of other bytes than UTF-8 has surrogates."""
    try:
        return key.isascii() or bool(key.encode())
    except UnicodeEncodeError:
        return False


def _unnamed(entry: ListedObject) -> ImageRef:
    """Return an unreadable reference for a file whose name is not UTF-8. Its key shows the bytes."""
    key, uri = (
        text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for text in (entry.key, entry.uri)
    )
    reason = f"the file's name is not UTF-8: rename the file {name(entry.key)!a}"
    return archives.broken(ListedObject(uri, key, entry.version, entry.size_bytes), reason)


def _similar_names(uri: str, store: Store) -> str:
    """Return names like that of `uri` in its folder, for error messages; "" for remote URIs.

    Listing a bucket could take hours, so only local folders are searched.
    """
    if scheme(uri):
        return ""
    folder = parent(uri) or "/"
    names = store.names(folder)
    similar = get_close_matches(name(uri), names) or names[:5]
    return f"{folder} holds {', '.join(similar)}" if similar else f"{folder} is empty or missing"


# ---- containers by kind ---------------------------------------------------------------------------

_CONTAINERS = {"tar": tar_archive, "zip": zip_archive, "parquet": parquet_images, "video": video}
_CONTAINER_OF: Mapping[str, str] = {last: kind for kind, module in _CONTAINERS.items() for last in module.EXTENSIONS}
_CONTAINER_ENDINGS = tuple(f".{last}" for last in _CONTAINER_OF)


def _tar(store: Store, file: ListedObject, spec: SourceSpec, extensions: frozenset[str]) -> ImagesInside:
    def read_range(start: int, size: int) -> bytes:
        return store.read_range(file.uri, start, size)

    members = tar_archive.members(read_range, file.size_bytes)
    return archives.images("tar", file, members, spec, extensions)


def _zip(store: Store, file: ListedObject, spec: SourceSpec, extensions: frozenset[str]) -> ImagesInside:
    with store.reader(file.uri) as stream:
        return archives.images("zip", file, zip_archive.members(stream), spec, extensions)


def _parquet(store: Store, file: ListedObject, spec: SourceSpec, extensions: frozenset[str]) -> ImagesInside:
    with store.reader(file.uri) as stream:
        return ImagesInside(parquet_images.refs(file, parquet_images.open_table(stream), spec))


def _video(store: Store, file: ListedObject, spec: SourceSpec, extensions: frozenset[str]) -> ImagesInside:
    with store.reader(file.uri) as stream:
        return ImagesInside(video.refs(file, stream, spec))


_READERS: Mapping[str, Callable[[Store, ListedObject, SourceSpec, frozenset[str]], ImagesInside]] = {
    "tar": _tar,
    "zip": _zip,
    "parquet": _parquet,
    "video": _video,
}
