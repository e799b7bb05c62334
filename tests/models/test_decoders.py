"""Decoders of one's own: a stranger's class, from the page in the docs to rows, and all that may be wrong with it."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_network
import yaml
import yolo_network
from command import segray as command
from PIL import Image

import segray
from segray import config, rle
from segray.cli import ray_jobs
from segray.cli.models import describe_inspection
from segray.conversion import inspect_model
from segray.errors import ConfigError, ImageError
from segray.execution import model_files, run
from segray.execution.model_loading import options_of
from segray.execution.worker_spec import WorkerSpec, build
from segray.instances import Instances
from segray.limits import DEFAULT_LIMITS
from segray.models import decoders, engine, resolve
from segray.models.adapters.adapter import Options
from segray.storage.options import StorageOptions

PAGE = Path(__file__).parents[2] / "docs" / "models" / "your-own-decoder.md"
NAMES = {1: "red thing", 2: "bird"}
SIZE_HW = (48, 80)
LOW = Options(0.1)


def example(kind: str) -> str:
    """The first block of the page in this language."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if not str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            continue
        del sys.modules[name]
        decoders._imported.pop(name, None)


def settings(**model: Any) -> config.ModelSettings:
    values = {"source": {"uri": "a"}, "output": {"root": "b"}, "model": {"labels": NAMES, **model}}
    return config.validate(values, "test").model


def of_page(**model: Any) -> resolve.ResolvedModel:
    """The example of the page on a network of its kind."""
    Path("sparse_inst.py").write_text(example("python"), "utf-8")
    path = sparse_network.write(Path("model.xml"))
    return resolve.configured(settings(path=str(path), adapter="sparse_inst:SparseInst", **model))


def of_source(source: str, **model: Any) -> resolve.ResolvedModel:
    """A class Own with these methods in place of those that do as they should."""
    Path("own.py").write_text(f"{_OWN}\nclass Own(Fine):\n{source or '    pass'}\n", "utf-8")
    path = Path("model.xml")
    if not path.exists():
        sparse_network.write(path)
    return resolve.configured(settings(path=str(path), adapter="own:Own", **model))


_OWN = """
import numpy as np
from segray import Instances, rle
from segray.models.description import Description

class Fine:
    def describe(self, signature, metadata):
        return Description(outputs={"scores": "scores", "masks": 1})

    def prepare(self, image_rgb):
        return np.zeros((*self.description.size_hw, 3), np.uint8)

    def decode(self, outputs, size_hw, options):
        return self.result(np.zeros((2, *size_hw), bool) | (np.arange(size_hw[1]) < 7))

    def result(self, masks):
        return {"classes": np.array([1, 0]), "scores": np.array([0.5, 0.75]), "masks": masks}
"""


def labelled(model: resolve.ResolvedModel, picture: np.ndarray, chosen: config.ModelSettings) -> Instances:
    network = engine.compile(model.path, model.form, engine.DeviceSettings(precision="f32", threads=1))
    with network.infer(model.adapter.prepare(model.form, picture)) as outputs:
        return model.adapter.decode(outputs, (picture.shape[0], picture.shape[1]), options_of(chosen, model.adapter))


def decoded(model: resolve.ResolvedModel, options: Options = LOW) -> Instances:
    outputs = {"scores": np.zeros((1, 100, 2), np.float32), "masks": np.zeros((1, 100, 16, 24), np.float32)}
    return model.adapter.decode(outputs, SIZE_HW, options)


# ---- the page -------------------------------------------------------------------------------------


