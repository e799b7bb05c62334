"""The public surface: every name and signature, and documentation of each.

SEGRAY_WRITE_DOCS=1 writes tests/api/surface.txt. Its changes are what a changelog must tell.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import segray

SURFACE = Path(__file__).with_name("surface.txt")
CLASSES = ("Instances", "LabelSet", "Model")
# Older names, and what other modules of segray call.
WITHOUT_EXAMPLE = {
    "Instances.empty", "Instances.take", "Instances.with_image", "Instances.drawn_at", "Model.run_keys",
    "decode", "images", "scan", "sql",
}  # fmt: skip


def members(name: str) -> Iterator[tuple[str, Any]]:
    """Yield the public methods, properties and constructors of a class, and how it is called or indexed."""
    for member, value in sorted(vars(getattr(segray, name)).items()):
        is_public = not member.startswith("_") or member in ("__call__", "__getitem__", "__iter__")
        if is_public and (callable(value) or isinstance(value, property | classmethod)):
            yield f"{name}.{member}", value


def functions() -> Iterator[tuple[str, Any]]:
    """Yield the public functions, and the members of the public classes."""
    for name in sorted(set(segray.__all__) - {"__version__"}):
        value = getattr(segray, name)
        if name in CLASSES:
            yield from members(name)
        elif not isinstance(value, ModuleType):
            yield name, value


class Annotation(str):
    """An annotation as the source has it, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def signature(function: Any) -> inspect.Signature:
    plain = inspect.signature(function)
    parameters = [
        parameter
        if parameter.annotation is parameter.empty
        else parameter.replace(annotation=Annotation(parameter.annotation))
        for parameter in plain.parameters.values()
    ]
    return plain.replace(parameters=parameters, return_annotation=Annotation(plain.return_annotation))


def described(name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"{name} -> {inspect.signature(value.fget).return_annotation}"
    function = value.__func__ if isinstance(value, classmethod) else value
    return f"{name}{signature(function)}"


def surface() -> str:
    lines = [described(name, value) for name, value in functions()]
    for name in CLASSES:
        if is_dataclass(getattr(segray, name)):
            lines += [f"{name}: {field}: {kind}" for field, kind in getattr(segray, name).__annotations__.items()]
    errors = [value for _, value in sorted(vars(segray.errors).items()) if inspect.isclass(value)]
    lines += [f"errors.{error.__name__}({error.__base__.__name__}) exit {error.exit_code}" for error in errors]
    return "\n".join([*sorted(segray.__all__), "", *lines]) + "\n"


def test_names_and_signatures_are_those_that_were_agreed() -> None:
    if os.environ.get("SEGRAY_WRITE_DOCS"):
        SURFACE.write_text(surface(), "utf-8")
    assert surface() == SURFACE.read_text("utf-8")


@pytest.mark.parametrize(("name", "value"), list(functions()), ids=[name for name, _ in functions()])
def test_each_function_says_what_it_does_with_arguments_and_an_example(name: str, value: Any) -> None:
    text = inspect.getdoc(value)
    assert text
    if isinstance(value, property) or name in WITHOUT_EXAMPLE or name == "Instances.__iter__":
        return
    function = value.__func__ if isinstance(value, classmethod) else value
    assert "Example:" in text, name
    for parameter in list(inspect.signature(function).parameters)[name.startswith(CLASSES) :]:
        assert parameter in text or "arguments are those of" in text, (name, parameter)


def test_importing_segray_takes_less_than_a_third_of_a_second_of_cpu() -> None:
    code = "import time; a = time.process_time(); import segray; print(time.process_time() - a)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.3


def test_reading_a_label_set_loads_no_model_and_no_cluster() -> None:
    code = "import sys, segray; segray.LabelSet; print({'ray', 'openvino', 'numba', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_loading_a_model_loads_no_cluster_and_no_tables() -> None:
    code = "import sys, segray; segray.load_model; print({'ray', 'deltalake', 'pyarrow', 'duckdb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
