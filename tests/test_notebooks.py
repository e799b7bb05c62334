"""The notebooks of the documents: each runs in a new kernel, and its kept outputs are small and of no machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command import ENV

REPO = Path(__file__).parents[1]
NOTEBOOKS = sorted((REPO / "docs" / "notebooks").glob("*.ipynb"))
MOST_BYTES = 400_000
for_notebooks = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def runner() -> Any:
    """docs/run_notebooks.py as a module."""
    pytest.importorskip("nbclient", reason="nbclient is in the extra dev")
    sys.path.insert(0, str(REPO / "docs"))
    try:
        import run_notebooks  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.remove(str(REPO / "docs"))
    return run_notebooks


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def pictures(cells: list[Any]) -> int:
    """The number of pictures in the outputs of cells."""
    forms = [output.get("data", {}) for cell in cells for output in cell["outputs"]]
    shown = sum(1 for data in forms for form in data if form.startswith("image/"))
    return shown + sum("".join(data.get("text/html", "")).count("<img ") for data in forms)


@for_notebooks
def test_kept_outputs_are_small_complete_and_of_no_machine(notebook: Path) -> None:
    assert notebook.stat().st_size < MOST_BYTES, "show smaller pictures"
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), (
        "run `python docs/run_notebooks.py`"
    )
    assert pictures(cells) >= 2
    text = json.dumps([cell["outputs"] for cell in cells])
    assert "Traceback" not in text
    assert not [name for name in ("/tmp/", "/home/", str(REPO)) if name in text]


@pytest.mark.integration
@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem == "first_steps" else [pytest.mark.thorough])
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs_from_top_to_bottom(
    notebook: Path, tmp_path: Path, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ENV, "PYTHONPATH": str(REPO)}.items():
        monkeypatch.setenv(name, value)
    run_notebooks = runner()
    pages = run_notebooks.kept(run_notebooks.executed(notebook, tmp_path), tmp_path)
    cells = [cell for cell in pages.cells if cell.cell_type == "code"]
    assert pictures(cells) == pictures(code_cells(notebook))
    kinds = [[output.output_type for output in cell.outputs] for cell in cells]
    assert [bool(kind) for kind in kinds] == [bool(cell["outputs"]) for cell in code_cells(notebook)]


def test_a_kept_output_has_one_form_of_a_picture_and_the_folder_of_the_documents(tmp_path: Path) -> None:
    import nbformat

    data = {"text/plain": f"{tmp_path}/labels", "image/png": "long picture", "image/jpeg": "short"}
    output = nbformat.v4.new_output("execute_result", data, execution_count=1, metadata={"took": 1})
    cell = nbformat.v4.new_code_cell("labels", outputs=[output], metadata={"started": "now"})
    (kept,) = runner().kept(nbformat.v4.new_notebook(cells=[cell]), tmp_path).cells
    assert kept.outputs[0].data == {"text/plain": "/data/labels", "image/jpeg": "short"}
    assert kept.metadata == kept.outputs[0].metadata == {}