def test_the_example_of_the_page_has_40_lines_and_finds_the_red_thing() -> None:
    assert len(example("python").strip().splitlines()) <= 40
    model, picture = of_page(), yolo_network.red_rectangle()
    assert (model.name, model.adapter.defaults.score_threshold) == ("SparseInst", 0.3)
    instances = labelled(model, picture, settings(path="model.xml", adapter="sparse_inst:SparseInst"))
    assert instances.class_ids.tolist() == [1]
    assert instances.scores[0] == pytest.approx(sparse_network.SCORE, abs=0.02)
    mask = rle.decode(instances.rles[0], instances.size_hw)
    assert (mask != (picture[..., 0] == 255)).mean() < 0.05
    y, x = np.nonzero(mask)
    assert instances.boxes_xyxy[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.integration
@pytest.mark.usefixtures("shared_ray")
def test_the_page_from_inspection_to_rows(working_directory: Path) -> None:
    """The commands and the configuration of the page as they stand."""
    Path("sparse_inst.py").write_text(example("python"), "utf-8")
    sparse_network.write(Path("sparseinst.xml"))
    text = example("yaml").replace("sparseinst.onnx", "sparseinst.xml")
    Path("run.yaml").write_text(text, "utf-8")
    Path("photos").mkdir()
    for number in range(3):
        Image.fromarray(yolo_network.red_rectangle()).save(f"photos/{number}.png")
    inspect, label = example("sh").replace("sparseinst.onnx", "sparseinst.xml").splitlines()
    inspected = command(*inspect.split()[1:])
    assert inspected.returncode == 0, inspected.stderr
    shown = yaml.safe_load(inspected.stdout[inspected.stdout.index("model:") :])["model"]
    assert shown.items() >= {"path": "sparseinst.xml", "adapter": "sparse_inst:SparseInst"}.items()
    done = command(*label.split()[1:], "--json")
    assert done.returncode == 0, done.stderr
    rows = segray.scan("labels").to_table(["class_name", "class_id"]).to_pylist()
    assert rows == [{"class_name": "bolt", "class_id": 1}] * 3
    record = json.loads(Path("labels/_segray/label_set.json").read_text())
    assert record["model"]["description"]["extra"]["decoder"] == {"class": "sparse_inst:SparseInst", "version": "1"}
    # A fault in one method costs the images, not the run, and names the class and the line.
    broken = example("python").replace("image_rgb, self", "image_rgb[:, :, 9], self")
    Path("sparse_inst.py").write_text(broken, "utf-8")
    failed = command(*label.split()[1:], "--set", "output.root=other", "--json")
    assert failed.returncode == 3, failed.stderr
    table = segray.images("other").to_table(["status", "stage", "message"]).to_pylist()
    assert [(row["status"], row["stage"]) for row in table] == [("failed", "infer")] * 3
    line = next(i for i, text in enumerate(broken.splitlines(), 1) if "[:, :, 9]" in text)
    assert f"decoder sparse_inst:SparseInst, prepare, sparse_inst.py, line {line}" in table[0]["message"]
    assert "IndexError" in table[0]["message"]


# ---- descriptions ---------------------------------------------------------------------------------


def test_what_a_decoder_leaves_out_follows_from_the_ports() -> None:
    description = of_source("").description
    assert description is not None
    assert (description.family, description.input_name, description.size_hw) == ("Own", "input_image", (64, 96))
    assert description.outputs == {"scores": 0, "masks": 1}
    assert description.extra["decoder"].keys() == {"class", "sha256"}
    everything = of_source("    def describe(self, s, m): return Description(labels=['a', 'b'])").description
    assert everything is not None
    assert (everything.outputs, everything.labels) == ({"scores": 0, "masks": 1}, {1: "a", 2: "b"})


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("1 / 0", "failed in describe"),
        ("exit(3)", "failed in describe"),
        ("'SparseInst'", "neither a Description nor None"),
        ("None", "none of its own"),
        ("Description(outputs={'masks': 'mask'})", "no output 'mask'"),
        ("Description(outputs={'masks': 2})", "no output 2"),
        ("Description(labels={1: 'a', 2: 'a'})", "Two classes"),
        ("Description(labels='ab')", "labels is neither"),
        ("Description(size_hw=640)", "size_hw is neither"),
        ("Description(mean=(1, 2))", "mean is neither three numbers"),
        ("Description(scale=(0, 1, 1))", "scale has a 0"),
        ("Description(colour='rgb')", "colour is none of RGB, BGR"),
        ("Description(thresholds={'nms_iou': 0.5})", "thresholds has other keys"),
        ("Description(thresholds={'score_threshold': 7})", "score_threshold is no number"),
        ("Description(extra={'a': np.zeros(2)})", "no mapping of JSON values"),
    ],
)
def test_a_wrong_description_is_an_error_that_names_the_decoder(answer: str, what: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(what)) as refused:
        of_source(f"    def describe(self, signature, metadata): return {answer}")
    assert "own:Own" in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("source", "adapter", "what"),
    [
        ("import nothing_of_this_name\n", "bad:Own", "failed in import"),
        ("raise SystemExit\n", "bad:Own", "failed in import"),
        ("def broken(:\n", "bad:Own", "bad.py, line 1"),
        ("class Other: pass\n", "bad:Own", "no class 'Own'"),
        ("class Own: pass\n", "bad:Own", "no describe, prepare, decode"),
        ("Own = 7\n", "bad:Own", "no class with describe"),
        (_OWN + "class Own(Fine):\n    def __init__(self, a): pass\n", "bad:Own", r"failed in Own\(\)"),
        (_OWN + "class Own(Fine):\n    def version(self): return 1\n", "bad:Own", "version is a function"),
        ("", "missing:Own", "no module 'missing'"),
        ("", "statistics:Own", "no class 'Own'"),
        (_OWN + "class yolo_seg(Fine): pass\n", "bad:yolo_seg", "of its own"),
    ],
)
def test_a_class_that_cannot_be_used_is_an_error_in_words(source: str, adapter: str, what: str) -> None:
    Path("bad.py").write_text(source)
    with pytest.raises(ConfigError) as refused:
        resolve.configured(settings(path=str(sparse_network.write(Path("model.xml"))), adapter=adapter))
    assert re.search(what, str(refused.value))


