from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import segray


def test_every_public_name_is_there() -> None:
    assert all(getattr(segray, name) is not None for name in segray.__all__)


def test_nothing_public_goes_unlisted() -> None:
    """What segray defines and binds here is in __all__; submodules are bound by whoever imports them."""
    ours = {name for name, value in vars(segray).items() if getattr(value, "__module__", "").startswith("segray")}
    assert {name for name in ours if not name.startswith("_")} <= set(segray.__all__)


@pytest.mark.integration
def test_no_submodule_takes_a_public_functions_name() -> None:
    code = "import segray, segray.cli.main, segray.execution.run; print(callable(segray.scan), callable(segray.images))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_decoding_loads_neither_ray_nor_storage() -> None:
    code = "import sys, segray; print({'ray', 'deltalake', 'fsspec', 'openvino'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.integration
@pytest.mark.parametrize("module", ["models.engine", "bench.variants"])
def test_openvino_tells_nobody_that_it_runs(module: str) -> None:
    code = f"""
import sys
import segray.{module}
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__, "openvino_telemetry" in sys.modules)
import openvino_telemetry
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"]


def test_every_public_name_is_listed_before_it_is_used() -> None:
    """So that a prompt completes it."""
    code = "import segray; print(*dir(segray))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {"Instances", "LabelSet", "Model", "decode", "errors", "images", "instances", "label", "load_model",
             "open_label_set", "rle", "scan", "sql"}  # fmt: skip
    assert names | {"__version__"} == set(segray.__all__)
    assert names <= set(done.stdout.split())


@pytest.mark.integration
def test_a_type_checker_knows_the_public_names_and_no_others(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    names = ("segray.scan", "segray.images", "segray.sql", "segray.decode", "segray.Instances", "segray.rle.area",
             "segray.errors.UserError", "segray.instances.image_id", "segray.load_model", "segray.label",
             "segray.open_label_set", "segray.Model", "segray.LabelSet", "segray.nothing")  # fmt: skip
    program.write_text("import segray\n" + "".join(f"{name}\n" for name in names))
    command = [sys.executable, "-m", "mypy", "--follow-imports=skip", "--config-file="]
    env = {**os.environ, "MYPYPATH": str(Path(segray.__file__).parents[1])}
    cache = ["--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run([*command, *cache, str(program), segray.__file__], capture_output=True, text=True, env=env)
    found = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith(str(program))]
    assert found == ['error: Module has no attribute "nothing"  [attr-defined]'], done.stdout + done.stderr


def test_importing_segray_loads_no_library() -> None:
    code = "import sys, segray; print({'numpy', 'numba', 'pyarrow', 'typing'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.integration
@pytest.mark.parametrize(
    "code",
    ["from segray import rle; rle.decode", "import segray.rle; segray.rle.decode", "import segray; segray.rle.decode",
     "from segray import decode; decode.__call__",
     "from segray import *; scan, images, sql, rle, Instances, Model, LabelSet, load_model, open_label_set, label"],
)  # fmt: skip
def test_public_names_are_found_in_every_way(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)
