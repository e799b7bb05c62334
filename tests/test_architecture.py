"""The house rules that a machine can check: what imports what, and where heavy libraries live."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segray"

HOMES = {
    "ray": {"cluster", "metrics", "submit", "bench.ray_data"},
    "openvino": {"openvino"},
    "cv2": {"opencv", "bench.textbook"},
    "torch": {"scenes.network", "scenes.training", "yolact_graph"},
    "s3fs": {"storage"},
    "fsspec": {"storage", "arrow_fs"},
    "botocore": {"storage"},
    "deltalake": {"publish", "tables", "delta_log", "datasets"},
    "typer": {"cli", "analytics_cli", "models_cli", "options", "remote_cli"},
    "yaml": {"config"},
    "pydantic": {"config"},
    "numba": {"kernels", "mask_kernels"},
    "duckdb": {"analytics.sql"},
    "polars": {"analytics.expressions"},
    "nncf": {"quantize"},
    "PIL": {"image", "analytics.sheet", "bench.textbook"},
}

# Lower layers first; a module imports only from its own line or lines above.
LAYERS = (
    {
        "",
        "errors",
        "instances",
        "rle",
        "geometry",
        "tiles",
        "flight",
        "memory",
        "orphans",
        "signals",
        "host",
        "opencv",
        "openvino",
        "streams",
        "dates",
        "kernels",
        "mask_kernels",
    },
    {"schema", "config", "storage", "arrow_fs", "image", "contracts", "catalogue"},
    {"runtime", "fetch"},
    {"zoo"},
    {"yolact_graph", "ir5", "ir5_layers", "inspection", "tf_graph"},
    {"acquire"},
    {"sources", "partitions", "plan", "ledger", "delta_log", "datasets", "tables", "datafiles"},
    {"label", "scheduler", "publish", "pace", "placement"},
    {"workers", "actor"},
    {"vitals"},
    {"cluster", "execute"},
    {"run", "metrics"},
    {"verify", "maintain", "promote"},
    {"analytics", "scenes", "simulation"},
    {"trial", "estimate"},
    {"quantize"},
    {"heartbeat"},
    {"options"},
    {"console", "status", "quickstart", "models_cli", "analytics_cli"},
    {"logs"},
    {"submit", "remote_cli"},
    {"observe"},
    {"bench"},
    {"cli", "__main__"},
)


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
def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever in the file, also by import_module with a literal name."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return found


def users(library: str, package: Path = PACKAGE) -> set[str]:
    """Return the modules that import a library."""
    files = modules(package).items()
    return {name for name, path in files if any(imported.split(".")[0] == library for imported in imports(path))}


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_is_used_in_its_homes_and_nowhere_else(library: str) -> None:
    assert users(library) == HOMES[library]


@pytest.mark.parametrize(
    "line",
    [
        "import openvino",
        "import openvino.opset13 as op",
        "from openvino import Core",
        "def late():\n    import openvino",
        "importlib.import_module('openvino.opset13')",
    ],
)
def test_a_library_outside_its_homes_would_be_noticed(tmp_path: Path, line: str) -> None:
    (tmp_path / "plain.py").write_text("import openvinox\n\nOPENVINO = 'openvino'")
    (tmp_path / "foreign.py").write_text(line)
    assert users("openvino", tmp_path) == {"foreign"}


def layer(name: str) -> int:
    top = name.split(".")[0]
    return next(i for i, names in enumerate(LAYERS) if top in names)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_one_way(name: str) -> None:
    if name == "":
        return  # the package's own names, which it reads from where they live
    known = modules()
    for imported in imports(known[name]):
        inner = imported.removeprefix("segray.")
        if imported.startswith("segray.") and inner in known:
            assert layer(inner) <= layer(name), f"{name} imports {inner}"


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
