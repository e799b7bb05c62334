"""`python -m benchmarks.measure_report [PHOTO]`: CPU seconds of a report and of a contact sheet, for large images.

Twelve JPEG files of 24 megapixels show PHOTO, or generated noise without it, and have ten labels each on average. A
run writes `report` at its end; `segray quickstart` writes `sheet`. The figures are CPU seconds of the first call, all
imports included, and of the best of three more calls.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import synthetic_rows
from benchmarks.measure_analytics import in_new_process
from segray.instances import ImageRef
from segray.label_set import batches, commit, merge, run_records
from segray.label_set.class_names import partition_value
from segray.label_set.run_records import LabelSetIdentity
from segray.models.coco_labels import COCO_NAMES
from segray.storage.store import StorageOptions, Store
from segray.tasks import Task

IMAGES, PER_IMAGE, SIZE_HW, ROUNDS = 12, 10.0, (4000, 6000), 3


def write_images(folder: Path, photo: Path | None, rng: np.random.Generator) -> list[ImageRef]:
    """Write the JPEG files: the photo, or random colours, enlarged; and the noise of a camera on top."""
    small = rng.integers(0, 256, (*(side // 100 for side in SIZE_HW), 3), np.uint8)
    picture = small if photo is None else cv2.imread(str(photo))
    if picture is None:
        raise SystemExit(f"no image: {photo}")
    large: NDArray[np.int16] = cv2.resize(picture, SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
    refs = []
    for i in range(IMAGES):
        noisy = large + rng.normal(0, 4, large.shape).astype(np.int16)
        path = folder / f"{i:02d}.jpg"
        cv2.imwrite(str(path), np.clip(noisy, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
        status = path.stat()
        refs.append(ImageRef(path.name, str(path), f"{status.st_mtime_ns}-{status.st_size}", status.st_size))
    return refs


def write_label_set(folder: Path, photo: Path | None) -> None:
    """Write images and the label set `labels` into the folder."""
    rng = np.random.default_rng(0)
    refs = write_images(folder, photo, rng)
    pool = synthetic_rows.instance_rows(synthetic_rows.generate_shapes(100, rng, SIZE_HW), 200, rng)
    run, store, options = replace(run_records.new_run(str(folder / "labels")), id="made"), Store(), StorageOptions()
    commit.create_tables(run.root, options)
    classes = tuple((i, name, partition_value(name)) for i, name in COCO_NAMES.items())
    run_records.create_or_check(store, run.root, LabelSetIdentity("made", {}, classes))
    staged = synthetic_rows.Stager(pool, PER_IMAGE, rng, SIZE_HW).stage(store, run.staged, Task(0, 0, len(refs)), refs)
    inputs = batches.Inputs((staged.staged,), {"run_id": run.id}, 500_000)
    commit.commit(merge.merge(run, 1, inputs, options), run, options, store)


def write_report(folder: Path) -> None:
    """Write the page of the label set into the folder."""
    from segray.analytics.reports.report import report

    (folder / "report.html").write_text(report(str(folder / "labels")))


def write_sheet(folder: Path) -> None:
    """Write the contact sheet of the label set into the folder."""
    from segray.analytics.reports.contact_sheet import contact_sheet

    contact_sheet(str(folder / "labels"), folder / "sheet.png", read=lambda uri: Path(uri).read_bytes())


COMMANDS: dict[str, Callable[[Path], None]] = {"report": write_report, "sheet": write_sheet}


def measure(name: str, folder: Path) -> tuple[float, float]:
    """Return the CPU seconds of the first call and of the best of the later calls, in a process of its own."""
    COMMANDS[name](folder)
    first_s = time.process_time()
    later_s = []
    for _ in range(ROUNDS):
        start_s = time.process_time()
        COMMANDS[name](folder)
        later_s.append(time.process_time() - start_s)
    return first_s, min(later_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path, nargs="?")
    parser.add_argument("--keep", type=Path, help="existing folder for the images, the page and the sheet")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="segray-") as name:
        folder = options.keep or Path(name)
        in_new_process(write_label_set, folder, options.photo)
        print(f"{'':8} {'first CPU s':>12} {'later CPU s':>12}")
        for command in COMMANDS:
            first_s, later_s = in_new_process(measure, command, folder)
            print(f"{command:8} {first_s:>12.2f} {later_s:>12.2f}", flush=True)


if __name__ == "__main__":
    main()
