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

from segray.bench import reference_model
from segray.bench.process_stats import ProcessTreeMonitor
from segray.bench.workload import Workload, copy_images, draw_images, list_images
from segray.config import AUTO
from segray.conversion import yolact
from segray.errors import ConfigError, SegrayError
from segray.models import engine, model_cache, remote_folder
from segray.storage.store import Store
from segray.storage.uris import redact

# The name of each variant in the record, by its letter in --only.
VARIANT_BY_LETTER: Mapping[str, str] = {
    "a": "ceiling",
    "b": "floor",
    "c": "segray",
    "d": "ray_data",
    "e": "script",
    "f": "queue",
    "r": "remote",
}
# The value of --model-name for the reference model.
REFERENCE_MODEL = "yardstick"
# Without a count, the number of images keeps the device busy for _BUSY_S, estimated from a trial run.
_BUSY_S = 20.0
_TRIAL_IMAGES, _MOST_IMAGES = 32, 2048
# The names by which people know a variant, where the record has another name.
TITLES: Mapping[str, str] = {
    "ceiling": "upper bound",
    "floor": "lower bound",
    "ray_data": "Ray Data",
    "queue": "queue script",
}
# Environment variables that name the cluster of an enclosing Ray job.
_JOB_VARIABLES = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
_MASK_COLUMNS = ("area", "height", "width", "rle")


@dataclass(frozen=True)
class BenchOptions:
    """The options of `segray bench`.

    images: a local folder, glob or manifest; None draws scenes of size_hw, in pixels.
    count: number of images; None for as many as keep the device busy for about 20 s.
    model_path: None for the reference model or the embedded model.
    instances: largest number of instances per image.
    repeats: number of rounds.
    only: letters of the variants to run, as in VARIANT_BY_LETTER.
    settings: further configuration of segray, key=value.
    remote: prefix to which the images are copied, for the variant `remote`.
    """

    images: str | None = None
    size_hw: tuple[int, int] = (480, 640)
    count: int | None = None
    model_name: str = REFERENCE_MODEL
    model_path: str | None = None
    model_form: str | None = None
    precision: str = "auto"
    instances: int = 20
    repeats: int = 3
    only: str = "abcdef"
    settings: tuple[str, ...] = ()
    remote: str | None = None


@dataclass(frozen=True)
class VariantRun:
    """One run of one variant.

    All times are in seconds of time.monotonic. began_s, ended_s: the timed part. started_s, exited_s: the process.
    stages: CPU seconds by stage. roles: CPU seconds by role (driver, worker, ray) within the timed part.
    others_share: share of the CPUs, 0..1, that other processes used meanwhile.
    mask_stats: statistics of the written table, as `mask_stats` returns them; empty for a variant that writes none.
    marks: further times. facts: further facts, such as the device's settings.
    """

    variant: str
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
    mask_stats: Mapping[str, float]
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
        raise ConfigError(
            "--size takes WIDTHxHEIGHT", found=text, hint="Write the size in pixels, such as --size 640x480."
        )
    return int(height), int(width)


def model_of(model: str | None, model_name: str | None, model_path: str | None) -> tuple[str, str | None]:
    """Return model.name and model.path of the options --model, --model-name and --model-path.

    Raises:
        ConfigError: --model comes with one of the others.
    """
    if model is None:
        return model_name or (REFERENCE_MODEL if model_path is None else AUTO), model_path
    if model_name is not None or model_path is not None:
        raise ConfigError(
            "--model names the whole model.",
            where="--model",
            found="--model-name" if model_name is not None else "--model-path",
            hint="Give --model alone, or --model-name with --model-path.",
        )
    return AUTO, model


def check_letters(letters: str) -> str:
    """Return the letters of --only without duplicates; raise ConfigError for an unknown letter."""
    if not letters or set(letters) - set(VARIANT_BY_LETTER):
        choices = ", ".join(f"{letter} {TITLES.get(name, name)}" for letter, name in VARIANT_BY_LETTER.items())
        raise ConfigError("--only takes letters of the variants", found=letters, hint=f"Choose from {choices}.")
    return "".join(dict.fromkeys(letters))


def bench(options: BenchOptions, folder: Path | None, note: Callable[[str], None]) -> tuple[Workload, list[VariantRun]]:
    """Prepare the workload and run all rounds.

    Args:
        options: The options of the command.
        folder: Folder for images, model and results, which is kept; None for a temporary folder.
        note: Receives progress messages.

    Returns:
        The workload, and the runs in the order in which they were measured.

    Raises:
        ConfigError: No variant can run these options.
        SegrayError: A variant ended with an error.
    """
    with tempfile.TemporaryDirectory(prefix="segray-bench-") as temporary:
        absolute_folder = (folder or Path(temporary)).absolute()
        workload = prepare(options, absolute_folder, note)
        return workload, run_rounds(options, workload, absolute_folder, note)


