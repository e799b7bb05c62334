"""A folder of sticker scenes with exact COCO ground truth, drawn from a seed.

Knows file names, encodings, canvas sizes and COCO JSON. Knows nothing of drawing, models or label sets. The scenes have
the default difficulty of draw_scene. They share no random stream with the training data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segray import rle
from segray.errors import InfrastructureError, SourceError
from segray.imaging.opencv import cv2
from segray.synthetic.scene import Image, Scene, draw_scene
from segray.synthetic.shapes import STICKERS

IMAGES, TRUTH = "images", "truth.json"
# Training draws from [seed, 5 or 6, i] with small seeds. This first number keeps the streams apart.
_STREAM = 1_000_003
_SIZES_HW = ((480, 640), (480, 640), (640, 480), (600, 800), (550, 550), (800, 600))
_LARGE_HW = (1536, 2048)
_ENCODINGS: dict[str, list[int]] = {
    ".jpg": [cv2.IMWRITE_JPEG_QUALITY, 92],
    ".png": [cv2.IMWRITE_PNG_COMPRESSION, 4],
    ".webp": [cv2.IMWRITE_WEBP_QUALITY, 92],
}


def write(folder: Path, count: int, seed: int) -> Path:
    """Draw `count` scenes into folder/images, and their ground truth into folder/truth.json.

    Return the path of truth.json.

    The same count and seed give the same bytes. truth.json is written last and atomically: a folder with truth.json has
    all images. A folder that already holds this dataset stays as it is. In truth.json, `file_name` is the key below
    folder/images.

    Args:
        folder: the dataset's folder.
        count: number of scenes, at least 1.
        seed: seed of the scenes, at least 0.

    Raises:
        SourceError: the folder holds other files or another dataset, or count or seed is too small.
    """
    if count < 1 or seed < 0:
        raise SourceError(
            "a scene dataset needs count >= 1 and seed >= 0",
            found=f"count {count}, seed {seed}",
            hint="give a count of at least 1 and a seed of at least 0",
        )
    truth, images = folder / TRUTH, folder / IMAGES
    info = {"description": "sticker scenes drawn by segray", "version": 1, "count": count, "seed": seed}
    if truth.exists():
        _check_same(truth, info)
        return truth
    images.mkdir(parents=True, exist_ok=True)
    _check_no_strays(images, {_file_name(i) for i in range(count)})
    image_entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(count):
        scene = scene_at(seed, i)
        (images / _file_name(i)).write_bytes(_encode(scene.image, Path(_file_name(i)).suffix))
        height, width = scene.owners.shape
        image_entries.append({"id": i + 1, "file_name": _file_name(i), "width": width, "height": height})
        annotations += [{"id": len(annotations) + k, **row} for k, row in enumerate(annotations_of(scene, i + 1), 1)]
    categories = [{"id": sticker.category_id, "name": sticker.name, "supercategory": "sticker"} for sticker in STICKERS]
    content = {"info": info, "images": image_entries, "annotations": annotations, "categories": categories}
    unfinished = truth.with_suffix(".new")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    return unfinished.replace(truth)


def scene_at(seed: int, index: int) -> Scene:
    """Return scene number `index` of the dataset with this seed; every sixteenth has 1536x2048 pixels."""
    rng = np.random.default_rng([_STREAM, seed, index])
    size_hw = _SIZES_HW[int(rng.integers(len(_SIZES_HW)))]
    return draw_scene(rng, _LARGE_HW if index % 16 == 9 else size_hw)


def _file_name(index: int) -> str:
    """Return the file name of a scene.

    Every sixteen scenes have a PNG and a WebP beside JPEGs, so that even a small dataset has all three.
    """
    suffix = {3: ".png", 12: ".webp"}.get(index % 16, ".jpg")
    return f"scene-{index:05d}{suffix}"


def _encode(image: Image, suffix: str) -> bytes:
    is_encoded, data = cv2.imencode(suffix, image[..., ::-1], _ENCODINGS[suffix])
    if not is_encoded:
        raise InfrastructureError("OpenCV could not encode a scene", found=f"{suffix}, {image.shape}")
    return data.tobytes()


def annotations_of(scene: Scene, image_id: int) -> Iterator[dict[str, Any]]:
    """Yield the COCO annotations of a scene, without annotation ids.

    Each annotation has the tight box and the full-image RLE of the visible pixels.
    """
    height, width = scene.owners.shape
    for index, category_id in enumerate(scene.category_ids):
        mask = scene.mask(index)
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        counts = rle.encode_crop(mask[y : y + h, x : x + w], x, y, (height, width))
        yield {
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": {"size": [height, width], "counts": counts},
            "bbox": [float(x), float(y), float(w), float(h)],
            "area": int(mask.sum()),
            "iscrowd": 0,
        }


def _check_same(truth: Path, info: dict[str, Any]) -> None:
    existing_info = json.loads(truth.read_text(encoding="utf-8")).get("info")
    if existing_info != info:
        raise SourceError(
            "the folder already holds another dataset", where=str(truth), found=f"{existing_info}, expected {info}",
            hint="give an empty folder, or the same count and seed",
        )  # fmt: skip


def _check_no_strays(images: Path, expected: set[str]) -> None:
    strays = sorted(path.name for path in images.iterdir() if path.name not in expected)
    if strays:
        raise SourceError(
            "the images folder holds files that do not belong to these scenes", where=str(images),
            found=f"{len(strays)} files, such as {strays[0]}", hint="give an empty folder",
        )  # fmt: skip
