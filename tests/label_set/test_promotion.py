"""One pointer beside label sets says which one readers read."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_run import chosen, start  # noqa: F401  chosen is a fixture
from watchers import Notes

import segray
from segray import config
from segray.errors import InfrastructureError, LabelSetError, UserError
from segray.execution import run
from segray.label_set.current_pointer import resolved
from segray.label_set.promotion import promote
from segray.storage.store import StorageOptions
from segray.tasks import Task

OPTIONS = StorageOptions()


def beside(chosen: config.Config, name: str) -> config.Config:  # noqa: F811
    root = str(Path(chosen.output.root) / name)
    return chosen.model_copy(update={"output": config.OutputSettings(root=root)})


def test_readers_of_the_pointer_follow_it(chosen: config.Config) -> None:  # noqa: F811
    parent = chosen.output.root
    for name in ("v1", "v2"):
        run.label(beside(chosen, name), Notes(), start())
    with pytest.raises(LabelSetError, match="segray promote"):
        segray.scan(f"{parent}/CURRENT")
    assert promote(f"{parent}/v1", OPTIONS, dry_run=True).before is None
    assert not (Path(parent) / "CURRENT").exists()
    done = promote(f"{parent}/v1/", OPTIONS)
    assert (done.before, done.current, done.written, done.doubts) == (None, "v1", True, ())
    assert segray.scan(f"{parent}/CURRENT").count_rows() == segray.images(f"{parent}/CURRENT").count_rows() == 20
    assert promote(f"{parent}/v2", OPTIONS).before == "v1"
    assert resolved(f"{parent}/CURRENT", OPTIONS) == f"{parent}/v2"
    assert not promote(f"{parent}/v2", OPTIONS).written


@pytest.mark.integration
def test_what_is_not_whole_is_promoted_only_if_told(chosen: config.Config) -> None:  # noqa: F811
    def storm(task: Task) -> None:
        if task.unit == 3:
            raise InfrastructureError("storage is down", found="503")

    first, second = beside(chosen, "v1"), beside(chosen, "v2")
    run.label(first, Notes(), start())
    promote(first.output.root, OPTIONS)
    with pytest.raises(InfrastructureError):
        run.label(second, Notes(), start(storm), retry_s=0.01)
    with pytest.raises(LabelSetError, match=r"is not finished; the label set holds .*, the current one 20"):
        promote(second.output.root, OPTIONS)
    assert promote(second.output.root, OPTIONS, force=True, dry_run=True).doubts
    run.label(second, Notes(), start())
    next(Path(second.output.root).glob("instances/class=*/*.parquet")).unlink()
    with pytest.raises(LabelSetError, match="file_missing"):
        promote(second.output.root, OPTIONS)
    assert resolved(f"{chosen.output.root}/CURRENT", OPTIONS) == first.output.root
    assert promote(second.output.root, OPTIONS, force=True).written


def test_what_is_no_label_set_is_never_promoted(chosen: config.Config, tmp_path: Path) -> None:  # noqa: F811
    for root in (str(tmp_path / "none"), f"{chosen.output.root}/CURRENT", "s3://bucket"):
        with pytest.raises(UserError):
            promote(root, OPTIONS, force=True)
    with pytest.raises(LabelSetError, match="names one"):
        run.label(beside(chosen, "CURRENT"), Notes(), start())


@pytest.mark.parametrize("said", ["", "../v1", "a/b", "..", "CURRENT", "a\nb", "\0"])
def test_a_pointer_that_points_elsewhere_is_refused(tmp_path: Path, said: str) -> None:
    (tmp_path / "CURRENT").write_text(said)
    with pytest.raises(LabelSetError, match="names no folder"):
        segray.scan(str(tmp_path / "CURRENT"))


def test_another_model_is_refused_with_what_changed_and_the_way_on(chosen: config.Config) -> None:  # noqa: F811
    run.label(chosen, Notes(), start())
    other = chosen.model_copy(
        update={"model": config.ModelSettings(name="stickers", score_threshold=0.3, class_thresholds={"kite": 0.5})}
    )
    with pytest.raises(LabelSetError) as caught:
        run.label(other, Notes(), start())
    assert caught.value.found == "model.class_thresholds.kite: none -> 0.5; model.score_threshold: 0.05 -> 0.3"
    assert "segray promote" in caught.value.hint
