"""The queries of docs/analytics.md, in both engines. SEGRAY_WRITE_DOCS=1 writes what they give into the page."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fences
import label_sets
import pytest

pytestmark = pytest.mark.integration
PAGE = Path(__file__).parents[2] / "docs" / "analytics.md"
QUERY = re.compile(r"(### (\d+)\. .+?\n```sql\n(.+?)```\n\n```python\n(.+?)```\n\n```text\n)(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two batches of sticker scenes, labelled with their truth."""
    folder, scenes = tmp_path_factory.mktemp("queries") / "labels", label_sets.stickers(24)
    for keys in (sorted(scenes)[:16], sorted(scenes)[16:]):
        label_sets.write(folder, {key: scenes[key] for key in keys})
    return str(folder)


def told(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [[str(value) for value in row] for row in [names, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join("  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines)


def test_every_query_gives_what_the_page_says_in_both_engines(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is pasted as it stands, after the first block of the page, beside a label set `labels`."""
    monkeypatch.chdir(Path(root).parent)
    pasted: dict[str, Any] = {}
    fences.run(fences.blocks("docs/analytics.md", "python")[0].code, pasted)
    text = PAGE.read_text(encoding="utf-8")
    queries = QUERY.findall(text)
    assert [int(number) for _, number, _, _, _ in queries] == list(range(1, 21))
    outputs = []
    for _, number, query, expression, said in queries:
        found = pasted["con"].execute(query)
        names, rows = [column[0] for column in found.description], found.fetchall()
        (frame,) = fences.run(expression, pasted)
        assert (frame.columns, frame.rows()) == (names, rows), number
        outputs.append(told(names, rows))
        assert os.environ.get("SEGRAY_WRITE_DOCS") or said == outputs[-1], number
    if os.environ.get("SEGRAY_WRITE_DOCS"):
        given = iter(outputs)
        PAGE.write_text(QUERY.sub(lambda found: f"{found[1]}{next(given)}```", text), encoding="utf-8")
