"""A TensorFlow detection model into an IR, rewritten if that proves to give the same rows.

Knows the order: read once, rewrite a copy, prove, write. What cannot be rewritten or does not prove equal is written as
OpenVINO converts it, and that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segray.conversion.tensorflow import equivalence, passes
from segray.models import engine
from segray.models.openvino import ov


def save(path: Path, xml: Path, note: Callable[[str], None]) -> Mapping[str, Any]:
    """Write the model at `path` as an IR of today; what was rewritten and how it was proven, empty if nothing was.

    note: hears what is done, and why not. Raises ModelError if the model cannot be read or written.
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
    except Exception as error:  # of any kind: the graph is not as expected, and there is another way
        note(f"left as OpenVINO converts it, since it cannot be rewritten: {error!r}")
        return {}
    told = "; ".join(map(str, found))
    if not all(each.holds for each in found):
        note(f"left as OpenVINO converts it, since rewritten it gives other rows: {told}")
        return {}
    note(f"rewritten, and proven: {told}")
    return {"rewritten": dict(done.counts), "proven": told}
