"""`python -m benchmarks.bench_predict MODEL`: segray, the bare network and Ultralytics' `predict` on the same images.

Three programs label the same images with the same IR on the same cores, in turn, several rounds:

- bare: an AsyncInferQueue over prepared tensors, whose outputs nobody reads (variant a of `segray bench`);
- segray: `segray label`, from the first task to the last commit (variant c);
- predict: `YOLO(MODEL).predict(MANIFEST, retina_masks=True, stream=True)`, which writes nothing, in its own process.

--python names an interpreter that has ultralytics, which segray neither needs nor contains. Without it predict is left
out. The figures are medians over the rounds, with the least and the largest value.

The images are drawn scenes of few objects, or those of --images. predict makes whole masks, so its time grows with the
number of objects. A folder of fewer images than --count is taken again and again, by links. For `--precision int8`
MODEL is a folder that `segray models quantize` wrote, with the metadata.yaml of the float export beside the .xml.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from segray.bench import runner
from segray.bench.workload import Workload, list_images

PREDICT = """
import json, os, sys, time
manifest, model, precision = sys.argv[1:]
import openvino
compile_model = openvino.Core.compile_model
def pinned(self, model, device_name=None, config=None, **more):
    config = {**(config or {}), "INFERENCE_PRECISION_HINT": precision}
    return compile_model(self, model, device_name, config, **more)
if precision != "auto":
    openvino.Core.compile_model = pinned
from ultralytics import YOLO
model = YOLO(model, task="segment")
options = {"retina_masks": True, "stream": True, "verbose": False, "conf": 0.25, "iou": 0.7}
with open(manifest) as lines:
    first = next(lines).strip()
for _ in range(4):
    list(model.predict(first, **options))
began_s, cpu_s = time.monotonic(), time.process_time()
instances = sum(0 if result.masks is None else len(result.masks.data) for result in model.predict(manifest, **options))
seconds = time.monotonic() - began_s
print("\\n" + json.dumps({"seconds": seconds, "cpu_s": time.process_time() - cpu_s, "instances": instances}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder or file of a YOLO-seg")
    parser.add_argument("--images", help="folder, glob or manifest of images; by default drawn scenes")
    parser.add_argument("--count", type=int, default=192)
    parser.add_argument("--size", default="640x480", metavar="WxH")
    parser.add_argument("--precision", default="f32", choices=["auto", "f32", "bf16", "int8"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", help="interpreter that has ultralytics")
    chosen = parser.parse_args()
    results: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-predict-") as folder:
        images = chosen.images and _linked(chosen.images, chosen.count, Path(folder, "links"))
        options = runner.BenchOptions(
            images, runner.size_hw(chosen.size), chosen.count, "auto", str(Path(chosen.model).absolute()),
            precision=chosen.precision, instances=300, repeats=1, only="ac",
        )  # fmt: skip
        workload = runner.prepare(options, Path(folder), print)
        for number in range(1, chosen.rounds + 1):
            for run in runner.run_rounds(options, workload, Path(folder, str(number)), lambda note: None):
                cpu_s = sum(run.roles.values()) if run.variant == "segray" else sum(run.stages.values())
                name = {"ceiling": "bare"}.get(run.variant, run.variant)
                results.setdefault(name, []).append(Result(run.images_per_s, cpu_s / run.images))
            if chosen.python is not None:
                results.setdefault("predict", []).append(_predict(chosen.python, options, workload))
            print(
                f"round {number}: " + ", ".join(f"{name} {runs[-1].images_per_s:.1f}" for name, runs in results.items())
            )
    _print_comparison(results)


def _linked(uri: str, count: int, folder: Path) -> str:
    """Fill a new folder with links to the first `count` images, again from the first one if there are fewer."""
    folder.mkdir()
    for number, image in enumerate(islice(cycle(list_images(uri, count)), count)):
        Path(folder, f"{number:06d}{Path(image).suffix}").symlink_to(Path(image).absolute())
    return str(folder)


class Result(NamedTuple):
    """The speed of one program in one round. cpu_s: CPU seconds of all its processes per image."""

    images_per_s: float
    cpu_s: float


def _print_comparison(results: Mapping[str, Sequence[Result]]) -> None:
    """Print medians, and segray's speed over each other program's, each ratio taken within a round."""
    print(f"{'':8} {'images/s':>9} {'CPU ms':>7} {'segray over it':>20} {'by CPU':>20}")
    for name, runs in results.items():
        pairs = list(zip(results["segray"], runs, strict=True))
        speed = _with_range([own.images_per_s / other.images_per_s for own, other in pairs])
        cpu = _with_range([other.cpu_s / own.cpu_s for own, other in pairs])
        rate, cpu_ms = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"{name:8} {rate:9.1f} {1e3 * cpu_ms:7.1f} {speed:>20} {cpu:>20}")


def _with_range(ratios: Sequence[float]) -> str:
    """Return the median of ratios as text, with the least and the largest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"


def _predict(python: str, options: runner.BenchOptions, workload: Workload) -> Result:
    """Run Ultralytics' predict over the images; the model is loaded and warm before the time counts."""
    precision = "auto" if options.precision in ("auto", "int8") else options.precision
    arguments = [python, "-c", PREDICT, str(workload.manifest), str(options.model_path), precision]
    environment = {**os.environ, "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{python} cannot run predict:\n{done.stderr[-2000:]}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return Result(len(workload.images) / measured["seconds"], measured["cpu_s"] / len(workload.images))


if __name__ == "__main__":
    main()
