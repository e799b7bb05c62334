"""The quickstart: draw scenes, label them, measure the labels, show them.

Knows the order of the steps. Every step is also a public function or command.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segray import config
from segray.analytics.evaluation.evaluate import Evaluation, evaluate
from segray.analytics.query.atomic_output import writing
from segray.analytics.reports.contact_sheet import contact_sheet
from segray.analytics.reports.report import report
from segray.execution.progress import ProgressListener
from segray.execution.run import StartWorkers, Summary, label
from segray.sources.reader import by_uri
from segray.storage.store import Store
from segray.synthetic import dataset

_SEED = 20


@dataclass(frozen=True)
class Result:
    """The output of quickstart.

    sheet: a PNG of overlays.
    page: the label set's report, with its evaluation.
    """

    summary: Summary
    evaluation: Evaluation
    sheet: Path
    page: Path


def settings(folder: Path) -> config.Config:
    """Return the configuration that quickstart runs with.

    configs/quickstart.yaml holds the same values, except that its run writes a report.
    """
    return config.validate(
        {
            "source": {"uri": str(folder / "scenes" / "images")},
            "output": {"root": str(folder / "labels")},
            "model": {"name": "stickers"},
            "unit_images": 16,
            "report": False,
        },
        "quickstart",
    )


def quickstart(folder: Path, count: int, listener: ProgressListener, start_workers: StartWorkers) -> Result:
    """Draw scenes, label them with the embedded model, compare them with the truth, and write a sheet and a report.

    Args:
        folder: folder of everything that is written.
        count: number of scenes.
        listener: receives the progress.
        start_workers: starts the workers of a run.
    """
    listener.note(f"drawing {count} sticker scenes in {folder / 'scenes'}")
    with writing(folder):
        truth = dataset.write(folder / "scenes", count, _SEED)
    summary = label(settings(folder), listener, start_workers, exclusive=True)
    listener.note("comparing with the truth, drawing a contact sheet, writing a report")
    evaluation = evaluate(summary.root, truth)
    sheet = folder / "contact-sheet.png"
    contact_sheet(summary.root, sheet, read=by_uri(Store()), title="segray quickstart")
    page = folder / "report.html"
    page.write_text(report(summary.root, truth=str(truth)), "utf-8")
    return Result(summary, evaluation, sheet, page)
