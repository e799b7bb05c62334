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
    done = _rewritten(model, copy, note) if passes.is_detection_graph(model) else {}
    engine.save(copy if done else model, xml)
    return done


def _rewritten(model: ov.Model, copy: ov.Model, note: Callable[[str], None]) -> Mapping[str, Any]:
    try:
        done = passes.rewrite(copy)
        if not any(done.counts.values()):
            return {}
        note(f"comparing with the graph rewritten: {done}")
        found = list(equivalence.compare(model, copy, done.least_score))
    except Exception as error:  # Any error means an unexpected graph; OpenVINO's conversion remains.
        note(f"left as OpenVINO converts it, since it cannot be rewritten: {error!r}")
        return {}
    told = "; ".join(map(str, found))
    if not all(each.holds for each in found):
        note(f"left as OpenVINO converts it, since rewritten it gives other rows: {told}")
        return {}
    note(f"rewritten, and proven: {told}")
    return {"rewritten": dict(done.counts), "proven": told}