@pytest.mark.parametrize("adapter", ["own", "own.py:Own", "a b:C", "own:", 7, "../own:Own"])
def test_the_key_takes_a_class_in_a_module_alone(adapter: object) -> None:
    with pytest.raises(ConfigError, match=r"model\.adapter"):
        settings(adapter=adapter)


def test_a_model_of_the_catalogue_takes_no_decoder() -> None:
    with pytest.raises(ConfigError, match="stickers has an adapter"):
        resolve.configured(settings(name="stickers", adapter="own:Own"))


# ---- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("exit(3)", "SystemExit: 3"),
        ("None", r"object \(\)"),
        ("image_rgb", r"uint8 \(48, 80, 3\)"),
        ("np.zeros((64, 96, 3), np.float32)", r"float32 \(64, 96, 3\)"),
        ("np.zeros((64, 96), np.uint8)", r"uint8 \(64, 96\)"),
        ("{'other': image_rgb}", "arrays other"),
    ],
)
def test_a_fault_in_prepare_is_a_fault_of_the_image(returned: str, found: str) -> None:
    model = of_source(f"    def prepare(self, image_rgb): return {returned}")
    with pytest.raises(ImageError) as fault:
        model.adapter.prepare(model.form, yolo_network.red_rectangle())
    assert (fault.value.stage, "own:Own, prepare" in fault.value.where) == ("infer", True)
    assert re.search(found, fault.value.found)


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("exit(3)", "SystemExit: 3"),
        ("None", "NoneType"),
        ("{'scores': [0.5], 'masks': masks[:1]}", "keys scores, masks"),
        ("{'classes': [0], 'scores': [0.5], 'masks': masks[:1], 'areas': [1]}", "areas"),
        ("{'classes': [0, 1], 'scores': [0.5], 'masks': masks[:1]}", r"int64 \(2,\)"),
        ("{'classes': [0.5], 'scores': [0.5], 'masks': masks[:1]}", "float64"),
        ("{'classes': [2], 'scores': [0.5], 'masks': masks[:1]}", "class 2 in row 0"),
        ("{'classes': [-1], 'scores': [0.5], 'masks': masks[:1]}", "class -1"),
        ("{'classes': [0], 'scores': [np.nan], 'masks': masks[:1]}", "nan in row 0"),
        ("{'classes': [0], 'scores': [1.5], 'masks': masks[:1]}", "1.5"),
        ("{'classes': [0], 'scores': 0.5, 'masks': masks[:1]}", "int64"),
        ("{'classes': [0], 'scores': [0.5], 'masks': masks[:1].astype(float)}", "float64"),
        ("{'classes': [0], 'scores': [0.5], 'masks': masks[:1, :9]}", r"bool \(1, 9, 80\)"),
        ("{'classes': [0], 'scores': [0.5], 'masks': masks[:1], 'boxes_xyxy': [[0, 0, 1, np.inf]]}", "inf"),
        ("{'classes': [0], 'scores': [0.5], 'masks': masks[:1], 'boxes_xyxy': [0, 0, 1, 1]}", r"\(4,\)"),
        ("Instances.empty((9, 9))", r"\(9, 9\)"),
        ("instances(7, 0.5, '0')", "7 in row 0"),
        ("instances(1, np.nan, '0')", "nan"),
        ("instances(1, 0.5, '00000')", "'00000' in row 0"),
    ],
)
def test_a_fault_in_decode_is_a_fault_of_the_image(result: str, found: str) -> None:
    made = """
    def instances(self, class_id, score, counts):
        columns = np.array([class_id], np.int32), np.array([score], np.float32), np.ones((1, 4), np.float32)
        return Instances(*columns, (counts,), (48, 80))
    """
    model = of_source(f"{made}\n    def result(self, masks): return {result.replace('instances(', 'self.instances(')}")
    with pytest.raises(ImageError) as fault:
        decoded(model)
    assert (fault.value.stage, "own:Own, decode" in fault.value.where) == ("postprocess", True)
    assert re.search(found, fault.value.found)


