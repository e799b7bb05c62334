"""`segray bench`: each variant once per round, each run in a fresh process.

Knows the order of the runs, and how a run is measured from outside. The work of a run is in variants.py, the evaluation
of the numbers in report.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from segray.bench import reference_model, workload
from segray.bench.process_stats import Watch
from segray.bench.workload import Workload
from segray.conversion import yolact
from segray.errors import ConfigError, SegrayError
from segray.models import engine
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import redact

WAYS: Mapping[str, str] = {
    "a": "ceiling",
    "b": "floor",
    "c": "segray",
    "d": "ray_data",
    "e": "script",
    "r": "remote",
}
YARDSTICK = "yardstick"
# Without a count, the number of images keeps the device busy for _BUSY_S, estimated from a trial run.
_BUSY_S = 20.0
_TRIAL, _MOST_IMAGES = 32, 2048
_OF_A_JOB = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
_NUMBERS = ("area", "height", "width", "rle")


@dataclass(frozen=True)
class Asked:
    """The user's choices.

    images: a local folder, glob or manifest; None draws scenes of size_hw, in pixels. count: number of images; None
    for as many as keep the device busy for about 20 s. model_path: None for the reference model or the embedded model.
    remote: prefix to which the images are copied, and from which they are labelled too.
    """

    images: str | None = None
    size_hw: tuple[int, int] = (480, 640)
    count: int | None = None
    model_name: str = YARDSTICK
    model_path: str | None = None
    model_form: str | None = None
    precision: str = "auto"
    instances: int = 20
    repeats: int = 3
    only: str = "abcde"
    settings: tuple[str, ...] = ()
    remote: str | None = None


@dataclass(frozen=True)
class Measured:
    """One run of one variant.

    All times are in seconds of time.monotonic. began_s, ended_s: the timed part. started_s, exited_s: the process.
    stages: CPU seconds by stage. roles: CPU seconds by role (driver, worker, ray) within the timed part.
    others_share: share of the CPUs, 0..1, that other processes used meanwhile. found: content of the table, empty for
    a variant that writes none.
    """

    way: str
    images: int
    started_s: float
    began_s: float
    ended_s: float
    exited_s: float
    stages: Mapping[str, float]
    roles: Mapping[str, float]
    others_share: float
    peak_rss_bytes: Mapping[str, int]
    bytes_written: int
    found: Mapping[str, float]
    marks: Mapping[str, float]
    facts: Mapping[str, str]

    @property
    def images_per_s(self) -> float:
        """Return the images/s of the timed part."""
        return self.images / (self.ended_s - self.began_s)

    @property
    def images_per_s_with_startup(self) -> float:
        """Return the images/s of the whole process, startup included."""
        return self.images / (self.exited_s - self.started_s)


def size_hw(text: str) -> tuple[int, int]:
    """Return height and width of a text: "640x480" -> (480, 640)."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ConfigError("--size takes WIDTHxHEIGHT", found=text, hint="for example --size 640x480")
    return int(height), int(width)


def ways(letters: str) -> str:
    """Return the letters of --only, each once; raise ConfigError for an unknown letter."""
    if not letters or set(letters) - set(WAYS):
        known = ", ".join(f"{letter} {way}" for letter, way in WAYS.items())
        raise ConfigError("--only takes letters of the ways", found=letters, hint=f"choose of {known}")
    return "".join(dict.fromkeys(letters))


def bench(asked: Asked, folder: Path | None, note: Callable[[str], None]) -> tuple[Workload, list[Measured]]:
    """Prepare the workload and run all rounds. folder: kept afterwards; None for a temporary one."""
    with tempfile.TemporaryDirectory(prefix="segray-bench-") as temporary:
        place = (folder or Path(temporary)).absolute()
        load = prepare(asked, place, note)
        return load, laps(asked, load, place, note)


