"""`python -m benchmarks.bench_precisions MODEL...`: f32, bf16 and int8 of models: CPU time, accuracy, equal rows.

`segray models quantize` makes the int8 copy, with images of --calibrate. All precisions of a model then infer the same
prepared images, one at a time and in turn. The time is the CPU time of the process, with all of its threads. Ratios are
taken within a round. Preparing and decoding are not part of the time.

The rows of bf16 and int8 are compared with those of f32 on all images of --images. A row is found if a row of its class
has a mask IoU of 0.5, or of 0.95. With --truth the average precision of each precision is measured too.

A model is a name, such as stickers, or a path. --no-rows leaves rows out, for a network that nobody has trained: its
rows mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from segray.config import AUTO, ModelSettings
from segray.conversion import compare, parity, quantize
from segray.conversion.compare import Reader
from segray.conversion.reference_results import ReferenceImage, ReferenceRow
from segray.execution.model_loading import options_of
from segray.instances import Instances
from segray.models import engine, resolve
from segray.models.adapters.adapter import Options
from segray.models.engine import Arrays, DeviceSettings, Engine
from segray.storage.store import Store
from segray.synthetic import dataset

IOUS = (0.5, 0.95)
MIN_SCORE = 0.3
FLOATS = ("f32", "bf16")
Seconds = Mapping[str, float]


def settings_of(model: str, path: Path | None = None) -> ModelSettings:
    """Return the section `model` of a model of the catalogue, or of a path. path: other files of the same model."""
    name, own = (AUTO, model) if Path(model).exists() else (model, None)
    return ModelSettings(name=name, path=own if path is None else str(path))


def cpu_s(network: Engine, inputs: Sequence[Arrays]) -> float:
    """Return the CPU seconds of one image, of all threads of this process."""
    began_s = time.process_time()
    for prepared in inputs:
        with network.infer(prepared):
            pass
    return (time.process_time() - began_s) / len(inputs)


def time_in_turns(networks: Mapping[str, Engine], inputs: Sequence[Arrays], rounds: int) -> list[Seconds]:
    """Return the CPU seconds of an image by precision, for each round, after a round that does not count."""
    for network in networks.values():
        cpu_s(network, inputs)
    return [{name: cpu_s(network, inputs) for name, network in networks.items()} for _ in range(rounds)]


def reference_of(network: Engine, reader: Reader, images: str, options: Options) -> dict[str, ReferenceImage]:
    """Return the rows of one precision, as a reference for the others."""
    rows = {}
    for ref in compare.evenly_spaced_images(images, reader.store, 10**6):
        prepared = reader.read(ref)
        if prepared is not None:
            inputs, size_hw = prepared
            with network.infer(inputs) as outputs:
                rows[ref.key] = _as_reference(reader.adapter.decode(outputs, size_hw, options))
    return rows


def _as_reference(instances: Instances) -> ReferenceImage:
    columns = zip(instances.scores.tolist(), instances.rles, instances.class_ids.tolist(), strict=True)
    rows = (ReferenceRow(score, counts, class_id=number) for score, counts, number in columns)
    return ReferenceImage(instances.size_hw, tuple(rows))


def text_of_agreement(result: parity.Parity) -> str:
    """Return the shares of the reference's rows that were found, and the share of further rows."""
    shares = []
    for iou in IOUS:
        limits = parity.Limits(MIN_SCORE, iou, 1)
        shares.append(f"{100 * replace(result, limits=limits).matched_share:.1f}")
    return f"{' / '.join(shares)} % of {len(result.pairs)}, {len(result.extra)} extra"


def measure(model: str, chosen: argparse.Namespace, images: str, truth: Path | None, folder: Path) -> None:
    """Quantise a model, and print its line for each precision."""
    store = Store()
    settings = settings_of(model)
    source = resolve.configured(settings)
    calibration = chosen.calibrate or images
    made = quantize.quantize(source, calibration, folder, store, samples=chosen.samples)
    names = [name for name in FLOATS if name in engine.precisions()]
    networks = {name: engine.compile(source.path, source.form, DeviceSettings(precision=name)) for name in names}
    networks["int8"] = engine.compile(made.xml, source.form, DeviceSettings(precision="int8"))
    adapter = source.adapter.with_size(source.form.name, networks["f32"].size_hw)
    reader = Reader(adapter, adapter.forms[source.form.name], store)
    timed = reader.first(compare.evenly_spaced_images(images, store, chosen.timed), chosen.timed)
    rounds = time_in_turns(networks, timed, chosen.rounds)
    ap: Mapping[str, str] = {}
    if truth is not None:
        read = compare.truth_of_dataset(compare.Truth(truth, images), store, adapter.labels)
        measured = compare.accuracy(networks, reader, read)
        ap = {name: f"{measured.mask_ap[name]:.3f} / {measured.box_ap[name]:.3f}" for name in networks}
    rows: dict[str, str] = {}
    if not chosen.no_rows:
        options = options_of(settings, adapter)
        reference = reference_of(networks["f32"], reader, images, options)
        for name in list(networks)[1:]:
            limits = parity.Limits(MIN_SCORE, IOUS[0], 1)
            result = parity.compare(reference, images, networks[name], reader, options, limits)
            rows[name] = text_of_agreement(result)
    print(f"{model}: {source.adapter.name}, {made.layers['int8']} layers in int8, {made.layers['float']} in float")
    for name in networks:
        ratios = [seconds["f32"] / seconds[name] for seconds in rounds]
        middle_ms = 1e3 * statistics.median(seconds[name] for seconds in rounds)
        speed = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        print(f"  {name:5} {middle_ms:8.1f} ms {speed:>20}  {ap.get(name, '-'):>15}  {rows.get(name, '-')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="name or path of a float model")
    parser.add_argument("--images", help="folder, glob or manifest; by default 100 drawn scenes, with their truth")
    parser.add_argument("--truth", type=Path, help="COCO JSON of --images")
    parser.add_argument(
        "--calibrate", help="images that calibrate; by default those of --images, or other drawn scenes"
    )
    parser.add_argument("--samples", type=int, default=100, help="number of images that calibrate")
    parser.add_argument("--scenes", type=int, default=100, help="number of drawn scenes")
    parser.add_argument("--timed", type=int, default=4, help="number of images in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-rows", action="store_true", help="do not compare rows")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-precisions-") as name:
        folder = Path(name)
        images, truth = chosen.images, chosen.truth
        if images is None:
            drawn = dataset.write(folder / "scenes", chosen.scenes, 0)
            images, truth = str(folder / "scenes" / dataset.IMAGES), drawn
            dataset.write(folder / "calibrate", chosen.samples, 1)
            chosen.calibrate = chosen.calibrate or str(folder / "calibrate" / dataset.IMAGES)
        found = f"rows of f32 found, IoU {IOUS[0]} / {IOUS[1]}"
        print(f"{'':7} {'CPU time':>8}    {'f32 over it':>20}  {'mask / box AP':>15}  {found}")
        for number, model in enumerate(chosen.models):
            measure(model, chosen, images, truth, folder / f"int8-{number}")


if __name__ == "__main__":
    main()
