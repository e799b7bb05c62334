"""Arguments in, exit codes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

import segray
from segray import config
from segray.cli import main
from segray.cli import options as options_module
from segray.cli.options import one_option_per_stage
from segray.errors import InfrastructureError, Interrupted, UserError
from segray.label_set.maintenance import Maintenance
from segray.label_set.validation import Report, Violation


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["label"], "the command names no images"),
        (["label", "s3://photos"], "the command names no place for the labels"),
        (["label", "run.yaml", "labels"], "--config run.yaml"),
        (["label", "photos", "labels"], "pass --model PATH|NAME"),
        (["label", "photos", "labels", "--model", "sticker"], "Did you mean stickers?"),
        (["label", "photos", "labels", "--model", "no/model.xml"], "The model does not exist"),
        (["label", "photos", "labels", "--model", "no/model.pt"], "yolo export model=best.pt format=openvino"),
        (["label", "nowhere", "labels", "--model", "stickers"], "SOURCE of the command"),
        (["lable", "x.yaml"], "No such command 'lable'"),
        (["label", "nowhere.yaml"], "cannot read the configuration"),
        (["label", "x.yaml", "--limit", "0"], "--limit"),
        (["label", "x.yaml", "--retry-failed", "raed"], "--config x.yaml"),
        (["label", "a", "b", "c"], "unexpected extra argument"),
        (["evaluate", "nowhere", "--truth", "truth.json"], "no such truth file"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def settings(*arguments: str, notes: list[str] | None = None, **options: Any) -> options_module.Settings:
    """The settings of `segray label ARGUMENTS`, as the command reads them."""
    source, output = [*arguments, None, None][:2]
    given = {"file": None, "model": None, "overrides": (), "day": None, **options}
    return options_module.load(source, output, note=[].append if notes is None else notes.append, **given)


def test_a_run_needs_no_configuration_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = settings("photos", "labels", model="best_openvino_model/")
    assert given.file is None
    assert given.config.source.uri == "photos"
    assert given.config.output.root == "labels"
    assert (given.config.model.name, given.config.model.path) == ("auto", "best_openvino_model/")
    assert config.load(None, given.overrides) == given.config, "a job gets the same from its overrides"
    assert settings("photos", "labels", model="m/", overrides=["source.uri=x", "model.path=y"]).config.source.uri == "x"


def test_a_name_takes_the_files_that_pull_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "yolact-resnet50-fpn-pytorch"
    assert settings("photos", "labels", model=name).config.model.path is None
    pulled = Path("models") / name / f"{name}.xml"
    pulled.parent.mkdir(parents=True)
    pulled.touch()
    model = settings("photos", "labels", model=name).config.model
    assert (model.name, model.path) == (name, str(pulled))


def test_arguments_prevail_over_the_file_and_set_over_all(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("source: {uri: a}\noutput: {root: b}\nmodel: {name: stickers, path: c}\n")
    given = settings("photos", file=file, model="stickers")
    assert (given.config.source.uri, given.config.output.root, given.config.model.path) == ("photos", "b", None)
    given = settings("photos", "labels", file=file, overrides=["output.root=d"])
    assert (given.config.source.uri, given.config.output.root, given.config.model.path) == ("photos", "d", "c")


def test_the_configuration_may_stand_alone_as_in_earlier_versions(tmp_path: Path) -> None:
    for name in ("run.yaml", "run.YML", "nightly.conf"):
        file, notes = tmp_path / name, list[str]()
        file.write_text("source: {uri: a}\noutput: {root: b}\nmodel: {name: stickers}\n")
        given = settings(str(file), notes=notes)
        assert given.file == file
        assert notes == [f"the configuration is an option now: --config {file}"]
    assert settings("photos.zip", overrides=["output.root=b"], model="stickers").config.source.uri == "photos.zip"


def test_maintenance_says_when_the_plain_glob_counts_rows_twice() -> None:
    result = Maintenance(deleted={"instances": 0, "images": 2}, waiting={"instances": 8, "images": 0})
    assert "8 within their grace time" in main.describe_maintenance(result)
    assert "readers of the plain glob count the rows of these files too" in main.describe_maintenance(result)
    result = Maintenance(deleted={"instances": 8, "images": 2}, waiting={"instances": 0, "images": 0})
    assert "glob" not in main.describe_maintenance(result)


@pytest.mark.parametrize(
    ("arguments", "expanded"),
    [
        ("x.yaml --retry-failed", "x.yaml --retry-failed=all"),
        ("--retry-failed x.yaml", "--retry-failed=all x.yaml"),
        ("x.yaml --retry-failed read decode --limit 5", "x.yaml --retry-failed=read --retry-failed=decode --limit 5"),
        ("--retry-failed read x.yaml --retry-failed infer", "--retry-failed=read x.yaml --retry-failed=infer"),
        ("x.yaml --retry-failed=read --json", "x.yaml --retry-failed=read --json"),
        ("x.yaml", "x.yaml"),
    ],
)
def test_the_stages_after_retry_failed_belong_to_it(arguments: str, expanded: str) -> None:
    assert one_option_per_stage(arguments.split()) == expanded.split()


def test_a_report_counts_one_thing_as_one() -> None:
    counts = {"batch": 3, "images": 1, "instances": 2, "unlisted_files": 1, "runs": 1}
    told = main.describe_report(Report((), (), counts))
    assert told == "checked as of batch 3: 1 image, 2 instances, 1 unlisted file, 1 run\nno violations"
    one = main.describe_report(Report((Violation("kind", "where", "found"),), (), {"batch": 1}))
    assert one.endswith("1 violation")


def test_a_call_without_a_command_shows_help_and_hints_name_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["models"]):
        assert main.run(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("Usage: ")
        assert "error" not in error
    for arguments, command in ((["evaluate", "labels"], "evaluate"), (["models", "pull"], "models pull")):
        assert main.run(arguments) == 2
        assert f"see `segray {command} --help`" in capsys.readouterr().err


def test_help_and_version_end_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    assert main.run(["version"]) == 0
    assert "quickstart" in capsys.readouterr().out


def test_the_version_is_an_option_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--version"]) == 0
    assert capsys.readouterr().out == f"{segray.__version__}\n"


@pytest.mark.parametrize("arguments", [["label"], ["plan"], ["submit", "--address", "x"], ["label", "nowhere.yaml"]])
def test_who_has_no_configuration_is_told_what_writes_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 2
    assert "segray init FILE" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "template"), [([], "local"), (["--all"], "reference")])
def test_init_writes_a_configuration_and_never_over_a_file(
    options: list[str], template: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    assert main.run(["init", *options, str(file)]) == 0
    assert f"segray label --config {file}" in capsys.readouterr().out
    assert file.read_text() == (config.TEMPLATES / f"{template}.yaml").read_text()
    file.write_text("mine")
    assert main.run(["init", *options, str(file)]) == 2
    assert "the file exists" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main.run(["init", str(tmp_path / "no" / "folder.yaml")]) == 2


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (typer.Exit(3), 3),
        (typer.Exit(0), 0),
        (UserError("wrong"), 2),
        (InfrastructureError("down"), 3),
        (Interrupted("stop"), 130),
        (KeyboardInterrupt(), 130),
        (RuntimeError("bug"), 1),
    ],
)
def test_every_ending_has_its_exit_code(raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise raised

    monkeypatch.setattr(config, "load", fail)
    assert main.run(["label", "any.yaml"]) == code
