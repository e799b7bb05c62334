"""Label sets in the formats of other tools: each a writer that takes one image after the other.

Knows files of tools and what they mean by a mask; knows nothing of tables, filters or where files go in the end. Masks
stay exact wherever a format has run lengths or pixels of its own; where it has polygons alone these follow the pixels'
edges, or leave them by the tolerance that was asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.analytics.export import polygons
from segray.errors import UserError
from segray.imaging.opencv import cv2
from segray.instances import image_id
from segray.label_set.schema import BBOX
from segray.sources.listing import IMAGE_EXTENSIONS

Row = dict[str, Any]
_LOSS_SAMPLED = 1000  # instances whose polygons are drawn again


@dataclass(frozen=True)
class Picture:
    """One image and its instances, as the tables have them. id: its number in the export, or in a given truth. ending:
    of its file, where its key has none."""

    id: int
    key: str
    uri: str
    size_hw: tuple[int, int]
    rows: Sequence[Row]
    ending: str = ""

    @property
    def file(self) -> PurePosixPath:
        """Where the image lies below a folder: its key, or a name of its own if that leaves the folder."""
        path = PurePosixPath(self.key)
        if "://" in self.key or path.is_absolute() or ".." in path.parts or not path.name:
            path = PurePosixPath(f"{image_id(self.key)}{path.suffix if _is_image(path) else ''}")
        return PurePosixPath(f"{path}{self.ending}")

    def beside(self, ending: str) -> PurePosixPath:
        """The file's name with another ending: a video's frames differ in what looks like one."""
        return self.file.with_suffix(ending) if _is_image(self.file) else PurePosixPath(f"{self.file}{ending}")


def _is_image(path: PurePosixPath) -> bool:
    return path.suffix[1:].lower() in IMAGE_EXTENSIONS


@dataclass
class Loss:
    """What polygons lose, as the IoU of what pycocotools draws of them with the masks. measured: instances of that,
    the first so many."""

    measured: int = 0
    total: float = 0.0
    least: float = 1.0

    def add(self, drawn: Sequence[polygons.Ring], row: Row, size_hw: tuple[int, int]) -> None:
        if self.measured < _LOSS_SAMPLED and drawn:
            iou = polygons.overlap(drawn, row["rle"], size_hw)
            self.measured, self.total, self.least = self.measured + 1, self.total + iou, min(self.least, iou)

    @property
    def mean_iou(self) -> float | None:
        return self.total / self.measured if self.measured else None


@dataclass(frozen=True)
class Settings:
    """What a writer needs to know. out: the file or folder to write. classes: name by category id. tolerance_px: by how
    much polygons may leave the mask. polygons: in COCO files, polygons in place of run lengths. read: the bytes of an
    image; None where images are not copied. bare: not a word of what the labels are, not even that there are none."""

    out: Path
    classes: Mapping[int, str]
    tolerance_px: float = 0.0
    polygons: bool = False
    read: Callable[[str], bytes] | None = None
    loss: Loss = field(default_factory=Loss)
    bare: bool = False


class Writer(Protocol):
    """Writes images in the order of their keys; nothing is complete before close."""

    def add(self, picture: Picture) -> None: ...
    def close(self) -> None: ...


class _Array:
    """A JSON array that is written element by element."""

    def __init__(self, path: Path) -> None:
        self._file, self._first = path.open("w", encoding="utf-8"), True
        self._file.write("[")

    def add(self, element: Any) -> None:
        self._file.write(("" if self._first else ",\n") + json.dumps(element, separators=(",", ":")))
        self._first = False

    def close(self) -> None:
        self._file.write("]\n")
        self._file.close()


# ---- COCO -----------------------------------------------------------------------------------------


class CocoResults:
    """COCO's result format: an array of detections, for COCO.loadRes and for upload."""

    def __init__(self, settings: Settings) -> None:
        self._array = _Array(settings.out)

    def add(self, picture: Picture) -> None:
        for row in picture.rows:
            self._array.add(
                {
                    "image_id": picture.id,
                    "category_id": row["class_id"],
                    "bbox": _box(row),
                    "score": _score(row),
                    "segmentation": {"size": list(picture.size_hw), "counts": row["rle"]},
                }
            )

    def close(self) -> None:
        self._array.close()


