"""What a person says of instances and images, in a file of their own: one JSON record a line.

Knows the file. The label set is never written. The last record of an instance or image holds.

    {"image_key": "day/a.jpg", "instance": 3, "verdict": "class", "class_name": "truck", "at": "2026-11-30T12:00:00Z"}
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segray.errors import UserError

DEFAULT_FILE = "judgements.jsonl"
# Of an instance; and of a whole image, whose `instance` is None.
VERDICTS = ("right", "wrong", "class", "unsure")
IMAGE_VERDICTS = ("missing", "complete")
CLEARED = "cleared"


@dataclass(frozen=True)
class Judgement:
    """What a person says of an instance, or of an image as a whole.

    instance: number of the instance within its image; None for the image. verdict: of VERDICTS or IMAGE_VERDICTS, or
    CLEARED, which takes back what was said before. class_name: the right class, for the verdict `class`.
    at: time in UTC, ISO 8601.
    """

    image_key: str
    instance: int | None
    verdict: str
    class_name: str | None = None
    at: str = ""


def from_record(record: Mapping[str, Any], class_names: frozenset[str]) -> Judgement:
    """Return the judgement of a record with the fields of Judgement. Raise UserError for a wrong one."""
    key, instance, verdict = record.get("image_key"), record.get("instance"), record.get("verdict")
    class_name = record.get("class_name")
    known = (*(IMAGE_VERDICTS if instance is None else VERDICTS), CLEARED)
    if not isinstance(key, str) or not (instance is None or isinstance(instance, int)) or verdict not in known:
        raise UserError("the judgement cannot be read", found=repr(dict(record))[:200], hint=f"use {', '.join(known)}")
    if (verdict == "class") != (class_name is not None):
        raise UserError("the verdict `class` names a class, and no other does", found=repr(dict(record))[:200])
    if class_name is not None and class_name not in class_names:
        raise UserError("the label set has no such class", where="class_name", found=repr(class_name)[:80])
    at = record.get("at") or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Judgement(key, instance, str(verdict), class_name, str(at))


class JudgementFile:
    """The judgements in a file. A missing file is made with the first judgement. Methods may be called from threads.

    Raises UserError for a file with other lines.
    """

    def __init__(self, path: Path, class_names: frozenset[str]) -> None:
        self.path, self._class_names = path, class_names
        self._lock = threading.Lock()
        self._by_image: dict[str, dict[int | None, Judgement]] = {}
        if path.exists():
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                self._keep(self._read(line, number))

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._by_image.values()))

    def of_image(self, key: str) -> list[Judgement]:
        """Return the judgements of an image and its instances."""
        with self._lock:
            return list(self._by_image.get(key, {}).values())

    def images(self) -> dict[str, int]:
        """Return the number of judgements by key, for all judged images."""
        with self._lock:
            return {key: len(own) for key, own in self._by_image.items() if own}

    def add(self, record: Mapping[str, Any]) -> Judgement:
        """Add a judgement and save it at once.

        Raises:
            UserError: The record is no judgement, or the file cannot be written.
        """
        judgement = from_record(record, self._class_names)
        line = json.dumps({name: value for name, value in asdict(judgement).items() if value is not None})
        with self._lock:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                hint = "give another file with --judgements FILE"
                raise UserError(
                    "judgements cannot be saved", where=str(self.path), found=str(error), hint=hint
                ) from error
            self._keep(judgement)
        return judgement

    def _keep(self, judgement: Judgement) -> None:
        own = self._by_image.setdefault(judgement.image_key, {})
        own.pop(judgement.instance, None)
        if judgement.verdict != CLEARED:
            own[judgement.instance] = judgement

    def _read(self, line: str, number: int) -> Judgement:
        try:
            return from_record(json.loads(line), self._class_names)
        except (ValueError, AttributeError, UserError) as error:
            raise UserError(
                "the file of judgements has a line that is none",
                where=f"{self.path}, line {number}",
                found=line[:80],
                hint="give another file with --judgements FILE, or take the line out",
            ) from error
