"""Instances, images and failures: frozen values over numpy and strings.

This module knows shapes, dtypes and units of instances, and how to show instances. Files, models, Ray and Arrow belong
to other modules. Run lengths and drawing are imported on use: most modules need the values alone.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import html
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from segray.arguments import Count, Share, checked, shortened
from segray.errors import ArgumentError, RowError, UserError

if TYPE_CHECKING:
    from supervision import Detections

    from segray.imaging.decode import PillowImage

# Longer side of a picture in Jupyter, in pixels; and rows of the table beside the picture.
_PICTURE_PX, _JPEG_QUALITY, _TABLE_ROWS = 800, 85, 12
# What a picture shows in place of an image that is not at hand.
_GREY = 96
_SHOWN_CLASSES = 6


@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """The n instances that a model found in one image. All columns have the same order.

    `segray.load_model(...)(image)`, `segray.decode` and `LabelSet.image` return Instances. The class takes part of the
    rows by `x[0]`, `x[:3]`, `x[mask]` and `x.filter(...)`, and yields instances of one row each when iterated.

    Attributes:
        class_ids: (n,) int32 category ids (COCO's 1..90 unless the model declares its own).
        scores: (n,) float32, 0..1.
        boxes_xyxy: (n, 4) float32, source pixels, clipped to the image; x1, y1 inclusive, x2, y2 exclusive.
        rles: n COCO compressed counts, column-major over the full image.
        size_hw: Height and width of the image, in pixels.
        unreadable: Number of further output rows with invalid values (NaN, infinity, a class of 16.7).
        labels: Category id -> class name; empty where nobody has given names.
        image: The upright image, (h, w, 3) uint8 RGB, for pictures; None where nobody has kept the image.

    Example:
        >>> things = model("photo.jpg")
        >>> things.class_names[things.scores >= 0.5]
        array(['person', 'dog'], dtype='<U6')
    """

    class_ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32]
    rles: tuple[str, ...]
    size_hw: tuple[int, int]
    unreadable: int = 0
    labels: Mapping[int, str] = field(default_factory=dict)
    image: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        n = len(self.rles)
        for name, dtype, shape in (
            ("class_ids", np.int32, (n,)),
            ("scores", np.float32, (n,)),
            ("boxes_xyxy", np.float32, (n, 4)),
        ):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
                is_array = isinstance(array, np.ndarray)
                raise ArgumentError(
                    f"{name} must be {np.dtype(dtype).name} with shape {shape}", where=f"Instances({name}=...)",
                    found=f"{array.dtype} {array.shape}" if is_array else shortened(array),
                    hint=f"convert the column: numpy.asarray({name}, numpy.{np.dtype(dtype).name})",
                )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rles)

    @classmethod
    def empty(cls, size_hw: tuple[int, int], unreadable: int = 0) -> Instances:
        """Return an instance of this class without rows, with the right dtypes."""
        class_ids, scores, boxes_xyxy = np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 4), np.float32)
        return cls(class_ids, scores, boxes_xyxy, (), size_hw, unreadable)

    # ---- columns that follow from the others ----

    @property
    def class_names(self) -> NDArray[np.str_]:
        """Return the name of each instance's class, (n,) text. A class without a name has its id as text."""
        return np.array([self.labels.get(int(i), str(i)) for i in self.class_ids], np.str_)

    @property
    def boxes_xywh(self) -> NDArray[np.float32]:
        """Return the boxes as COCO writes them: x and y of the corner, width and height, (n, 4) float32, in pixels."""
        return np.hstack([self.boxes_xyxy[:, :2], self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]])

    @property
    def areas(self) -> NDArray[np.int64]:
        """Return the number of pixels of each mask, (n,) int64."""
        from segray import rle

        return rle.area(self.rles)

    def masks(self) -> NDArray[np.bool_]:
        """Return the masks as pixels, (n, height, width) bool.

        The array has n * height * width bytes: 100 masks of an image of 12 megapixels take 1.2 GB. `rles` holds the
        same masks in a few kilobytes.

        Example:
            >>> image[model(image).masks().any(axis=0)] = 0   # blacken all that the model found
        """
        from segray import rle

        pixels = np.empty((len(self), *self.size_hw), np.bool_)
        for row, counts in enumerate(self.rles):
            pixels[row] = rle.decode(counts, self.size_hw)
        return pixels

    # ---- parts ----

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Instances:
        """Return the instances of these rows.

        rows: (n,) bool mask, or (m,) intp indices in the order of the result.
        """
        indices = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return replace(
            self,
            class_ids=self.class_ids[indices],
            scores=self.scores[indices],
            boxes_xyxy=self.boxes_xyxy[indices],
            rles=tuple(self.rles[i] for i in indices),
        )

    def __getitem__(self, rows: SupportsIndex | slice | Sequence[Any] | NDArray[Any]) -> Instances:
        """Return the instances of these rows.

        Args:
            rows: A position, which gives one row; a slice; (n,) bool; or (m,) positions.

        Raises:
            RowError: A position is out of range, the mask has another length, or rows are named by no number. The
                error is an IndexError too.

        Example:
            >>> things[0], things[:3], things[things.scores > 0.5], things[things.class_names == "dog"]
        """
        positions, asked = np.arange(len(self)), rows
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            is_mask, is_row = rows.dtype == np.bool_, np.issubdtype(rows.dtype, np.integer)
            if rows.ndim > 1 or (is_mask and not rows.ndim) or (rows.size and not is_mask and not is_row):
                hint = "give a position, a slice, (n,) bool or (m,) positions, such as x[x.scores >= 0.5]"
                raise RowError("rows are not named in this way", where="rows", found=shortened(asked), hint=hint)
            if not rows.size:
                rows = rows.astype(np.intp)
        try:
            return self.take(np.atleast_1d(positions[rows]))
        except IndexError as error:
            hint = f"there are {len(self)} instances; x[:1] takes the first if there is one"
            raise RowError("there are no such rows", where="rows", found=str(error), hint=hint) from error

    def __iter__(self) -> Iterator[Instances]:
        """Yield the instances one by one, each as Instances of one row."""
        return (self[row] for row in range(len(self)))

    @checked
    def filter(
        self,
        *,
        min_score: Share = 0.0,
        classes: str | int | Sequence[str | int] | None = None,
        min_area: Count = 0,
    ) -> Instances:
        """Return the instances that meet all conditions, in the same order.

        Args:
            min_score: Smallest score, 0..1.
            classes: Names or ids of classes; None for all.
            min_area: Smallest number of pixels of the mask.

        Raises:
            UserError: A class is not among `labels`.

        Example:
            >>> things.filter(min_score=0.5, classes=["person", "dog"])
        """
        kept = self.scores >= min_score
        if classes is not None:
            asked = classes if isinstance(classes, Collection) and not isinstance(classes, str) else [classes]
            kept &= np.isin(self.class_ids, [self._class_id(name) for name in asked])
        if min_area:
            kept &= self.areas >= min_area
        return self.take(kept)

    def _class_id(self, name: str | int) -> int:
        """Return the id of a class, given its name or its id."""
        if not isinstance(name, str):
            return int(name)
        ids = {label: class_id for class_id, label in self.labels.items()}
        if name in ids:
            return ids[name]
        nearest = difflib.get_close_matches(name, ids, 1, 0.0)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "give the class by its id: these instances have no names"
        raise UserError("there is no such class", where="classes", found=repr(str(name)), hint=hint)

    # ---- other forms ----

    @checked
    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Return the instances as COCO writes annotations and results, as JSON values.

        Args:
            image_id: The image's id in the COCO file.

        Returns:
            One record for each instance: image_id, category_id, bbox (x, y, width, height in pixels), area in pixels,
            segmentation (size and compressed counts), iscrowd 0 and score. Annotations of a file also need an `id`.

        Example:
            >>> json.dump(model("photo.jpg").to_coco(image_id=1), file)
        """
        rows = zip(self.class_ids.tolist(), self.boxes_xywh.tolist(), self.areas.tolist(), self.rles, strict=True)
        # The shortest decimal that gives the same float32, as `segray export` writes scores.
        scores = [float(str(score)) for score in self.scores]
        return [
            {
                "image_id": image_id if isinstance(image_id, str) else int(image_id),
                "category_id": class_id,
                "bbox": box,
                "area": area,
                "segmentation": {"size": list(self.size_hw), "counts": counts},
                "iscrowd": 0,
                "score": score,
            }
            for (class_id, box, area, counts), score in zip(rows, scores, strict=True)
        ]

    def to_supervision(self) -> Detections:
        """Return the instances as `supervision.Detections`, with dense masks and `data["class_name"]`.

        Raises:
            UserError: The package supervision is not installed.

        Example:
            >>> supervision.MaskAnnotator().annotate(image, model(image).to_supervision())
        """
        try:
            from supervision import Detections
        except ImportError as error:
            hint = "run `pip install supervision`"
            raise UserError("supervision is not installed", found=str(error), hint=hint) from error
        return Detections(
            xyxy=self.boxes_xyxy,
            mask=self.masks(),
            confidence=self.scores,
            class_id=self.class_ids.astype(np.int64),
            data={"class_name": self.class_names},
        )

    # ---- pictures ----

    def draw(self, image: NDArray[np.uint8] | PillowImage | None = None, *, tags: bool = True) -> NDArray[np.uint8]:
        """Return a picture of the instances: tinted and outlined masks, each with its class and score.

        Args:
            image: The image, (h, w, 3) uint8 RGB or an RGB image of Pillow, which is not changed. By default the image
                that was kept, else grey.
            tags: Whether to write class and score.

        Returns:
            (h, w, 3) uint8 RGB.

        Raises:
            UserError: The image has another size or dtype than the labelled one.

        Example:
            >>> PIL.Image.fromarray(model("photo.jpg").draw()).save("drawn.png")
        """
        return self._drawn(None if image is None else np.asarray(image), None, tags=tags)

    def with_image(self, image: NDArray[np.uint8], labels: Mapping[int, str]) -> Instances:
        """Return the instances with their image, (h, w, 3) uint8 RGB, and with the names of classes by id."""
        return replace(self, image=image, labels=labels)

    def drawn_at(self, most_px: int) -> NDArray[np.uint8]:
        """Return the picture of `draw()` at a size whose longer side has at most `most_px` pixels."""
        from segray.imaging import drawing

        return self._drawn(None, drawing.fitted_wh(self.size_hw, most_px))

    def _drawn(
        self, image: NDArray[np.uint8] | None, size_wh: tuple[int, int] | None, *, tags: bool = True
    ) -> NDArray[np.uint8]:
        from segray.imaging import drawing

        canvas = self.image if image is None else image
        if canvas is None:
            width, height = size_wh or self.size_hw[::-1]
            canvas = np.full((height, width, 3), _GREY, np.uint8)
        elif canvas.shape != (*self.size_hw, 3) or canvas.dtype != np.uint8:
            raise UserError(
                "the image is not the labelled one",
                where="draw(image)",
                found=f"{canvas.dtype} {canvas.shape}",
                hint=f"give uint8 of shape {(*self.size_hw, 3)}, upright, in the order RGB",
            )
        boxes = [(x, y, w, h) for x, y, w, h in self.boxes_xywh.tolist()]
        rows = zip(
            self.class_ids.tolist(), self.class_names.tolist(), self.scores.tolist(), boxes, self.rles, strict=True
        )
        colours = drawing.colours_of_classes([*self.labels, *self.class_ids.tolist()])
        labels = [drawing.Label(*row) for row in rows]
        return drawing.draw(canvas, labels, colours, size_wh=size_wh, size_hw=self.size_hw, tags=tags)

    def __repr__(self) -> str:
        height, width = self.size_hw
        names = Counter(self.class_names.tolist()).most_common()
        parts = [f"{count} {name}" for name, count in names[:_SHOWN_CLASSES]]
        if len(names) > _SHOWN_CLASSES:
            parts.append(f"{len(names) - _SHOWN_CLASSES} more classes")
        best = f"; best {self.scores.max():.2f}" if len(self) else ""
        return f"Instances({len(self)} in {width}x{height}{': ' if parts else ''}{', '.join(parts)}{best})"

    def _repr_png_(self) -> bytes:
        """Return a picture for Jupyter, at most 800 pixels wide or high."""
        from segray.imaging import drawing

        return drawing.png(self.drawn_at(_PICTURE_PX))

    def _repr_html_(self) -> str:
        """Return a picture and a table of the best instances, for Jupyter.

        The picture is a JPEG, since a notebook keeps each picture: a photograph takes a tenth of the bytes of a PNG.
        """
        from segray.imaging import drawing

        best = self[np.argsort(-self.scores, kind="stable")[:_TABLE_ROWS]]
        cells = zip(best.class_names.tolist(), best.scores.tolist(), best.areas.tolist(), strict=True)
        rows = [
            f"<tr><td>{html.escape(name)}</td><td>{score:.2f}</td><td>{area:,}</td></tr>" for name, score, area in cells
        ]
        more = f"<p>and {len(self) - len(best)} more</p>" if len(best) < len(self) else ""
        picture = base64.b64encode(drawing.jpeg(self.drawn_at(_PICTURE_PX), _JPEG_QUALITY)).decode()
        return (
            f"<p>{html.escape(repr(self))}</p>"
            f'<img alt="the instances" src="data:image/jpeg;base64,{picture}">'
            "<table><tr><th>class</th><th>score</th><th>area in pixels</th></tr>" + "".join(rows) + f"</table>{more}"
        )


def image_id(key: str) -> str:
    """Return the id of an image: the first 32 hex digits of the SHA-256 of its key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True)
class ImageRef:
    """A reference to one image.

    key: path below the dataset's root, or the URI; the image's name in every table. uri: address that storage opens.
    version: ETag, or size and modification time for files; "" if the source gives none. size_bytes: -1 if unknown.
    """

    key: str
    uri: str
    version: str = ""
    size_bytes: int = -1

    @property
    def image_id(self) -> str:
        """Return the id of the image; see `image_id`."""
        return image_id(self.key)


@dataclass(frozen=True)
class ImageFailure:
    """The reason why an image has no labels.

    stage: read, decode, infer, postprocess or process. error: kind of error, such as ImageError. message: error text.
    """

    stage: str
    error: str
    message: str
