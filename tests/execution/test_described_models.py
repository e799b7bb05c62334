"""Models that tell by their file what they are, on the way that users take: a path, a run, rows and commands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import yolo_network
from command import here
from command import segray as command
from PIL import Image
from watchers import Notes

import segray
from segray import config, rle
from segray.bench import runner
from segray.bench.workload import Workload
from segray.cli import main
from segray.errors import ConfigError, ModelError
from segray.execution import run, worker_spec
from segray.execution.model_loading import options_of
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import WorkerSpec
from segray.instances import Instances
from segray.limits import DEFAULT_LIMITS
from segray.models import engine, resolve
from segray.models.adapters.adapter import Options
from segray.storage.options import StorageOptions

DOCS = Path(__file__).parents[2] / "docs" / "models"


def settings(path: Path | str | None, **model: Any) -> config.ModelSettings:
    values = {"source": {"uri": "photos"}, "output": {"root": "labels"}, "model": {"path": path, **model}}
    return config.validate(values, "test").model


def labelled(folder: Path, picture: np.ndarray, **model: Any) -> Instances:
    chosen = settings(folder, **model)
    found = resolve.configured(chosen)
    network = engine.compile(found.path, found.form, engine.DeviceSettings(precision="f32", threads=1))
    adapter = found.adapter.with_size(found.form.name, network.size_hw)
    inputs = adapter.prepare(adapter.forms[found.form.name], picture)
    with network.infer(inputs) as outputs:
        return adapter.decode(outputs, (picture.shape[0], picture.shape[1]), options_of(chosen, adapter))


def is_red(instances: Instances, picture: np.ndarray) -> bool:
    """Whether the only mask is the red part of the picture, but for the pixels along its edge."""
    (counts,) = instances.rles
    wrong = rle.decode(counts, instances.size_hw) != (picture[..., 0] == 255)
    return bool(wrong.sum() < 0.05 * wrong.size)


@pytest.mark.parametrize(
    "export",
    [
        {},
        {"dynamic": True},
        {"selected": True},
        {"batch": 4},
        {"batch": 4, "as_onnx": True},
        {"selected": True, "as_onnx": True},
        {"selected": True, "as_onnx": True, "batch": 4},
        {"size_hw": (96, 64)},
    ],
    ids=str,
)
def test_every_kind_of_export_gives_the_object_its_mask(tmp_path: Path, export: dict[str, Any]) -> None:
    folder, picture = yolo_network.write(tmp_path / "best_openvino_model", **export), yolo_network.red_rectangle()
    found = labelled(folder, picture)
    assert found.class_ids.tolist() == [1]
    assert found.scores.tolist() == [yolo_network.SCORE]
    assert is_red(found, picture)


def test_a_dynamic_network_becomes_static_by_its_size(tmp_path: Path) -> None:
    folder, picture = yolo_network.write(tmp_path / "m", dynamic=True), yolo_network.red_rectangle()
    found = resolve.configured(settings(folder, size=[64, 96]))
    assert engine.compile(found.path, found.form, engine.DeviceSettings()).size_hw == (64, 96)
    assert is_red(labelled(folder, picture, size=[64, 96]), picture)


def test_the_configuration_overrides_the_file(tmp_path: Path) -> None:
    folder, picture = yolo_network.write(tmp_path / "m"), yolo_network.red_rectangle()
    as_bgr = labelled(folder, picture, preprocessing={"colour": "BGR"})
    assert rle.decode(as_bgr.rles[0], as_bgr.size_hw)[0, 0]  # The blue frame now.
    assert labelled(folder, picture, labels={7: "square", 9: "bird"}).class_ids.tolist() == [7]
    assert len(labelled(folder, picture, score_threshold=0.9)) == 0
    assert len(labelled(folder, picture, class_thresholds={"red thing": 0.9})) == 0


def test_options_that_are_not_set_are_the_models_own(tmp_path: Path) -> None:
    chosen = settings(yolo_network.write(tmp_path / "m"))
    found = resolve.configured(chosen)
    assert options_of(chosen, found.adapter) == Options(0.25, 300, "per_class", nms_iou=0.7)
    complete = found.complete(chosen)
    assert (complete.name, complete.score_threshold, complete.nms_iou) == ("yolo_seg", 0.25, 0.7)
    assert complete.path == str(tmp_path / "m" / "best.xml")
    stickers = resolve.configured(settings(None, name="stickers"))
    assert options_of(settings(None, name="stickers"), stickers.adapter) == Options(0.05, 100, "per_class")


@pytest.mark.parametrize(
    ("model", "what", "hint"),
    [
        ({"labels": {1: "a", 2: "b", 3: "c"}}, "not as many", "each class"),
        ({"form": "original"}, "one form only", "Remove `model.form`"),
        ({"name": "geti_detr"}, "no geti_detr", "model.name"),
        ({"name": "yolo-seg"}, "no model 'yolo-seg'", "Did you mean"),
        ({"nms": "fast"}, "no such suppression", "per_class or cross_class"),
        ({"paste": "tile"}, "does not support the option paste", "model.paste"),
    ],
)
def test_a_configuration_that_contradicts_the_file_is_refused(
    tmp_path: Path, model: dict[str, Any], what: str, hint: str
) -> None:
    chosen = settings(yolo_network.write(tmp_path / "m"), **model)
    with pytest.raises(ConfigError, match=what) as refused:
        options_of(chosen, resolve.configured(chosen).adapter)
    assert hint in refused.value.hint


def test_without_a_name_and_a_path_the_error_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="names no model") as refused:
        resolve.configured(settings(None))
    assert "model.path" in refused.value.hint


def test_a_checkpoint_is_refused_with_the_way_to_a_model(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"PK")
    with pytest.raises(ModelError, match="no graph") as refused:
        resolve.configured(settings(tmp_path / "best.pt"))
    assert "segray models convert" in refused.value.hint


def test_keys_of_described_models_are_refused_for_a_model_of_the_catalogue() -> None:
    with pytest.raises(ConfigError, match="own preprocessing"):
        resolve.configured(settings(None, name="stickers", preprocessing={"colour": "BGR"}))


def test_auto_takes_a_model_of_the_catalogue_by_its_card_or_its_outputs(tmp_path: Path) -> None:
    assert resolve.configured(settings(resolve.EMBEDDED)).adapter.name == "yolact-resnet50-fpn-pytorch"
    for file in (resolve.EMBEDDED, resolve.EMBEDDED.with_suffix(".bin")):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "segray.json").unlink(missing_ok=True)
    found = resolve.configured(
        settings(tmp_path / "stickers.xml", form="converted", labels={i: f"c{i}" for i in range(10)})
    )
    assert found.name == "yolact-resnet50-fpn-pytorch"


@pytest.mark.parametrize("kind", ["described", "of the catalogue"])
def test_a_run_reads_the_network_once_before_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Reading takes a minute for a large frozen graph."""
    path = yolo_network.write(tmp_path / "m") if kind == "described" else resolve.EMBEDDED
    read, paths = engine.read, []

    def counted(file: Path) -> Any:
        paths.append(file)
        return read(file)

    monkeypatch.setattr(engine, "read", counted)
    model = resolve.configured(settings(path))
    assert model.signature() == model.signature()
    assert len(paths) == 1