def test_a_decoder_cannot_write_into_the_engines_arrays() -> None:
    model = of_source("    def decode(self, outputs, size_hw, options): outputs['scores'] += 1")
    with pytest.raises(ImageError, match="failed in decode") as fault:
        decoded(model)
    assert "read-only" in fault.value.found


def test_what_a_decoder_prints_is_no_result_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    describe = "def describe(self, *_):\n        print('in describe')\n        return super().describe(*_)"
    of_source(f"    print('in import')\n    def __init__(self): print('in class')\n    {describe}")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert {"in import", "in class", "in describe"} <= set(printed.err.splitlines())


def test_instances_of_a_decoder_are_cut_to_scores_and_image() -> None:
    values = "np.array([1], np.int32), np.array([1.0005], np.float32), np.array([[-5, 2, 99, 60]], np.float32)"
    source = f"    def result(self, masks): return Instances({values}, (rle.encode(masks[0]),), (48, 80))"
    cut = decoded(of_source(source))
    assert cut.scores.tolist() == [1]
    assert cut.boxes_xyxy.tolist() == [[0, 2, 80, 48]]


def test_thresholds_limits_and_order_are_segrays() -> None:
    model = of_source("")
    assert decoded(model).class_ids.tolist() == [1, 2]
    assert decoded(model).scores.tolist() == [0.75, 0.5]
    assert decoded(model, Options(0.6)).class_ids.tolist() == [1]
    assert decoded(model, Options(0.6, class_thresholds={2: 0.2})).class_ids.tolist() == [1, 2]
    assert decoded(model, Options(0.1, max_detections=1)).class_ids.tolist() == [1]
    assert decoded(model, Options(0.1, min_area=48 * 7 + 1)).class_ids.tolist() == []
    assert rle.area(decoded(model).rles).tolist() == [48 * 7] * 2
    assert decoded(model).boxes_xyxy.tolist() == [[0, 0, 7, 48]] * 2
    lowest = of_source("    def decode(self, o, s, options): raise ValueError(options.score_threshold)")
    with pytest.raises(ImageError) as fault:
        decoded(lowest, Options(0.6, class_thresholds={2: 0.25}))
    assert fault.value.found == "ValueError: 0.25"


@pytest.mark.parametrize(
    "result",
    ["{'classes': [], 'scores': [], 'masks': []}", "{'classes': [], 'scores': [], 'masks': masks[:0]}",
     "Instances.empty((48, 80))"],
)  # fmt: skip
def test_an_image_without_instances_is_empty(result: str) -> None:
    assert len(decoded(of_source(f"    def result(self, masks): return {result}"))) == 0