def prepare(options: BenchOptions, folder: Path, note: Callable[[str], None]) -> Workload:
    """Put model, images and workload into the folder; raise ConfigError for options that no variant can run."""
    if "d" in options.only and importlib.util.find_spec("pandas") is None:
        hint = "Run pip install 'segray[bench]', or leave out Ray Data: --only abcef."
        raise ConfigError("Ray Data needs pandas.", where="--only", found="no pandas", hint=hint)
    if ("r" in options.only) != (options.remote is not None):
        hint = "Give both, or neither: --remote s3://bucket/prefix/ --only abcrde."
        raise ConfigError(
            "The variant r needs --remote, and --remote needs the variant r.",
            where="--only, --remote",
            found=options.only,
            hint=hint,
        )
    folder.mkdir(parents=True, exist_ok=True)
    model: dict[str, Any] = {"name": options.model_name, "path": options.model_path, "form": options.model_form}
    model |= {"precision": options.precision, "max_detections": options.instances}
    if options.model_name == REFERENCE_MODEL:
        model |= {"name": yolact.ADAPTER_NAME, "path": str(folder.absolute() / "model" / "reference_model.xml")}
    workload = Workload(str(folder.absolute()), (), model, engine.available_cpus(), options.settings)
    configuration = workload.configuration(folder / "labels")
    if remote_folder.is_remote(configuration.model.path):
        copy = model_cache.fetched(configuration.model, configuration.storage_options(), note)
        workload = replace(workload, settings=(*options.settings, f"model.path={copy.path}"))
    if options.model_name == REFERENCE_MODEL:
        note("building the reference model: YOLACT ResNet-50 with random weights")
        reference_model.write(folder / "model")
    workload.resolve_model()
    workload = replace(workload, images=_images(options, folder, options.count or _TRIAL_IMAGES, note))
    workload.save()
    if options.count is None:
        trial = run_variant("ceiling", workload, folder / "trial")
        count = max(_TRIAL_IMAGES, min(_MOST_IMAGES, round(_BUSY_S * trial.images_per_s)))
        workload = replace(workload, images=_images(options, folder, count, note))
        workload.save()
    if options.remote is not None:
        note(f"copying {len(workload.images)} images to {redact(options.remote)}")
        workload = replace(workload, remote=options.remote)
        storage = workload.configuration(folder / "labels").storage_options()
        copy_images(workload.images, options.remote, Store(storage))
        workload.save()
    return workload


def _images(options: BenchOptions, folder: Path, count: int, note: Callable[[str], None]) -> tuple[str, ...]:
    if options.images is not None:
        return list_images(options.images, count)
    height, width = options.size_hw
    note(f"drawing scenes of {width}x{height}")
    return draw_images(folder / "images", count, options.size_hw)


def run_rounds(
    options: BenchOptions, workload: Workload, folder: Path, note: Callable[[str], None]
) -> list[VariantRun]:
    """Run every variant once per round."""
    runs = []
    for number in range(1, options.repeats + 1):
        for letter in options.only:
            variant = VARIANT_BY_LETTER[letter]
            run = run_variant(variant, workload, folder / f"round-{number}" / variant)
            title = TITLES.get(variant, variant)
            note(f"round {number} of {options.repeats}: {title} {run.images_per_s:.2f} images/s")
            runs.append(run)
    return runs


def run_variant(variant: str, workload: Workload, folder: Path) -> VariantRun:
    """Run one variant in a process of its own, and measure the process from outside."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "log.txt"
    with log.open("wb") as output:
        started = time.monotonic()
        workload_file = Path(workload.folder, "workload.json")
        command = [sys.executable, "-m", "segray.bench", variant, str(workload_file), str(folder)]
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=_environment_without_job()
        )
        try:
            with ProcessTreeMonitor(process.pid) as monitor:
                code = process.wait()
        finally:
            process.kill()
        exited = time.monotonic()
    measurement_file = folder / "measurement.json"
    if code or not measurement_file.exists():
        tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-15:])
        raise SegrayError(
            f"the variant {TITLES.get(variant, variant)} ended with exit code {code}",
            where=str(log),
            found=tail,
            hint="Correct the cause, or leave out the variant with --only.",
        )
    measurement = json.loads(measurement_file.read_text("utf-8"))
    return VariantRun(
        variant,
        measurement["images"],
        started,
        measurement["began_s"],
        measurement["ended_s"],
        exited,
        measurement["cpu_seconds"],
        monitor.cpu_seconds(measurement["began_s"], measurement["ended_s"]),
        monitor.others_share(measurement["began_s"], measurement["ended_s"]),
        monitor.peak_rss_bytes(),
        sum(file.stat().st_size for file in (folder / "labels").rglob("*") if file.is_file()),
        mask_stats(folder / "labels" / "instances"),
        measurement["marks"],
        measurement["facts"],
    )


def _environment_without_job() -> dict[str, str]:
    """Return the environment without the cluster of an enclosing Ray job, since every variant starts its own Ray."""
    return {name: value for name, value in os.environ.items() if name not in _JOB_VARIABLES}


def mask_stats(table: Path) -> Mapping[str, float]:
    """Return statistics of a table's masks: number, area, share of the image, length of the RLE."""
    if not table.is_dir():
        return {}
    files = sorted(map(str, table.glob("class=*/*.parquet")))
    if not files or not (rows := ds.dataset(files, format="parquet").to_table(list(_MASK_COLUMNS))).num_rows:
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


def runs_of(runs: Sequence[VariantRun], variant: str) -> list[VariantRun]:
    """Return the runs of one variant, in order."""
    return [run for run in runs if run.variant == variant]
