"""Splits of an export, such as train, val and test: the split of an image by a hash of its key or of its folder.

This module knows names and shares. The same key is in the same split in each export, whatever other images there are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from segray.errors import UserError

GROUPS = ("key", "folder")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_HINT = "for example --split train=0.8,val=0.1,test=0.1"


@dataclass(frozen=True)
class Splits:
    """The splits of an export.

    shares: name and share of each split, in order; the shares add up to 1. by: "key", or "folder" to keep the images of
    a folder together.
    """

    shares: Sequence[tuple[str, float]]
    by: str = "key"

    @property
    def names(self) -> list[str]:
        """Return the names of the splits, in order."""
        return [name for name, _ in self.shares]

    def of(self, key: str) -> str:
        """Return the split of an image."""
        group = (key.rpartition("/")[0] or ".") if self.by == "folder" else key
        # Another hash than that of --sample, which takes the images with the smallest hashes.
        digest = hashlib.blake2b(f"split {group}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        place, end = int.from_bytes(digest, "big") / 2**64, 0.0
        for name, share in self.shares:
            end += share
            if place < end:
                return name
        return self.names[-1]


def parse(text: str, by: str = "key") -> Splits:
    """Return the splits of a text such as "train=0.8,val=0.1,test=0.1". Raise UserError for any other text."""
    if by not in GROUPS:
        raise UserError("no such way to split", where="--split-by", found=by, hint=f"choose from {', '.join(GROUPS)}")
    shares: list[tuple[str, float]] = []
    for part in text.split(","):
        name, _, share = (piece.strip() for piece in part.partition("="))
        if not _NAME.fullmatch(name) or not share.replace(".", "", 1).isdecimal() or name in dict(shares):
            raise UserError("a split is no NAME=SHARE, or is named twice", where="--split", found=part, hint=_HINT)
        shares.append((name, float(share)))
    total = sum(share for _, share in shares)
    if abs(total - 1) > 1e-6:
        hint = f"give shares that add up to 1, {_HINT}"
        raise UserError("the shares of the splits do not add up to 1", where="--split", found=f"{total:g}", hint=hint)
    return Splits(tuple(shares), by)
