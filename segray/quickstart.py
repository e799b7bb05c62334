"""The main job from nothing: draw scenes, label them, measure, look.

Knows the order of the steps; every step is one that users have too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segray import config
from segray.analytics.evaluate import Evaluation, evaluate
from segray.analytics.sheet import contact_sheet
from segray.execute import Watcher
from segray.run import StartWorkers, Summary, label
from segray.scenes import dataset
from segray.sources.reading import by_uri
from segray.storage import Store

_SEED = 20


@dataclass(frozen=True)
class Result:
    """What quickstart made. sheet: a PNG of overlays."""

    summary: Summary
    evaluation: Evaluation
    sheet: Path


def settings(folder: Path) -> config.Config:
    """The configuration that quickstart runs with: configs/quickstart.yaml says the same."""
    return config.validate(
        {
            "source": {"uri": str(folder / "scenes" / "images")},
            "output": {"root": str(folder / "labels")},
            "model": {"name": "stickers"},
            "unit_images": 16,
        },
        "quickstart",
    )


def quickstart(folder: Path, count: int, watcher: Watcher, start_workers: StartWorkers) -> Result:
    """Draw `count` scenes below folder, label them with the embedded model, compare with the truth, draw a sheet."""
    watcher.note(f"drawing {count} sticker scenes in {folder / 'scenes'}")
    truth = dataset.write(folder / "scenes", count, _SEED)
    summary = label(settings(folder), watcher, start_workers)
    watcher.note("comparing with the truth and drawing a contact sheet")
    evaluation = evaluate(summary.root, truth)
    sheet = folder / "contact-sheet.png"
    contact_sheet(summary.root, sheet, read=by_uri(Store()), title="segray quickstart")
    return Result(summary, evaluation, sheet)
