"""Files that a run passes over are told at planning, in the summary, in JSON, in the run's record and in the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import here, segray, write_config

from segray.synthetic import dataset

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("shared_ray")]

NOTE = "passed over: 3 .psd, 1 .tar, 1 without extension; source.kind=tar takes .tar; "
FILES = {".psd": 3, ".tar": 1, "without extension": 1}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    dataset.write(tmp_path, 3, seed=11)
    for name in ("a.psd", "b.psd", "c.psd", "d.tar", "README"):
        (tmp_path / "images" / name).write_bytes(b"x")
    return write_config(tmp_path / "run.yaml", tmp_path / "images", tmp_path / "labels", report=True)


def test_every_end_of_a_run_tells_them(config: Path, tmp_path: Path) -> None:
    planned = here("plan", config, "--json")
    assert NOTE in planned.stderr
    assert json.loads(planned.stdout)["listed"]["passed_over"]["files"] == FILES
    limited = here("label", "--config", config, "--limit", "1")
    assert NOTE in limited.stderr
    assert NOTE in limited.stdout
    done = segray("label", "--config", config, "--json", "--log-format", "json")
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert any(NOTE in record.get("message", "") for record in records if record["event"] == "note")
    result = json.loads(done.stdout)["passed_over"]
    assert (result["files"], records[-1]["result"]["passed_over"]) == (FILES, result)
    assert NOTE in result["notes"][0]
    runs = sorted((tmp_path / "labels" / "_segray" / "runs").iterdir())
    for run in runs:
        assert json.loads((run / "run.json").read_text())["passed_over"] == result
        assert NOTE in (run / "report.html").read_text()
    nothing_to_do = here("label", "--config", config)
    assert NOTE in nothing_to_do.stdout
