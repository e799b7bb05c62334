"""`python jobs/bench_models.py NAME FILE...`: files of one model, such as its forms and conversions, side by side.

Each file infers the same scenes, one image after the other, in turn with the others; told are medians of CPU seconds
and of wall seconds an image, and ratios to the first file within a round. Decoding is left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from segray import runtime, zoo
from segray.bench.bench import size_hw
from segray.scenes.scene import draw_scene


@dataclass
class Candidate:
    """A compiled file with its inputs, and what a round took: (CPU seconds, wall seconds) an image."""

    file: Path
    form: str
    request: ov.InferRequest
    inputs: list[dict[int, NDArray[Any]]]
    rounds: list[tuple[float, float]] = field(default_factory=list)

    def infer(self) -> None:
        cpu, wall = time.process_time(), time.monotonic()
        for tensors in self.inputs:
            self.request.infer(tensors, share_inputs=True)
        count = len(self.inputs)
        self.rounds.append(((time.process_time() - cpu) / count, (time.monotonic() - wall) / count))


def candidate(name: str, file: Path, precision: str, scenes: list[NDArray[np.uint8]]) -> Candidate:
    model = zoo.resolve(name, str(file), None, None)
    compiled = runtime.compiled(model.path, model.form, runtime.DeviceSettings(precision=precision, hint="LATENCY"))
    contract = model.contract.with_size(model.form.name, compiled.size_hw)
    form = contract.forms[model.form.name]
    inputs = [compiled.inputs(contract.prepare(form, scene)) for scene in scenes]
    return Candidate(file, form.name, compiled.network.create_infer_request(), inputs)


def told(candidates: list[Candidate]) -> None:
    first = candidates[0].rounds
    print(f"{'CPU s':>8} {'wall s':>8} {'to the first':>22}  file")
    for one in candidates:
        ratios = [mine[0] / its[0] for mine, its in zip(one.rounds, first, strict=True)]
        cpu, wall = (statistics.median(values) for values in zip(*one.rounds, strict=True))
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
        one.infer()
        one.rounds.clear()
    for _ in range(asked.repeats):
        for one in candidates:
            one.infer()
    told(candidates)


if __name__ == "__main__":
    main()
