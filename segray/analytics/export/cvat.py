"""A writer for CVAT for images: one XML file. Masks are exact, in CVAT's own run lengths."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

import numpy as np

from segray import rle
from segray.analytics.export.writer import ExportedImage, Settings, printable, row_runs, shortest_score

# The attribute `score` of each label. CVAT checks numbers against a step, so that the score is text.
_SCORE = (
    "<attributes><attribute><name>score</name><mutable>False</mutable><input_type>text</input_type>"
    "<default_value></default_value><values></values></attribute></attributes>"
)


class Cvat:
    """A writer of CVAT for images 1.1: one XML file.

    Masks are CVAT's own run lengths, row by row within the box. `auto` is CVAT's source of shapes that a model made.
    """

    def __init__(self, settings: Settings) -> None:
        self._classes = settings.classes
        self._file = settings.out.open("w", encoding="utf-8")
        attributes = "<attributes/>" if settings.images_only else _SCORE
        labels = "".join(f"<label><name>{_escape(name)}</name>{attributes}</label>" for name in self._classes.values())
        self._file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><task><labels>{labels}</labels></task></meta>\n"
        )
        self._count = 0

    def add(self, image: ExportedImage) -> None:
        height, width = image.size_hw
        name = quoteattr(printable(str(image.file)))
        self._file.write(f'<image id="{self._count}" name={name} width="{width}" height="{height}">\n')
        self._count += 1
        for row in image.rows:
            x, y, w, h = rle.bbox(row["rle"], image.size_hw).astype(int).tolist()
            crop = rle.decode(row["rle"], image.size_hw)[y : y + h, x : x + w]
            runs = row_runs(rle.encode(crop), (h, w)) if w else np.array([0])
            self._file.write(
                f'<mask label={quoteattr(printable(row["class_name"]))} source="auto" occluded="0" '
                f'rle="{", ".join(map(str, runs.tolist()))}" left="{x}" top="{y}" width="{w}" height="{h}" z_order="0">'
                f'<attribute name="score">{shortest_score(row):g}</attribute></mask>\n'
            )
        self._file.write("</image>\n")

    def close(self) -> None:
        self._file.write("</annotations>\n")
        self._file.close()


def _escape(text: str) -> str:
    """Return the text for the content of an XML element. Readers take a bare carriage return for a line feed."""
    return escape(printable(text), {"\r": "&#13;"})
