"""Accuracy of a sticker model on scenes with known truth.

Knows a model file, a scene folder and the decoding between them. Knows nothing of label sets, Ray or training.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from segray.analytics.evaluation.evaluate import (
    Evaluation,
    Row,
    coco_results,
    count_objects,
    evaluate_detections,
    read_truth,
)
from segray.imaging import decode
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters.adapter import Options
from segray.synthetic.dataset import IMAGES, TRUTH


def evaluate_model(xml: Path, scenes_folder: Path, precision: str, *, threads: int | None = None) -> Evaluation:
    """Score the sticker model at `xml` on a folder that dataset.write made, with the adapter's default options.

    precision: f32, bf16, f16 or auto. threads: CPU threads of the engine; None for all CPUs that the process may use.
    """
    model = resolve.resolve("stickers", str(xml))
    engine = runtime.compile(model.path, model.form, runtime.DeviceSettings("CPU", threads, precision))
    truth = read_truth(scenes_folder / TRUTH)

    def detect(row: Row) -> list[Row]:
        image_rgb = decode.decode((scenes_folder / IMAGES / row["file_name"]).read_bytes()).image
        with engine.infer(model.adapter.prepare(model.form, image_rgb)) as outputs:
            instances = model.adapter.decode(outputs, (row["height"], row["width"]), Options())
        return coco_results(row["id"], instances)

    with ThreadPoolExecutor(engine.requests) as pool:
        detections = [row for rows in pool.map(detect, truth["images"]) for row in rows]
    images = len(truth["images"])
    return Evaluation(
        scores=evaluate_detections(detections, truth),
        images=images,
        labelled=images,
        failed=0,
        missing=0,
        objects=count_objects(truth),
        instances=len(detections),
    )