def test_the_configuration_reaches_the_decoder() -> None:
    source = "    def prepare(self, image_rgb): raise ValueError(f'{self.description.labels} {self.description.mean}')"
    model = of_source(source, labels={7: "a", 3: "b"}, preprocessing={"mean": [1, 2, 3]})
    with pytest.raises(ImageError) as fault:
        model.adapter.prepare(model.form, yolo_network.red_rectangle())
    assert fault.value.found == "ValueError: {3: 'b', 7: 'a'} (1.0, 2.0, 3.0)"


@pytest.mark.parametrize("key", ["resize", "pad"])
def test_a_way_of_resizing_is_refused_since_the_decoder_resizes(key: str) -> None:
    with pytest.raises(ConfigError, match="own:Own resizes images itself") as refused:
        of_source("", preprocessing={key: {"resize": "stretch", "pad": 3}[key]})
    assert refused.value.where == f"model.preprocessing.{key}"


def test_inspection_says_that_the_decoder_resizes() -> None:
    of_page()
    text = describe_inspection(inspect_model.inspect(Path("model.xml"), "sparse_inst:SparseInst"))
    assert "by prepare of the decoder" in text
    assert "  adapter: sparse_inst:SparseInst" in text


def test_a_loaded_model_takes_a_decoder() -> None:
    of_page()
    model = segray.load_model("model.xml", adapter="sparse_inst:SparseInst", labels=NAMES)
    assert model(yolo_network.red_rectangle()).class_names.tolist() == ["red thing"]


# ---- the code -------------------------------------------------------------------------------------


def identity(model: resolve.ResolvedModel) -> str:
    configuration = config.validate(
        {"source": {"uri": "a"}, "output": {"root": "b"}, "model": {"path": "model.xml", "labels": NAMES}}, "test"
    )
    return run.identity_of(configuration, model).fingerprint


def test_a_changed_decoder_is_another_label_set_unless_its_version_says_otherwise() -> None:
    first, changed = identity(of_source("    a = 1")), identity(of_source("    a = 2"))
    assert len({first, changed, identity(of_source("    a = 1"))}) == 2
    versions = [identity(of_source(f"    version = {version}; a = {a}")) for version, a in ((1, 1), (1, 2), (2, 2))]
    assert versions[0] == versions[1] != versions[2]


def test_a_changed_module_is_imported_again() -> None:
    for number in (1, 2):
        model = of_source(f"    def result(self, masks): raise ValueError({number})")
        with pytest.raises(ImageError) as fault:
            decoded(model)
        assert fault.value.found == f"ValueError: {number}"


