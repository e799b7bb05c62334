"""House rules that neither import-linter nor ruff checks: imports by name, and docstrings of modules."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segray"

# Libraries that ruff's rule on imports does not see, since they are imported by name.
IMPORTED_BY_NAME = {
    "ray": {"cli.ray_jobs", "monitoring.prometheus"},
}
HEAVY = ("ray", "openvino", "cv2", "torch", "s3fs", "fsspec", "deltalake", "numba", "duckdb", "polars", "nncf", "PIL")


@cache
def modules(package: Path = PACKAGE) -> dict[str, Path]:
    found = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = path
    assert found, f"{package} holds no modules"
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported_by_name(path: Path) -> set[str]:
    """Return the libraries that a file imports by import_module with a literal name."""
    if "import_module" not in path.read_text():
        return set()
    calls = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    named = [call for call in calls if ast.unparse(call.func).endswith("import_module")]
    return {str(word.value).split(".")[0] for call in named for word in call.args if isinstance(word, ast.Constant)}


def users(library: str, package: Path = PACKAGE) -> set[str]:
    """Return the modules that import a library by name."""
    return {name for name, path in modules(package).items() if library in imported_by_name(path)}


@pytest.mark.parametrize("library", HEAVY)
def test_a_heavy_library_is_imported_by_name_where_it_is_said_and_nowhere_else(library: str) -> None:
    assert users(library) == IMPORTED_BY_NAME.get(library, set())


def test_an_import_by_name_elsewhere_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("OPENVINO = 'openvino'")
    (tmp_path / "foreign.py").write_text("importlib.import_module('openvino.opset13')")
    assert users("openvino", tmp_path) == {"foreign"}


def silent(package: Path = PACKAGE) -> set[str]:
    """Return the modules whose docstring does not begin with a sentence of four words or more."""
    firsts = {name: (ast.get_docstring(parsed(path)) or "").split("\n\n")[0] for name, path in modules(package).items()}
    return {name for name, first in firsts.items() if len(first.split()) < 4 or not first.endswith((".", ":"))}


def test_every_module_says_what_it_knows() -> None:
    assert silent() == set()


def test_a_module_that_says_nothing_would_be_noticed(tmp_path: Path) -> None:
    texts = {
        "none": "import os",
        "empty": "' '",
        "word": "'Helpers.'",
        "late": "import os\n'Read all the files.'",
        "good": "'Read all the files.'",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    assert silent(tmp_path) == {"none", "empty", "word", "late"}


# ---- private names --------------------------------------------------------------------------------

# Public in spite of its name (CPython documents it), and a function of the C library.
NOT_PRIVATE = {"os._exit", "libc._exit"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def own_names(tree: ast.Module) -> set[str]:
    """Return the private names that a module gives to its functions, classes, variables and attributes."""
    found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_of_self(node)}
    return found | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def is_of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def foreign_private_names(path: Path) -> set[str]:
    """Return the private names of others that a file reads or imports."""
    tree = parsed(path)
    own, found = own_names(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names if any(map(is_private, each.name.split(".")))}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("segray"):
            names = [f"{node.module}.{each.name}" for each in node.names]
            found |= {name for name in names if any(map(is_private, name.split(".")))}
    own_imports = {name for name in found if name.startswith(("segray.", "_typeshed."))}
    return found - own_imports - NOT_PRIVATE


def test_private_names_of_libraries_are_used_in_one_module() -> None:
    found = {name: foreign_private_names(path) for name, path in modules().items()}
    assert {name for name, names in found.items() if names} == {"_compat"}, found


@pytest.mark.parametrize(
    "line",
    ["import ray._private.state", "from ray._private import worker", "from ray import _raylet",
     "files._strip_protocol(u)", "threading._register_atexit(print)", "x = state._private.y"],
)  # fmt: skip
def test_a_private_name_of_a_library_elsewhere_would_be_noticed(tmp_path: Path, line: str) -> None:
    file = tmp_path / "module.py"
    file.write_text(f"import os\nfrom segray import _compat\nclass A:\n  def f(self): self._mine = self\n{line}\n")
    assert len(foreign_private_names(file)) == 1