class Coco:
    """A COCO dataset: images, annotations with their scores, categories. Masks as run lengths, or as polygons."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._count = settings, 0
        self._parts = {
            name: settings.out.with_name(f"{settings.out.name}.{name}") for name in ("images", "annotations")
        }
        self._arrays = {name: _Array(path) for name, path in self._parts.items()}

    def add(self, picture: Picture) -> None:
        height, width = picture.size_hw
        self._arrays["images"].add(
            {
                "id": picture.id,
                "file_name": str(picture.file),
                "width": width,
                "height": height,
                "coco_url": picture.uri,
            }
        )
        for row in picture.rows:
            self._count += 1
            self._arrays["annotations"].add(
                {
                    "id": self._count,
                    "image_id": picture.id,
                    "category_id": row["class_id"],
                    "bbox": _box(row),
                    "area": row["area"],
                    "iscrowd": 0,
                    "score": _score(row),
                    "segmentation": self._segmentation(row, picture.size_hw),
                }
            )

    def close(self) -> None:
        categories = [{"id": number, "name": name} for number, name in sorted(self._settings.classes.items())]
        with self._settings.out.open("w", encoding="utf-8") as file:
            file.write('{"info": {"description": "exported by segray"}, "licenses": [], "categories": ')
            file.write(json.dumps(categories))
            for name, path in self._parts.items():
                self._arrays[name].close()
                file.write(f', "{name}": ')
                with path.open(encoding="utf-8") as part:
                    while text := part.read(1 << 20):
                        file.write(text)
                path.unlink()
            file.write("}\n")

    def _segmentation(self, row: Row, size_hw: tuple[int, int]) -> Any:
        if not self._settings.polygons:
            return {"size": list(size_hw), "counts": row["rle"]}
        drawn = polygons.parts(row["rle"], size_hw, self._settings.tolerance_px)
        self._settings.loss.add(drawn, row, size_hw)
        return [part.ravel().tolist() for part in drawn]


class FiftyOne:
    """FiftyOne's COCODetectionDataset: labels.json with run lengths, and data.json that says where the images are.

    Boxes are those of the masks, not the model's: FiftyOne cuts a mask off at its box.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._coco = Coco(Settings(settings.out / "labels.json", settings.classes))
        self._data = (settings.out / "data.json").open("w", encoding="utf-8") if settings.read is None else None
        self._first = True

    def add(self, picture: Picture) -> None:
        picture = _copied(picture, self._settings, "data")
        self._coco.add(replace(picture, rows=[_boxed_by_mask(row, picture.size_hw) for row in picture.rows]))
        if self._data is not None:
            self._data.write("{" if self._first else ",")
            self._data.write(f"\n{json.dumps(str(picture.file))}: {json.dumps(picture.uri)}")
            self._first = False

    def close(self) -> None:
        self._coco.close()
        if self._data is not None:
            self._data.write("{}" if self._first else "\n}\n")
            self._data.close()


def _boxed_by_mask(row: Row, size_hw: tuple[int, int]) -> Row:
    """The row with the box of its mask. FiftyOne divides it by the image's size and later multiplies and cuts off what
    is behind the point, so that 455 becomes 454.99... and 454; a thousandth of a pixel keeps it from that."""
    x, y, w, h = rle.bbox(row["rle"], size_hw).tolist()
    return {**row, **dict(zip(BBOX, (x + 2**-10, y + 2**-10, w, h), strict=True))}


# ---- polygons -------------------------------------------------------------------------------------


