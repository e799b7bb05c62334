"""The notebooks: run from top to bottom in a new kernel, and kept with small outputs.

python docs/run_notebooks.py      # runs both, and writes their outputs into docs/notebooks

Knows how a notebook runs, and which parts of its outputs stay. The cells of a notebook say what they show.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"
# The folder of the reader in kept outputs, as in the other documents.
SHOWN_FOLDER = "/data"
_TIMEOUT_S = 240
_TEXT_FORMS = ("text/plain", "text/html")


def executed(notebook: Path, folder: Path) -> Any:
    """Return a notebook with the outputs of a new kernel, whose working folder is `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised an error.
    """
    pages = nbformat.read(notebook, as_version=4)
    for cell in pages.cells:
        cell.metadata = {}
    client = NotebookClient(
        pages, timeout=_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(cleanup_kc=True)
    return pages


def kept(pages: Any, folder: Path) -> Any:
    """Return an executed notebook as it is kept: without times, versions, paths and second forms of a picture."""
    pages.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for cell in pages.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}
            if "text" in output:
                output.text = output.text.replace(str(folder), SHOWN_FOLDER)
            if "data" in output:
                output.data = _smallest_forms(output.data, folder)
    return pages


def _smallest_forms(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the forms of an output as text, and the smallest of its pictures if HTML does not hold the picture."""
    pictures = {form: value for form, value in data.items() if form.startswith("image/")}
    texts = {form: data[form].replace(str(folder), SHOWN_FOLDER) for form in _TEXT_FORMS if form in data}
    if not pictures or "text/html" in texts:
        return texts
    form = min(pictures, key=lambda name: len(pictures[name]))
    return {**texts, form: pictures[form]}


def run() -> None:
    """Run each notebook in an empty folder, and write its outputs."""
    for notebook in sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            pages = kept(executed(notebook, folder), folder)
        nbformat.write(pages, notebook)
        print(f"{notebook.name}: {notebook.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    run()
