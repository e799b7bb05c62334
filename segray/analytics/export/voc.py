"""A writer for Pascal VOC: one XML file of boxes for each image."""

from __future__ import annotations

from xml.sax.saxutils import escape

from segray import rle
from segray.analytics.export.writer import (
    ExportedImage,
    Settings,
    printable,
    shortest_score,
    with_image_file,
    write_new_file,
)


class Voc:
    """A writer of Pascal VOC: Annotations/NAME.xml, ImageSets/Main/NAME.txt with the images, and JPEGImages.

    Boxes are those of the masks. Their corners are whole pixels from 1, and the last pixel belongs to the box.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stems: dict[str, list[str]] = {}

    def add(self, image: ExportedImage) -> None:
        image = with_image_file(image, self._settings, "JPEGImages")
        stem = str(image.file_with_extension(""))
        self._stems.setdefault(image.split or "default", []).append(stem)
        height, width = image.size_hw
        objects = []
        for row in image.rows:
            x, y, w, h = rle.bbox(row["rle"], image.size_hw).astype(int).tolist()
            if w:
                objects.append(
                    f"<object><name>{_text(row['class_name'])}</name><pose>Unspecified</pose><truncated>0</truncated>"
                    f"<difficult>0</difficult><score>{shortest_score(row):g}</score><bndbox><xmin>{x + 1}</xmin>"
                    f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>\n"
                )
        text = (
            f"<annotation><folder>JPEGImages</folder><filename>{_text(str(image.file))}</filename>"
            f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size><segmented>0</segmented>\n"
            f"{''.join(objects)}</annotation>\n"
        )
        folder = self._settings.out / "Annotations"
        write_new_file(folder / image.file_with_extension(".xml"), text.encode(), image.key)

    def close(self) -> None:
        folder = self._settings.out / "ImageSets" / "Main"
        folder.mkdir(parents=True)
        for name in self._settings.splits or ["default"]:
            lines = "".join(f"{stem}\n" for stem in self._stems.get(name, []))
            (folder / f"{name}.txt").write_text(lines, encoding="utf-8", errors="surrogateescape")


def _text(text: str) -> str:
    return escape(printable(text), {"\r": "&#13;"})