def prepare(asked: Asked, folder: Path, note: Callable[[str], None]) -> Workload:
    """Put model, images and workload into the folder; raise ConfigError for choices that no variant can run."""
    if "d" in asked.only and importlib.util.find_spec("pandas") is None:
        hint = "pip install 'segray[bench]', or leave d out: --only abce"
        raise ConfigError("Ray Data needs pandas.", where="--only", found="no pandas", hint=hint)
    if ("r" in asked.only) != (asked.remote is not None):
        hint = "Give both, or neither: --remote s3://bucket/prefix/ --only abcrde"
        raise ConfigError("The way r labels from --remote.", where="--only, --remote", found=asked.only, hint=hint)
    folder.mkdir(parents=True, exist_ok=True)
    model: dict[str, Any] = {"name": asked.model_name, "path": asked.model_path, "form": asked.model_form}
    model |= {"precision": asked.precision, "max_detections": asked.instances}
    if asked.model_name == YARDSTICK:
        model |= {"name": yolact.ADAPTER_NAME, "path": str(folder.absolute() / "model" / "yardstick.xml")}
    load = Workload(str(folder.absolute()), (), model, engine.available_cpus(), asked.settings)
    load.configuration(folder / "labels")
    if asked.model_name == YARDSTICK:
        note("building the yardstick: YOLACT ResNet-50 with random weights")
        reference_model.write(folder / "model")
    load.resolved()
    load = replace(load, images=_images(asked, folder, asked.count or _TRIAL, note))
    load.save()
    if asked.count is None:
        lap = run_way("ceiling", load, folder / "trial")
        count = max(_TRIAL, min(_MOST_IMAGES, round(_BUSY_S * lap.images_per_s)))
        load = replace(load, images=_images(asked, folder, count, note))
        load.save()
    if asked.remote is not None:
        note(f"copying {len(load.images)} images to {redact(asked.remote)}")
        load = replace(load, remote=asked.remote)
        options = StorageOptions(**load.configuration(folder / "labels").storage.model_dump())
        workload.copied(load.images, asked.remote, Store(options))
        load.save()
    return load


def _images(asked: Asked, folder: Path, count: int, note: Callable[[str], None]) -> tuple[str, ...]:
    if asked.images is not None:
        return workload.listed(asked.images, count)
    height, width = asked.size_hw
    note(f"drawing scenes of {width}x{height}")
    return workload.drawn(folder / "images", count, asked.size_hw)


def laps(asked: Asked, load: Workload, folder: Path, note: Callable[[str], None]) -> list[Measured]:
    """Run every variant once per round."""
    found = []
    for number in range(1, asked.repeats + 1):
        for letter in asked.only:
            way = WAYS[letter]
            lap = run_way(way, load, folder / f"round-{number}" / way)
            note(f"round {number} of {asked.repeats}: {way} {lap.images_per_s:.2f} images/s")
            found.append(lap)
    return found


def run_way(way: str, load: Workload, folder: Path) -> Measured:
    """Run one variant in a process of its own, and measure the process from outside."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "log.txt"
    with log.open("wb") as output:
        started = time.monotonic()
        command = [sys.executable, "-m", "segray.bench", way, str(Path(load.folder, "workload.json")), str(folder)]
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=_alone())
        try:
            with Watch(process.pid) as watch:
                code = process.wait()
        finally:
            process.kill()
        exited = time.monotonic()
    lap_file = folder / "lap.json"
    if code or not lap_file.exists():
        tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:])
        raise SegrayError(
            f"the way {way} ended with {code}", where=str(log), found=tail, hint="mend it, or leave it out"
        )
    lap = json.loads(lap_file.read_text("utf-8"))
    return Measured(
        way,
        lap["images"],
        started,
        lap["began_s"],
        lap["ended_s"],
        exited,
        lap["cpu_seconds"],
        watch.cpu_seconds(lap["began_s"], lap["ended_s"]),
        watch.others_share(lap["began_s"], lap["ended_s"]),
        watch.peak_rss_bytes(),
        sum(file.stat().st_size for file in (folder / "labels").rglob("*") if file.is_file()),
        found_in(folder / "labels" / "instances"),
        lap["marks"],
        lap["facts"],
    )


def _alone() -> dict[str, str]:
    """Return the environment without the cluster of an enclosing Ray job, since every variant starts its own Ray."""
    return {name: value for name, value in os.environ.items() if name not in _OF_A_JOB}


def found_in(table: Path) -> Mapping[str, float]:
    """Return statistics of a table's masks: number, area, share of the image, length of the RLE."""
    if not table.is_dir():
        return {}
    files = sorted(map(str, table.glob("class=*/*.parquet")))
    if not files or not (rows := ds.dataset(files, format="parquet").to_table(list(_NUMBERS))).num_rows:
        return {"instances": 0}
    area = pc.cast(rows["area"], pa.float64())
    share = pc.divide(area, pc.multiply(pc.cast(rows["height"], pa.float64()), pc.cast(rows["width"], pa.float64())))
    return {
        "instances": rows.num_rows,
        "classes": len(list(table.glob("class=*"))),
        "area_px": int(pc.sum(rows["area"]).as_py()),
        "median_share": round(pc.approximate_median(share).as_py(), 5),
        "mean_share": round(pc.mean(share).as_py(), 5),
        "median_rle_chars": pc.approximate_median(pc.utf8_length(rows["rle"])).as_py(),
    }


def of(laps: Sequence[Measured], way: str) -> list[Measured]:
    """Return the runs of one variant, in order."""
    return [lap for lap in laps if lap.way == way]