class Yolo:
    """YOLO's segmentation format: labels/NAME.txt, a line "class x y x y ..." for each instance, and data.yaml.

    Classes are numbered from 0 in the order of category ids. A line is one polygon, so parts and holes of a mask are
    joined by bridges of no width.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._numbers = {category: i for i, category in enumerate(sorted(settings.classes))}

    def add(self, picture: Picture) -> None:
        picture = _copied(picture, self._settings, "images")
        height, width = picture.size_hw
        lines = []
        for row in picture.rows:
            ring = polygons.single(row["rle"], picture.size_hw, self._settings.tolerance_px)
            if len(ring):
                self._settings.loss.add([ring], row, picture.size_hw)
                places = " ".join(f"{value:.6g}" for value in (ring / [width, height]).ravel())
                lines.append(f"{self._numbers[row['class_id']]} {places}\n")
        _write(self._settings.out / "labels" / picture.beside(".txt"), "".join(lines).encode())

    def close(self) -> None:
        names = [self._settings.classes[category] for category in self._numbers]
        lines = ["train: images", "val: images", "names:"]  # Without a path they are beside this file.
        lines += [f"  {i}: {json.dumps(name)}" for i, name in enumerate(names)]
        (self._settings.out / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Labelme:
    """Labelme: one JSON for each image, beside which it expects the image. Parts of one mask share a group_id."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def add(self, picture: Picture) -> None:
        picture = _copied(picture, self._settings)
        shapes = []
        for number, row in enumerate(picture.rows):
            drawn = polygons.parts(row["rle"], picture.size_hw, self._settings.tolerance_px)
            self._settings.loss.add(drawn, row, picture.size_hw)
            shapes += [
                {
                    "label": row["class_name"],
                    "points": ring.tolist(),
                    "group_id": number,
                    "description": f"score {_score(row):.4f}",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
                for ring in drawn
            ]
        height, width = picture.size_hw
        content: Row = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": picture.file.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        _write(self._settings.out / picture.beside(".json"), json.dumps(content, indent=1).encode())

    def close(self) -> None:
        return None


# ---- run lengths of their own ---------------------------------------------------------------------


class LabelStudio:
    """Label Studio: an array of tasks whose predictions are brush strokes, in its own run lengths.

    The labelling configuration needs <Image name="image" value="$image"/> and <BrushLabels name="mask" toName="image">.
    """

    def __init__(self, settings: Settings) -> None:
        self._array, self._bare = _Array(settings.out), settings.bare

    def add(self, picture: Picture) -> None:
        height, width = picture.size_hw
        results = [
            {
                "id": f"{image_id(picture.key)[:8]}-{row['instance']}",
                "type": "brushlabels",
                "from_name": "mask",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": _score(row),
                "value": {
                    "format": "rle",
                    "rle": brush(row_runs(row["rle"], picture.size_hw)).tolist(),
                    "brushlabels": [row["class_name"]],
                },
            }
            for row in picture.rows
        ]
        score = float(np.mean([_score(row) for row in picture.rows])) if picture.rows else 0.0
        predictions = [] if self._bare else [{"model_version": "segray", "score": score, "result": results}]
        self._array.add({"data": {"image": picture.uri, "image_key": picture.key}, "predictions": predictions})

    def close(self) -> None:
        self._array.close()


def row_runs(counts: str, size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """The lengths of a mask's runs row by row, of 0 and 1 in turn, starting with a possibly empty run of 0."""
    flat = rle.decode(counts, size_hw).ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(edges, prepend=0, append=len(flat))
    return np.insert(runs, 0, 0) if flat.size and flat[0] else runs


def brush(runs: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Label Studio's bytes (rle-pack of thi.ng) of a mask's runs row by row, 255 where it is set, all four of RGBA."""
    lengths = 4 * runs
    bits = [f"{int(lengths.sum()):032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _BRUSH_SIZES)]
    for number, length in enumerate(lengths.tolist()):
        value = "11111111" if number % 2 else "00000000"
        while length:
            part = min(length, 1 << _BRUSH_SIZES[-1])
            which = next(i for i, size in enumerate(_BRUSH_SIZES) if part <= 1 << size)
            bits.append(f"1{which:02b}{part - 1:0{_BRUSH_SIZES[which]}b}{value}")
            length -= part
    text = "".join(bits)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) - ord("0"))


_BRUSH_SIZES = (3, 4, 8, 16)


class Cvat:
    """CVAT for images 1.1: an XML file with masks as CVAT's own run lengths, row by row within the box."""

    def __init__(self, settings: Settings) -> None:
        self._classes = settings.classes
        self._file = settings.out.open("w", encoding="utf-8")
        labels = "".join(f"<label><name>{_text(name)}</name><attributes/></label>" for name in self._classes.values())
        self._file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><task><labels>{labels}</labels></task></meta>\n"
        )
        self._count = 0

    def add(self, picture: Picture) -> None:
        height, width = picture.size_hw
        name = quoteattr(_printable(str(picture.file)))
        self._file.write(f'<image id="{self._count}" name={name} width="{width}" height="{height}">\n')
        self._count += 1
        for row in picture.rows:
            x, y, w, h = rle.bbox(row["rle"], picture.size_hw).astype(int).tolist()
            crop = rle.decode(row["rle"], picture.size_hw)[y : y + h, x : x + w]
            runs = row_runs(rle.encode(crop), (h, w)) if w else np.array([0])
            self._file.write(
                f'<mask label={quoteattr(row["class_name"])} source="segray" occluded="0" '
                f'rle="{", ".join(map(str, runs.tolist()))}" left="{x}" top="{y}" width="{w}" height="{h}" z_order="0">'
                "</mask>\n"
            )
        self._file.write("</image>\n")

    def close(self) -> None:
        self._file.write("</annotations>\n")
        self._file.close()


# ---- pixels ---------------------------------------------------------------------------------------


class Imagefolder:
    """Hugging Face datasets' imagefolder: the images and metadata.jsonl with the objects in each."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._numbers = {category: i for i, category in enumerate(sorted(settings.classes))}
        self._file = (settings.out / "metadata.jsonl").open("w", encoding="utf-8")

    def add(self, picture: Picture) -> None:
        picture = _copied(picture, self._settings)
        rows = picture.rows
        objects = {
            "id": [row["instance"] for row in rows],
            "category": [self._numbers[row["class_id"]] for row in rows],
            "category_name": [row["class_name"] for row in rows],
            "score": [_score(row) for row in rows],
            "bbox": [_box(row) for row in rows],
            "area": [row["area"] for row in rows],
            "rle": [row["rle"] for row in rows],
        }
        height, width = picture.size_hw
        record = {"file_name": str(picture.file), "image_key": picture.key, "height": height, "width": width}
        self._file.write(json.dumps({**record, "objects": objects}) + "\n")

    def close(self) -> None:
        self._file.close()


class Png:
    """One PNG for each image, and classes.json. Where instances overlap, the surer one is on top.

    instance: 16 bits, 0 or an instance's number plus one; instances.json says what each is. semantic: 8 bits, or 16
    where category ids need them, 0 or the category id.
    """

    def __init__(self, settings: Settings, *, semantic: bool) -> None:
        self._settings, self._semantic = settings, semantic
        most = max(settings.classes, default=0)
        self._kind = np.uint8 if semantic and most < 256 else np.uint16
        self._listed = None if semantic else _Array(settings.out / "instances.json")

    def add(self, picture: Picture) -> None:
        pixels = np.zeros(picture.size_hw, self._kind)
        for row in sorted(picture.rows, key=lambda row: (row["score"], -row["instance"])):
            mask = rle.decode(row["rle"], picture.size_hw)
            pixels[mask] = row["class_id"] if self._semantic else row["instance"] + 1
        path = picture.beside(".png")
        _write(self._settings.out / "masks" / path, cv2.imencode(".png", pixels)[1].tobytes())
        if self._listed is not None:
            names = ("instance", "class_id", "class_name", "area")
            found = [{name: row[name] for name in names} | {"score": _score(row)} for row in picture.rows]
            self._listed.add({"file": str(path), "image_key": picture.key, "instances": found})

    def close(self) -> None:
        if self._listed is not None:
            self._listed.close()
        names = {str(number): name for number, name in sorted(self._settings.classes.items())}
        (self._settings.out / "classes.json").write_text(json.dumps(names, indent=1), encoding="utf-8")


# ---- all of them ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """How a format is called and written. folder: else one file. masks: run lengths, polygons or pixels. copies: the
    images belong to it. looks_in: where below the folder its readers look for images; None: they do not."""

    says: str
    open: Callable[[Settings], Writer]
    folder: bool = False
    masks: str = "run lengths"
    copies: bool = False
    looks_in: str | None = None


FORMATS: Mapping[str, Format] = {
    "coco": Format("COCO dataset JSON, also for CVAT", Coco),
    "coco-results": Format("COCO results JSON", CocoResults),
    "yolo": Format("YOLO segmentation txt", Yolo, folder=True, masks="polygons", looks_in="images"),
    "label-studio": Format("Label Studio tasks with predictions", LabelStudio),
    "cvat": Format("CVAT for images 1.1", Cvat),
    "fiftyone": Format("FiftyOne, as COCODetectionDataset", FiftyOne, folder=True),
    "labelme": Format("Labelme JSON", Labelme, folder=True, masks="polygons", looks_in=""),
    "imagefolder": Format("Hugging Face imagefolder", Imagefolder, folder=True, copies=True),
    "png-instance": Format("PNG of instance numbers", lambda s: Png(s, semantic=False), folder=True, masks="pixels"),
    "png-semantic": Format("PNG of category ids", lambda s: Png(s, semantic=True), folder=True, masks="pixels"),
}


_ENDINGS = {
    b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"GIF8": ".gif", b"RIFF": ".webp", b"II*\0": ".tif",
    b"MM\0*": ".tif",
}  # fmt: skip


def _copied(picture: Picture, settings: Settings, folder: str = "") -> Picture:
    """The picture with its image written below a folder of the export, if images are copied."""
    if settings.read is None:
        return picture
    data = settings.read(picture.uri)
    if not _is_image(picture.file):
        picture = replace(picture, ending=next((end for magic, end in _ENDINGS.items() if data.startswith(magic)), ""))
    _write(settings.out / folder / picture.file, data)
    return picture


def _write(path: Path, data: bytes) -> None:
    """Below the export's folder; two keys that would become one file are an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise UserError(
            "two images would be written to one file", where=str(path),
            do="choose images whose names differ in more than their ending, or another format",
        ) from error  # fmt: skip


def _box(row: Row) -> list[float]:
    return [float(row[name]) for name in BBOX]


def _score(row: Row) -> float:
    """As short as it can be and still the same float32."""
    return float(str(np.float32(row["score"])))


def _printable(text: str) -> str:
    """Without what XML cannot hold."""
    return re.sub(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _text(text: str) -> str:
    return _printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