# ---- workers and identity -------------------------------------------------------------------------


def test_a_worker_takes_the_description_of_the_driver(tmp_path: Path) -> None:
    """metadata.yaml may lie on the driver's machine alone."""
    folder = yolo_network.write(tmp_path / "m")
    chosen = settings(folder)
    found = resolve.configured(chosen)
    (folder / "metadata.yaml").unlink()
    there = resolve.configured(found.complete(chosen), found.description)
    assert there.fingerprint == found.fingerprint
    assert there.adapter == found.adapter
    spec = WorkerSpec(
        found.complete(chosen),
        found.fingerprint,
        DEFAULT_LIMITS,
        StorageOptions(),
        "",
        description=found.description,
    )
    assert resolve.configured(spec.model, spec.description).adapter.labels == {1: "red thing", 2: "bird"}


def test_what_the_file_says_is_part_of_the_identity(tmp_path: Path) -> None:
    def identity(folder: Path, **model: Any) -> str:
        values = {"source": {"uri": "a"}, "output": {"root": "b"}, "model": {"path": folder, **model}}
        configuration = config.validate(values, "test")
        return run.identity_of(configuration, resolve.configured(configuration.model)).fingerprint

    first = yolo_network.write(tmp_path / "a")
    same, other = (Path(shutil.copytree(first, tmp_path / name)) for name in ("b", "c"))
    metadata = other / "metadata.yaml"
    metadata.write_text(metadata.read_text("utf-8").replace("bird", "fish"), "utf-8")
    assert identity(first) == identity(same) == identity(first, score_threshold=0.25, precision="f32")
    assert len({identity(first), identity(other), identity(first, nms_iou=0.5), identity(first, size=[64, 96])}) == 4


