"""Conversion of a TensorFlow detection model into an IR, rewritten if the rewritten graph gives the same rows.

Knows the order: read once, rewrite a copy, compare, write. A graph that cannot be rewritten, or that gives other rows,
is written as OpenVINO converts it, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segray.conversion.tensorflow import equivalence, passes
from segray.models import engine
from segray.models.openvino import ov


def save(path: Path, xml: Path, note: Callable[[str], None]) -> Mapping[str, Any]:
    """Write the model at `path` as a current IR; return facts on the rewrites, empty if there were none.

    note: called with a text on each step. Raises ModelError if the model cannot be read or written.
    """
    model = engine.read(path)
    copy = model.clone()
    facts = _rewrite(model, copy, note) if passes.is_detection_graph(model) else {}
    engine.save(copy if facts else model, xml)
    return facts


def _rewrite(model: ov.Model, copy: ov.Model, note: Callable[[str], None]) -> Mapping[str, Any]:
    """Rewrite `copy` in place and compare it with `model`; return facts on the rewrites, empty to discard `copy`."""
    try:
        rewriting = passes.rewrite(copy)
        if not any(rewriting.counts.values()):
            return {}
        note(f"rewrote the graph, comparing it with the original: {rewriting}")
        comparisons = list(equivalence.compare(model, copy, rewriting.score_threshold))
    except Exception as error:  # Any error means an unexpected graph; OpenVINO's conversion remains.
        note(f"kept OpenVINO's conversion, because the graph cannot be rewritten: {error!r}")
        return {}
    result = "; ".join(map(str, comparisons))
    if not all(comparison.agrees for comparison in comparisons):
        note(f"kept OpenVINO's conversion, because the rewritten graph gives other rows: {result}")
        return {}
    note(f"the rewritten graph gives the same rows: {result}")
    return {"rewritten": dict(rewriting.counts), "proven": result}
