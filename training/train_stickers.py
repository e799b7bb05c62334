"""Train the embedded sticker model from scratch, export it, and measure it on unseen scenes.

python -m training.train_stickers WORK_FOLDER [--out FOLDER] [--threads 2] [--evaluate 300]

Needs the `train` extra, about 9 GB in WORK_FOLDER and about 1.5 hours on two cores with bf16. The same
command continues a stopped run.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import openvino as ov
import torch

import segray
from segray.analytics.evaluation.evaluate import Evaluation
from segray.models.coco_labels import COCO_IDS_80
from segray.synthetic import dataset
from segray.synthetic.shapes import STICKERS
from training import network, train
from training.accuracy import evaluate_model

# Seed of the scenes with which the published accuracy was measured.
UNSEEN_SEED = 99
PRECISIONS = ("f32", "bf16")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    xml = options.out / "stickers.xml"
    if not (options.export_checkpoint or options.evaluate_only):
        train.train(train.Schedule(), options.work, _log, options.threads)
    if not options.evaluate_only:
        card = export(options.work / "checkpoint.pt", xml)
    if options.evaluate:
        scenes = options.work / f"unseen-{options.evaluate}"
        dataset.write(scenes, options.evaluate, UNSEEN_SEED)
        evaluations = {
            precision: evaluate_model(xml, scenes, precision, threads=options.threads) for precision in PRECISIONS
        }
        for precision, evaluation in evaluations.items():
            _log(f"{precision} {json.dumps(asdict(evaluation))}")
        accuracy = {precision: _summary(evaluation) for precision, evaluation in evaluations.items()}
        print(json.dumps(accuracy, indent=1))
        if not options.evaluate_only:
            measurement = {"scenes": options.evaluate, "seed": UNSEEN_SEED, **accuracy}
            _write_card(xml, {**card, "accuracy": measurement})


def export(checkpoint: Path, xml: Path) -> dict[str, Any]:
    """Write the checkpoint's averaged weights as an IR with its card; the run may be unfinished."""
    state = torch.load(checkpoint, weights_only=True)
    net = network.StickerNet()
    net.load_state_dict(state["average"])
    xml.parent.mkdir(parents=True, exist_ok=True)
    network.export(net, [COCO_IDS_80.index(sticker.category_id) + 1 for sticker in STICKERS], xml)
    card = {
        "contract": "yolact-resnet50-fpn-pytorch",
        "form": "converted",
        "labels": "coco-80",
        "trained_by": "training/train_stickers.py",
        "schedule": state["schedule"],
        "steps": state["step"],
        "versions": {"segray": segray.__version__, "torch": torch.__version__, "openvino": ov.__version__},
    }
    _write_card(xml, card)
    _log(f"exported step {state['step']} to {xml}")
    return card


def _write_card(xml: Path, card: dict[str, Any]) -> None:
    xml.with_name("segray.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _summary(evaluation: Evaluation) -> dict[str, float]:
    """Return mask AP, mask AP50 and box AP, rounded to three decimals."""
    masks, boxes = evaluation.scores["segm"], evaluation.scores["bbox"]
    return {"ap": round(masks.ap, 3), "ap50": round(masks.ap50, 3), "box_ap": round(boxes.ap, 3)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for drawn data, checkpoint and evaluation scenes")
    embedded = Path(segray.__file__).parent / "synthetic" / "model"
    parser.add_argument("--out", type=Path, default=embedded, help="folder for the exported model")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads, and of drawing processes")
    parser.add_argument(
        "--evaluate", type=int, default=300, metavar="SCENES", help="number of unseen scenes, 0 for none"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--evaluate-only", action="store_true", help="measure the model in --out without training")
    only.add_argument("--export-checkpoint", action="store_true", help="export the checkpoint without further training")
    return parser.parse_args()


def _log(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    main()
