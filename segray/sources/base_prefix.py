"""Keys of a source that is one part of a larger dataset. Keys start at the dataset's folder, not at the part's folder.

Images of the same name from two days therefore have different keys. A run looks for deleted images only among the keys
of its part. Knows paths and keys. Lists nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from segray import config
from segray.errors import ConfigError
from segray.sources.source_form import SourceForm, form_of
from segray.sources.uris import inside, split_braces, split_glob
from segray.storage.store import Store
from segray.storage.uris import parent


@dataclass(frozen=True)
class BasePrefix:
    """The position of a source within its dataset.

    root: the folder that the source's keys are relative to. prefix: text to put before each key, "" for a source that
    is the whole dataset.
    """

    root: str
    prefix: str

    def rebased(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield batches of listing.REF_SCHEMA with the prefix before each key that is a path below the root.

        Keys that a manifest gives stay as they are.
        """
        for batch in batches:
            if not self.prefix:
                yield batch
                continue
            rows = zip(*(batch.column(name).to_pylist() for name in ("key", "uri")), strict=True)
            keys = [self.prefix + key if self._is_path(key, uri) else key for key, uri in rows]
            yield batch.set_column(0, batch.schema.field(0), pa.array(keys, pa.string()))

    def _is_path(self, key: str, uri: str) -> bool:
        """Return whether the key is the path of the image's file below the root."""
        location = inside(uri)
        file = uri if location is None else location.file
        return file.startswith(f"{self.root}/") and key.startswith(file[len(self.root) + 1 :])


def resolve_base(source: config.SourceSettings, store: Store) -> BasePrefix:
    """Return the base prefix of the configured source.

    Raises:
        ConfigError: source.uri is not below source.base.
    """
    uri = source.uri
    if source.base is None:
        return BasePrefix("", "")
    form = form_of(uri, store)
    match form:
        case SourceForm.FILE:
            root = parent(uri)
        case SourceForm.GLOB:
            root = split_glob(uri)[0]
        case SourceForm.BRACES:
            root = split_braces(uri)[0]
        case SourceForm.FOLDER:
            root = uri
    root, base = root.rstrip("/"), source.base.rstrip("/")
    if root != base and not root.startswith(f"{base}/"):
        raise ConfigError(
            "source.uri does not lie in source.base",
            where=uri,
            found=base,
            hint="set source.base to a folder above source.uri",
        )
    return BasePrefix(root, f"{root[len(base) + 1 :]}/" if root != base else "")
