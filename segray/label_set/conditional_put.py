"""The probe of a store for conditional writes, on which commits of Delta depend.

Knows S3 alone. The other object stores of deltalake and local disks always refuse to create an object twice.
"""

from __future__ import annotations

import secrets

from segray.storage.store import Store
from segray.storage.uris import is_s3, join

WARNING = (
    "this store has no conditional PUT (If-None-Match): two runs that commit to one label set at once can lose rows; "
    "let one run at a time write to output.root, or use a store with conditional PUT"
)


def has_conditional_put(store: Store, root: str) -> bool:
    """Return whether the store keeps an object that a second writer creates too. Four small requests, none for files.

    A store that answers a conditional PUT with an error fails here, as each commit would.
    """
    if not is_s3(root):
        return True
    uri = join(root, "_segray", f"probe-{secrets.token_hex(8)}")
    try:
        store.create(uri, b"first")
        store.create(uri, b"second")
        return store.read(uri) == b"first"
    finally:
        store.delete(uri)