def test_a_worker_gets_the_code_of_the_driver(working_directory: Path, tmp_path_factory: Any) -> None:
    """On a node without the folder of the driver, a module with a helper and a package with data."""
    package = working_directory / "pack" / "age"
    package.mkdir(parents=True)
    (working_directory / "pack" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("import helper\nfrom .own import Own\n")
    (package / "own.py").write_text(f"from pathlib import Path\n{_OWN}\nclass Own(Fine):\n    version = READ\n".replace(
        "READ", "Path(__file__).with_name('version.txt').read_text()"))  # fmt: skip
    (package / "version.txt").write_text("17")
    (working_directory / "helper.py").write_text("import further, json\n")
    (working_directory / "further").mkdir()
    (working_directory / "further" / "__init__.py").write_text("")
    (working_directory / "unused.py").write_text("1 / 0")
    decoder = decoders.by_reference("pack.age:Own")
    assert set(decoder.code.files) == {
        "pack/__init__.py", "pack/age/__init__.py", "pack/age/own.py", "pack/age/version.txt", "helper.py",
        "further/__init__.py",
    }  # fmt: skip
    assert decoder.identity == {"class": "pack.age:Own", "version": "17"}
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pack", "helper", "further")]:
        del sys.modules[name]
        decoders._imported.pop(name, None)
    home = tmp_path_factory.mktemp("node")
    there = decoders.on_this_machine(decoder.code, lambda code: model_files.received_code(code, home))
    assert there.identity == decoder.identity
    assert str(sys.modules["pack.age.own"].__file__).startswith(str(home))
    assert not list(home.rglob("*.pyc"))


def test_a_worker_that_cannot_import_the_decoder_names_its_machine(working_directory: Path) -> None:
    decoder = of_source("").decoder
    assert decoder is not None
    absent = {"own.py": b"import a_package_of_the_driver_alone\n" + decoder.code.files["own.py"]}
    spec = WorkerSpec(
        settings(path="model.xml", adapter="own:Own"), "", DEFAULT_LIMITS, StorageOptions(), "",
        decoder=replace(decoder.code, files=absent),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"own:Own failed in import") as refused:
        build(spec, "CPU", 1)
    assert refused.value.where == f"{platform.node()}: own.py, line 1"
    assert "No module named 'a_package_of_the_driver_alone'" in refused.value.found


def test_a_submitted_job_has_the_module_in_its_folder(working_directory: Path) -> None:
    of_source("")
    job = working_directory / "job"
    job.mkdir()
    ray_jobs._write_decoder("own:Own", job)
    ray_jobs._write_decoder(None, job)
    assert [file.name for file in job.iterdir()] == ["own.py"]
    assert (job / "own.py").read_bytes() == Path("own.py").read_bytes()


@pytest.mark.parametrize("make", [lambda folder: (folder / "big.bin").write_bytes(bytes(5 * 2**20)),
                                  lambda folder: [(folder / f"{i}.py").touch() for i in range(1001)]])  # fmt: skip
def test_a_package_that_is_too_large_is_refused(working_directory: Path, make: Callable[[Path], Any]) -> None:
    (working_directory / "pack").mkdir()
    (working_directory / "pack" / "__init__.py").write_text("")
    make(working_directory / "pack")
    with pytest.raises(ConfigError, match="too large"):
        decoders.by_reference("pack:Own")


def test_a_module_with_a_name_of_python_is_refused(working_directory: Path) -> None:
    (working_directory / "json.py").write_text(_OWN)
    with pytest.raises(ConfigError, match="'json' already"):
        decoders.by_reference("json:Fine")


# ---- installed packages ---------------------------------------------------------------------------


def install(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, source: str, module: str = "their_own") -> None:
    """Put a package on the path that registers the class Own of its module."""
    folder.mkdir()
    (folder / f"{module}.py").write_text(f"{_OWN}\nclass Own(Fine):\n{source}\n")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[segray.adapters]\n{name} = {module}:Own\n")
    monkeypatch.syspath_prepend(str(folder))


def test_a_registered_decoder_is_asked_by_auto_and_by_inspect(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(working_directory / "site", "theirs", monkeypatch, "    version = 3")
    path = sparse_network.write(Path("model.xml"))
    for name in ("auto", "theirs"):
        model = resolve.configured(settings(path=str(path), name=name))
        assert (model.name, model.decoder is not None and model.decoder.code.reference) == ("theirs", "their_own:Own")
    inspection = inspect_model.inspect(path)
    assert inspection.is_decoded
    assert inspection.description is not None
    assert inspection.description.family == "theirs"
    with pytest.raises(ConfigError, match="no model 'their'"):
        resolve.configured(settings(path=str(path), name="their"))


def test_two_answers_are_an_error_that_lists_both(working_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(working_directory / "site", "theirs", monkeypatch, "    def describe(self, s, m): return Description()")
    folder = yolo_network.write(working_directory / "yolo")
    for ask in (lambda: resolve.configured(settings(path=str(folder))), lambda: inspect_model.inspect(folder)):
        with pytest.raises(ConfigError, match="several families") as refused:
            ask()
        assert refused.value.found == "yolo_seg, theirs"
    assert resolve.configured(settings(path=str(folder), name="yolo_seg")).decoder is None
    assert resolve.configured(settings(path=str(folder), name="theirs")).name == "theirs"


def test_a_registered_decoder_that_cannot_be_imported_is_named(
    working_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(working_directory / "site", "theirs", monkeypatch, "    1 / 0")
    path = sparse_network.write(Path("model.xml"))
    with pytest.raises(ConfigError, match="their_own:Own failed in import"):
        resolve.configured(settings(path=str(path)))
    install(working_directory / "more", "theirs", monkeypatch, "    pass", "others")
    with pytest.raises(ConfigError, match="registered twice") as refused:
        resolve.configured(settings(path=str(path)))
    assert refused.value.found == "others 1.0, their_own 1.0"
