"""The digest of the installed segray, by which two nodes know that their code is the same.

A version does not tell: a checkout changes between two versions. Knows the files of the package, and runs none of them.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import segray


@lru_cache(1)
def package_digest() -> str:
    """Return a hash of the package's code and embedded model, as 16 hexadecimal digits."""
    return digest_of(Path(segray.__file__).parent)


def digest_of(folder: Path) -> str:
    """Return the hash of a package in a folder. Compiled files, configurations and templates do not count."""
    digest = hashlib.sha256()
    files = {*folder.rglob("*.py"), *(folder / "synthetic" / "model").glob("*")}
    for name, file in sorted((file.relative_to(folder).as_posix(), file) for file in files if file.is_file()):
        digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]
