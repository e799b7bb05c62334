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
        cpu, wall = time.process_time(), time.monotonic()
        for tensors in self.inputs:
            self.request.infer(tensors, share_inputs=True)
        count = len(self.inputs)
        return (time.process_time() - cpu) / count, (time.monotonic() - wall) / count


def candidate(name: str, file: Path, precision: str, scenes: list[NDArray[np.uint8]]) -> Candidate:
    model = {"name": name, "path": str(file), "precision": precision}
    compiled, contract, form, _ = Workload("", (), model, engine.available_cpus()).compile_model("LATENCY")
    inputs = [compiled.inputs(contract.prepare(form, scene)) for scene in scenes]
    return Candidate(file, form.name, compiled.network.create_infer_request(), inputs)


def told(candidates: list[Candidate], rounds: list[list[tuple[float, float]]]) -> None:
    """Print the comparison. rounds: per round, the result of `infer` for each candidate."""
    print(f"{'CPU s':>8} {'wall s':>8} {'to the first':>22}  file")
    for i, one in enumerate(candidates):
        ratios = [laps[i][0] / laps[0][0] for laps in rounds]
        cpu, wall = (statistics.median(values) for values in zip(*(laps[i] for laps in rounds), strict=True))
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        print(f"{cpu:8.3f} {wall:8.3f} {spread:>22}  {one.file} ({one.form})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="as model.name")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--size", default="1365x800", help="of the scenes, WIDTHxHEIGHT")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--count", type=int, default=4, help="images a round")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    scenes = [draw_scene(np.random.default_rng([0, i]), size_hw(asked.size)).image for i in range(asked.count)]
    candidates = [candidate(asked.name, file, asked.precision, scenes) for file in asked.files]
    for one in candidates:
        one.infer()  # The first inference takes longer.
    told(candidates, [[one.infer() for one in candidates] for _ in range(asked.repeats)])


if __name__ == "__main__":
    main()
