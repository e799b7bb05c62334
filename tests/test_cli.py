"""Arguments in, exit codes out."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from segray import cli, config
from segray.errors import Interrupted, UserError, WorldError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["label"], "Missing argument 'CONFIG'"),
        (["lable", "x.yaml"], "No such command 'lable'"),
        (["label", "nowhere.yaml"], "cannot read the configuration"),
        (["label", "x.yaml", "--limit", "0"], "--limit"),
        (["evaluate", "nowhere", "--truth", "truth.json"], "no such truth file"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_help_and_version_end_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    assert cli.run(["version"]) == 0
    assert "quickstart" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (typer.Exit(3), 3),
        (typer.Exit(0), 0),
        (UserError("wrong"), 2),
        (WorldError("down"), 3),
        (Interrupted("stop"), 130),
        (KeyboardInterrupt(), 130),
        (RuntimeError("bug"), 1),
    ],
)
def test_every_ending_has_its_exit_code(raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise raised

    monkeypatch.setattr(config, "load", fail)
    assert cli.run(["label", "any.yaml"]) == code
