"""The file of what a person says: saved at once, resumed, never half."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segray.errors import UserError
from segray.view.judgements import JudgementFile

CLASSES = frozenset({"car", "truck"})


def test_judgements_are_saved_at_once_and_resumed_and_the_last_holds(tmp_path: Path) -> None:
    file = JudgementFile(tmp_path / "said.jsonl", CLASSES)
    file.add({"image_key": "a", "instance": 0, "verdict": "wrong"})
    file.add({"image_key": "a", "instance": 0, "verdict": "class", "class_name": "truck"})
    file.add({"image_key": "a", "instance": None, "verdict": "missing"})
    file.add({"image_key": "b", "instance": 4, "verdict": "right"})
    file.add({"image_key": "b", "instance": 4, "verdict": "cleared"})
    assert len(file.path.read_text().splitlines()) == 5
    for state in (file, JudgementFile(file.path, CLASSES)):
        said = {judgement.instance: judgement for judgement in state.of_image("a")}
        assert (said[0].verdict, said[0].class_name, said[None].verdict) == ("class", "truck", "missing")
        assert state.images() == {"a": 2}
        assert len(state) == 2


@pytest.mark.parametrize(
    "record",
    [
        {}, {"image_key": "a", "instance": 0, "verdict": "fine"},
        {"image_key": "a", "instance": None, "verdict": "right"},
        {"image_key": "a", "instance": "0", "verdict": "right"}, {"image_key": 3, "instance": 0, "verdict": "right"},
        {"image_key": "a", "instance": 0, "verdict": "class"},
        {"image_key": "a", "instance": 0, "verdict": "class", "class_name": "boat"},
        {"image_key": "a", "instance": 0, "verdict": "right", "class_name": "car"},
    ],
)  # fmt: skip
def test_what_is_no_judgement_is_refused_and_not_saved(tmp_path: Path, record: dict[str, object]) -> None:
    file = JudgementFile(tmp_path / "said.jsonl", CLASSES)
    with pytest.raises(UserError):
        file.add(record)
    assert not file.path.exists()


@pytest.mark.parametrize("line", ["no json", "[]", json.dumps({"image_key": "a"}), '{"image_key": "a", "insta'])
def test_a_file_with_other_lines_is_not_appended_to(tmp_path: Path, line: str) -> None:
    path = tmp_path / "said.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match="line that is none") as caught:
        JudgementFile(path, CLASSES)
    assert caught.value.where == f"{path}, line 1"
    assert "--judgements" in caught.value.hint


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = JudgementFile(tmp_path / "none" / "said.jsonl", CLASSES)
    with pytest.raises(UserError, match="cannot be saved"):
        file.add({"image_key": "a", "instance": 0, "verdict": "right"})
