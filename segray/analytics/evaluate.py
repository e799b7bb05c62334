"""COCO average precision of a label set, by pycocotools on the committed tables.

Knows COCO's truth and result formats and the two tables; knows nothing of models or of how labels came to be.
The numbers are pycocotools' own (COCOeval, maxDets 1, 10, 100); nothing is re-implemented here.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import segray
from segray.errors import SourceError, UserError
from segray.instances import Instances

IOU_TYPES = ("segm", "bbox")
Row = dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """COCO's summary for one IoU type, each 0..1.

    ap: mean over IoU .50:.05:.95 and classes; ap50, ap75: at that IoU. ap_small, ap_medium, ap_large: by truth area
    below 32², below 96², above; None where the truth has no such object. ar100: recall at 100 detections per image.
    class_ap, class_ap50: by class name, for the classes that occur in the truth, in order of category id.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar100: float
    class_ap: Mapping[str, float]
    class_ap50: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """How well labels fit a truth.

    scores: by IoU type, "segm" or "bbox". images: evaluated images. labelled: those of them with status ok or empty;
    failed, missing: the rest, which count as images without detections. objects: in the truth, crowds not counted.
    instances: detections that took part.
    """

    scores: Mapping[str, Scores]
    images: int
    labelled: int
    failed: int
    missing: int
    objects: int
    instances: int


def evaluate(
    root: str,
    truth: Path,
    *,
    iou_types: Sequence[str] = IOU_TYPES,
    labelled_only: bool = False,
    allow_unlisted: bool = False,
    **storage_options: Any,
) -> Evaluation:
    """Compare the label set at `root` with a COCO truth file; `file_name` there is `image_key` here.

    Every image of the truth is evaluated, and one that failed or was never labelled counts as an image without
    detections; labelled_only leaves these out instead. Labelled images that the truth does not list are an error,
    as most often the wrong file was given; allow_unlisted ignores them. Raises SourceError if the truth cannot be
    used and UserError if the two do not belong together: no common image, or other sizes.
    """
    content = read_truth(truth)
    images = segray.images(root, **storage_options).to_table(columns=["image_key", "status", "width", "height"])
    labelled = {row["image_key"]: row for row in images.to_pylist()}
    _check_keys(content, labelled, allow_unlisted, root, truth)
    _check_sizes(content, labelled, root, truth)
    if labelled_only:
        content = _only(content, {key for key, row in labelled.items() if row["status"] != "failed"})
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    detections = _detections(segray.scan(root, **storage_options), ids)
    states = [labelled[key]["status"] if key in labelled else "missing" for key in ids]
    return Evaluation(
        scores=evaluate_detections(detections, content, iou_types=iou_types),
        images=len(states),
        labelled=sum(state in ("ok", "empty") for state in states),
        failed=states.count("failed"),
        missing=states.count("missing"),
        objects=count_objects(content),
        instances=len(detections),
    )


def evaluate_detections(
    detections: Sequence[Row], truth: Row, *, iou_types: Sequence[str] = IOU_TYPES
) -> dict[str, Scores]:
    """COCO scores of detections, by IoU type.

    detections: rows as coco_results gives them. truth: COCO JSON content; its category ids are the detections' own,
    and a detection of a category that the truth does not list is not counted. Neither argument is changed.
    """
    if not count_objects(truth):
        raise SourceError("the truth has no objects, so precision is undefined", do="give annotations")
    unknown = set(iou_types) - set(IOU_TYPES)
    if unknown:
        raise UserError("no such IoU type", found=", ".join(sorted(unknown)), do=f"choose from {', '.join(IOU_TYPES)}")
    # COCOeval writes into the annotations, needs iscrowd, and takes an object with id 0 for an unmatched one.
    annotations = [{"iscrowd": 0, **row, "id": number} for number, row in enumerate(truth["annotations"], 1)]
    content = {**truth, "annotations": annotations}
    return {iou_type: _scores(detections, content, iou_type) for iou_type in iou_types}


def coco_results(image_id: int, found: Instances) -> list[Row]:
    """The rows of one image in COCO's result format; image_id is the truth's."""
    corners = found.boxes_xyxy.astype(float)
    boxes_xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    columns = zip(found.class_ids.tolist(), found.scores.tolist(), boxes_xywh.tolist(), found.rles, strict=True)
    return [_result(image_id, category, score, box, counts, found.size_hw) for category, score, box, counts in columns]


