"""A writer for Label Studio: tasks whose predictions are brush strokes.

Masks are exact, in Label Studio's own run lengths.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from segray.analytics.export.writer import ExportedImage, JsonArray, Settings, printable, row_runs, shortest_score
from segray.instances import image_id

# Numbers of bits for the length of a run.
_BRUSH_SIZES = (3, 4, 8, 16)


class LabelStudio:
    """A writer of Label Studio's tasks: an array with brush strokes as predictions.

    The companion is the labelling configuration of a project that shows the tasks.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._array, self._images_only = JsonArray(settings.out), settings.images_only

    def add(self, image: ExportedImage) -> None:
        height, width = image.size_hw
        results = [
            {
                "id": f"{image_id(image.key)[:8]}-{row['instance']}",
                "type": "brushlabels",
                "from_name": "mask",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": shortest_score(row),
                "value": {
                    "format": "rle",
                    "rle": encode_brush(row_runs(row["rle"], image.size_hw)).tolist(),
                    "brushlabels": [row["class_name"]],
                },
            }
            for row in image.rows
        ]
        score = float(np.mean([shortest_score(row) for row in image.rows])) if image.rows else 0.0
        predictions = [] if self._images_only else [{"model_version": "segray", "score": score, "result": results}]
        self._array.add({"data": {"image": image.uri, "image_key": image.key}, "predictions": predictions})

    def close(self) -> None:
        self._array.close()
        if self._settings.companion is not None:
            names = [name for _, name in sorted(self._settings.classes.items())]
            self._settings.companion.write_text(labelling_configuration(names), encoding="utf-8")


def labelling_configuration(class_names: Iterable[str]) -> str:
    """Return the labelling configuration of a project with these classes, as XML."""
    labels = [f"    <Label value={quoteattr(printable(name))}/>" for name in class_names]
    image, masks = '<Image name="image" value="$image" zoom="true"/>', '<BrushLabels name="mask" toName="image">'
    return "\n".join(["<View>", f"  {image}", f"  {masks}", *labels, "  </BrushLabels>", "</View>", ""])


def encode_brush(runs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Encode a mask's runs, row by row, as Label Studio does: rle-pack of thi.ng, RGBA, 255 where the mask is set.

    runs: (n,) int64, of 0 and 1 in turn. The result is 1-dimensional uint8.
    """
    lengths = 4 * runs
    bits = [f"{int(lengths.sum()):032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _BRUSH_SIZES)]
    for number, length in enumerate(lengths.tolist()):
        value = "11111111" if number % 2 else "00000000"
        while length:
            part = min(length, 1 << _BRUSH_SIZES[-1])
            size_index = next(i for i, size in enumerate(_BRUSH_SIZES) if part <= 1 << size)
            bits.append(f"1{size_index:02b}{part - 1:0{_BRUSH_SIZES[size_index]}b}{value}")
            length -= part
    text = "".join(bits)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0"))
