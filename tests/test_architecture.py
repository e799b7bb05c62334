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
    "PIL": {"image", "scenes.dataset", "analytics.sheet", "bench.textbook"},
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
def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_has_one_home(library: str) -> None:
    users = {name for name, path in modules().items() if any(i.split(".")[0] == library for i in imports(path))}
    assert users <= HOMES[library]


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


def test_every_module_says_what_it_knows() -> None:
    for name, path in modules().items():
        assert ast.get_docstring(parsed(path)), name