def read_truth(path: Path) -> Row:
    """A COCO truth file with at least one image and unique file names; SourceError otherwise."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError("no such truth file", where=str(path)) from error
    except ValueError as error:
        raise SourceError("the truth is not JSON", where=str(path), found=str(error)) from error
    parts = ("images", "annotations", "categories")
    missing = [part for part in parts if not isinstance(content, dict) or part not in content]
    if missing:
        raise SourceError("the truth is not COCO JSON", where=str(path), found=f"no {', '.join(missing)}")
    names = [image["file_name"] for image in content["images"]]
    if not names or len(set(names)) < len(names):
        found = "two images with the same file_name" if names else "no images"
        raise SourceError("the truth's images cannot be told apart by file_name", where=str(path), found=found)
    return dict(content)


def count_objects(truth: Row) -> int:
    """Annotations that are not crowds."""
    return sum(not row.get("iscrowd", 0) for row in truth["annotations"])


def _check_keys(truth: Row, labelled: Mapping[str, Row], allow_unlisted: bool, root: str, path: Path) -> None:
    names = {image["file_name"] for image in truth["images"]}
    example = f"label set: {min(labelled, default='no images')}, truth: {min(names)}"
    if not names & labelled.keys():
        raise UserError(
            "the truth and the label set have no image in common", where=f"{root}, {path}", found=example,
            do="make the truth's file_name equal to image_key, the path below the dataset's root",
        )  # fmt: skip
    unlisted = sorted(labelled.keys() - names)
    if unlisted and not allow_unlisted:
        raise UserError(
            "the label set has images that the truth does not list", where=f"{root}, {path}",
            found=f"{len(unlisted)} of {len(labelled)}, such as {unlisted[0]}",
            do="check that this is the right truth; to leave them out, allow unlisted images",
        )  # fmt: skip


def _check_sizes(truth: Row, labelled: Mapping[str, Row], root: str, path: Path) -> None:
    """pycocotools scores masks of different sizes as not overlapping, in silence; so we look first."""
    for image in truth["images"]:
        row = labelled.get(image["file_name"])
        if row is None or row["status"] == "failed":
            continue
        meant, found = (image["width"], image["height"]), (row["width"], row["height"])
        if meant != found:
            raise UserError(
                "an image has another size in the truth", where=f"{image['file_name']} in {root} and {path}",
                found=f"labelled as {found[0]}x{found[1]}, truth {meant[0]}x{meant[1]}",
                do="label the images that the truth describes; coordinates are those of the upright image",
            )  # fmt: skip


def _only(truth: Row, keys: set[str]) -> Row:
    images = [image for image in truth["images"] if image["file_name"] in keys]
    ids = {image["id"] for image in images}
    return {**truth, "images": images, "annotations": [a for a in truth["annotations"] if a["image_id"] in ids]}


def _detections(instances: ds.Dataset, ids: Mapping[str, int]) -> list[Row]:
    boxes = ["bbox_x", "bbox_y", "bbox_w", "bbox_h"]
    columns = ["image_key", "class_id", "score", *boxes, "height", "width", "rle"]
    wanted = ds.field("image_key").isin(list(ids))
    rows = []
    for batch in instances.to_batches(columns=columns, filter=wanted):
        rows += [
            _result(ids[row["image_key"]], row["class_id"], row["score"], [row[name] for name in boxes], row["rle"],
                    (row["height"], row["width"]))
            for row in batch.to_pylist()
        ]  # fmt: skip
    return rows


def _result(
    image_id: int, category_id: int, score: float, bbox_xywh: list[float], counts: str, size_hw: tuple[int, int]
) -> Row:
    segmentation = {"size": list(size_hw), "counts": counts}
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "bbox": bbox_xywh,
        "segmentation": segmentation,
    }


def _for(iou_type: str, detections: Iterable[Row]) -> list[Row]:
    """Results with one geometry only: given both, pycocotools would size masks by their boxes."""
    other = "bbox" if iou_type == "segm" else "segmentation"
    return [{name: value for name, value in row.items() if name != other} for row in detections]


def _scores(detections: Sequence[Row], truth: Row, iou_type: str) -> Scores:
    with contextlib.redirect_stdout(io.StringIO()):  # COCO and COCOeval print their progress
        coco = _indexed(truth)
        results = coco.loadRes(_for(iou_type, detections)) if detections else _indexed({**truth, "annotations": []})
        judge = COCOeval(coco, results, iou_type)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    summary = judge.stats
    by_class = [_class_means(judge.eval["precision"][..., k, 0, -1]) for k in range(len(judge.params.catIds))]
    names = [coco.cats[category]["name"] for category in judge.params.catIds]
    occurring = [(name, means) for name, means in zip(names, by_class, strict=True) if means is not None]
    return Scores(
        ap=float(summary[0]),
        ap50=float(summary[1]),
        ap75=float(summary[2]),
        ap_small=_or_none(summary[3]),
        ap_medium=_or_none(summary[4]),
        ap_large=_or_none(summary[5]),
        ar100=float(summary[8]),
        class_ap={name: means[0] for name, means in occurring},
        class_ap50={name: means[1] for name, means in occurring},
    )


def _indexed(content: Row) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _class_means(precision: NDArray[np.float64]) -> tuple[float, float] | None:
    """(10 IoUs, 101 recalls) of one class -> AP and AP50; COCOeval writes -1 for a class without truth."""
    return None if precision.max() < 0 else (float(precision.mean()), float(precision[0].mean()))


def _or_none(value: float) -> float | None:
    return None if value < 0 else float(value)