# ---- commands -------------------------------------------------------------------------------------


def test_bench_takes_a_model_by_its_path(tmp_path: Path) -> None:
    assert runner.model_of(None, None, None) == (runner.REFERENCE_MODEL, None)
    assert runner.model_of("best_openvino_model", None, None) == ("auto", "best_openvino_model")
    with pytest.raises(ConfigError, match="--model names"):
        runner.model_of("a", "stickers", None)
    folder = yolo_network.write(tmp_path / "m")
    workload = Workload(str(tmp_path), (), {"name": "auto", "path": str(folder), "max_detections": 20}, 1)
    _, adapter, form, options = workload.compile_model()
    assert (adapter.name, form.image.size_hw, options.max_detections) == ("yolo_seg", (64, 96), 20)


def test_rows_from_tiles_are_exported_evaluated_compared_and_selected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, labels, truth = yolo_network.write(tmp_path / "m"), str(tmp_path / "labels"), str(tmp_path / "truth.json")
    (tmp_path / "photos").mkdir()
    for number, size_hw in enumerate(((96, 160), (48, 80))):
        Image.fromarray(yolo_network.red_rectangle(size_hw)).save(tmp_path / "photos" / f"{number}.png")
    values = {
        "source": {"uri": str(tmp_path / "photos"), "tiles": {"size": 64, "overlap": 0.25, "whole": True}},
        "output": {"root": labels},
        "model": {"path": str(folder), "precision": "f32"},
    }
    chosen = config.validate(values, "test")
    summary = run.label(chosen, Notes(), lambda spec, _: InProcess(*worker_spec.build(spec, "CPU", 1)))
    assert summary.images == {"ok": 2}
    assert main.run(["export", labels, truth, "--to", "coco"]) == 0
    capsys.readouterr()
    assert main.run(["evaluate", labels, "--truth", truth]) == 0
    assert "mask AP 1.000" in capsys.readouterr().out
    assert main.run(["diff", labels, labels, "--fail-if", "lost>0%"]) == 0
    assert main.run(["select", labels, str(tmp_path / "picked.json"), "--take", "random=1"]) == 0


@pytest.mark.integration
@pytest.mark.usefixtures("shared_ray")
def test_three_commands_of_the_page_on_yolo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's commands as they stand; the first is Ultralytics' own."""
    page = (DOCS / "yolo.md").read_text("utf-8")
    commands = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)[0].splitlines()
    assert [line.split()[0] for line in commands] == ["yolo", "segray", "segray"]
    monkeypatch.chdir(tmp_path)
    yolo_network.write(tmp_path / "best_openvino_model")
    picture = yolo_network.red_rectangle()
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number}.png")
    inspected = here(*commands[1].split()[1:])
    assert inspected.returncode == 0, inspected.stderr
    assert yaml.safe_load(inspected.stdout[inspected.stdout.index("model:") :]) == {
        "model": {"path": "best_openvino_model"}
    }
    done = command(*commands[2].split()[1:], "--json")
    assert done.returncode == 0, done.stderr
    rows = segray.scan("labels").to_table(["class_name", "class_id", "score", "class"]).to_pylist()
    assert rows == [{"class_name": "red thing", "class_id": 1, "score": 0.875, "class": "red_thing"}] * 3
    record = json.loads(Path("labels/_segray/label_set.json").read_text())
    assert record["model"]["description"]["family"] == "yolo_seg"
    planned = here("plan", "photos", "others", "--model", "best_openvino_model", "--json")
    assert planned.returncode == 0, planned.stderr
    other = yolo_network.write(tmp_path / "other", names=("red thing", "fish"))
    refused = here("label", "photos", "labels", "--model", str(other))
    assert refused.returncode == 2
