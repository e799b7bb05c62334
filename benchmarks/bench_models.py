"""`python -m benchmarks.bench_models NAME FILE...`: a comparison of several files of one model.

Each file infers the same scenes, one image at a time, in turn with the other files. The figures are CPU seconds and
wall seconds per image, in the median. Ratios to the first file are taken within a round. Decoding is not measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from segray.bench.runner import size_hw
from segray.bench.workload import Workload
from segray.models import engine
from segray.synthetic.scene import draw_scene


@dataclass(frozen=True)
class Candidate:
    """A compiled file with its inputs."""

    file: Path
    form: str
    request: ov.InferRequest
    inputs: list[dict[int, NDArray[Any]]]

    def infer(self) -> tuple[float, float]:
        """Infer all inputs; return CPU seconds and wall seconds per image."""
        cpu_start_s, wall_start_s = time.process_time(), time.monotonic()
        for tensors in self.inputs:
            self.request.infer(tensors, share_inputs=True)
        count = len(self.inputs)
        return (time.process_time() - cpu_start_s) / count, (time.monotonic() - wall_start_s) / count


def compile_candidate(name: str, file: Path, precision: str, scenes: list[NDArray[np.uint8]]) -> Candidate:
    """Compile the model in `file` and prepare the scenes for it. name, precision: as in the configuration's `model`."""
    model = {"name": name, "path": str(file), "precision": precision}
    compiled, adapter, form, _ = Workload("", (), model, engine.available_cpus()).compile_model("LATENCY")
    inputs = [compiled.inputs(adapter.prepare(form, scene)) for scene in scenes]
    return Candidate(file, form.name, compiled.network.create_infer_request(), inputs)


def print_comparison(candidates: list[Candidate], rounds: list[list[tuple[float, float]]]) -> None:
    """Print the comparison. rounds: per round, the result of `infer` for each candidate."""
    print(f"{'CPU s':>8} {'wall s':>8} {'to the first':>22}  file")
    for i, candidate in enumerate(candidates):
        ratios = [results[i][0] / results[0][0] for results in rounds]
        cpu_s, wall_s = (statistics.median(values) for values in zip(*(results[i] for results in rounds), strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        print(f"{cpu_s:8.3f} {wall_s:8.3f} {ratio:>22}  {candidate.file} ({candidate.form})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="name of the model, as in model.name")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--size", default="1365x800", help="size of the scenes in pixels, WIDTHxHEIGHT")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--count", type=int, default=4, help="number of images in a round")
    parser.add_argument("--repeats", type=int, default=5, help="number of rounds")
    options = parser.parse_args()
    scenes = [draw_scene(np.random.default_rng([0, i]), size_hw(options.size)).image for i in range(options.count)]
    candidates = [compile_candidate(options.name, file, options.precision, scenes) for file in options.files]
    for candidate in candidates:
        candidate.infer()  # The first inference takes longer.
    rounds = [[candidate.infer() for candidate in candidates] for _ in range(options.repeats)]
    print_comparison(candidates, rounds)


if __name__ == "__main__":
    main()
