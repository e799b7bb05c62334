"""Dates in addresses, and keys that tell one day's images from another's."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from test_run import start
from watchers import Notes

import segray
from segray import _dates, config
from segray.errors import ConfigError, SourceError
from segray.execution import run
from segray.label_set.validation import verify
from segray.storage.store import StorageOptions

MINIMAL: dict[str, Any] = {"model": {"name": "stickers"}, "output": {"root": "labels"}}


def asked(uri: str, *overrides: str, **source: Any) -> config.Config:
    return config.validate({**MINIMAL, "source": {"uri": uri, **source}}, "test", overrides)


@pytest.mark.parametrize(
    ("uri", "filled", "base"),
    [
        ("s3://b/raw/dt={yesterday}/", "s3://b/raw/dt=2026-02-28/", "s3://b/raw"),
        ("s3://b/raw/{today:%Y/%m/%d}/*.jpg", "s3://b/raw/2026/03/01/*.jpg", "s3://b/raw"),
        ("s3://b/{today:y%y}/{yesterday:%j}", "s3://b/y26/059", "s3://b"),
        ("lists/{today}.txt", "lists/2026-03-01.txt", "lists"),
        ("plain/{id}/{Today}", "plain/{id}/{Today}", None),
    ],
)
def test_dates_are_filled_in(uri: str, filled: str, base: str | None) -> None:
    chosen = asked(uri, "as_of=2026-03-01").source
    assert (chosen.uri, chosen.base) == (filled, base)


def test_a_date_must_be_given_and_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.uri asks for a date[\s\S]*--as-of"):
        asked("raw/{yesterday}/")
    with pytest.raises(ConfigError, match=r"output\.root asks for a date"):
        asked("raw", "output.root=labels/{today}")
    for wrong in ("yesterday", "2026-2-3", "7"):
        with pytest.raises(ConfigError, match="as_of is no day"):
            asked("raw/{today}", f"as_of={wrong}")
    for wrong in ("{today:}", "{today:%H}", "{today:%}"):
        with pytest.raises(ConfigError, match="format of a date"):
            asked(f"raw/{wrong}", "as_of=2026-03-01")
    assert asked("raw", "as_of=2026-03-01").as_of == date(2026, 3, 1)


def test_today_is_that_of_utc() -> None:
    before = datetime.now(UTC).date()
    day, zone = _dates.parse_day("today")
    assert before <= day <= before + timedelta(days=1)
    assert zone == "UTC"


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "Pacific/Kiritimati", "Etc/GMT+12"])
def test_today_may_be_that_of_a_time_zone_and_the_note_names_it(zone: str) -> None:
    notes: list[str] = []
    values = {**MINIMAL, "source": {"uri": "raw/{today}"}}
    before = datetime.now(ZoneInfo(zone)).date()
    chosen = config.validate(values, "test", [f"as_of=today@{zone}"], note=notes.append)
    assert chosen.as_of in (before, before + timedelta(days=1))
    assert chosen.source.uri == f"raw/{chosen.as_of}"
    assert notes == [f"as_of: today is {chosen.as_of}, the day in {zone}"]


def test_a_date_needs_no_note() -> None:
    notes: list[str] = []
    values = {**MINIMAL, "source": {"uri": "raw"}}
    config.validate(values, "test", ["as_of=2026-03-01"], note=notes.append)
    config.validate(values, "test", note=notes.append)
    assert notes == []


@pytest.mark.parametrize("zone", ["Nowhere/Else", "../etc/passwd", "/etc/passwd", "Asia", "Asia/Tokyo\0", " "])
def test_a_time_zone_that_does_not_exist_is_refused(zone: str) -> None:
    with pytest.raises(ConfigError, match=r"no such time zone|no day"):
        _dates.parse_day(f"today@{zone}")


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """Two days with the same names."""
    for day in ("2026-03-01", "2026-03-02"):
        folder = tmp_path / "raw" / f"dt={day}" / "cam"
        folder.mkdir(parents=True)
        for i in range(4):
            (folder / f"{i}.jpg").write_bytes(day.encode() + bytes([i]))
    return tmp_path


def label(days: Path, uri: str, day: str, **source: Any) -> run.Summary:
    values = {"uri": str(days / uri), **source}
    chosen = config.validate({**MINIMAL, "output": {"root": str(days / "labels")}, "source": values}, "test", [day])
    return run.label(chosen, Notes(), start())


def keys(days: Path) -> list[str]:
    return sorted(segray.images(str(days / "labels")).to_table(["image_key"]).column(0).to_pylist())


FIRST, SECOND = ([f"dt=2026-03-0{day}/cam/{i}.jpg" for i in range(4)] for day in (1, 2))


@pytest.mark.parametrize("uri", ["raw/dt={today}", "raw/dt={today}/**/*.jpg", "raw/dt={today}/cam"])
def test_days_are_labelled_beside_each_other(days: Path, uri: str) -> None:
    for day in ("2026-03-01", "2026-03-02"):
        label(days, uri, f"as_of={day}")
    assert keys(days) == FIRST + SECOND


@pytest.mark.integration
def test_only_the_day_in_question_is_retired(days: Path) -> None:
    uri, retire = "raw/dt={today}/", {"deleted": "retire", "max_retired_fraction": 0.25}
    label(days, uri, "as_of=2026-03-01", **retire)
    assert label(days, uri, "as_of=2026-03-02", **retire).retired == 0
    folders = [days / "raw" / f"dt=2026-03-0{day}" / "cam" for day in (1, 2)]
    for name in ("0.jpg", "1.jpg"):
        (folders[0] / name).unlink()
    (folders[1] / "3.jpg").unlink()
    assert label(days, uri, "as_of=2026-03-02", **retire).retired == 1
    assert keys(days) == FIRST + SECOND[:3]
    with pytest.raises(SourceError, match="2 of 4"):
        label(days, uri, "as_of=2026-03-01", **retire)
    assert verify(str(days / "labels"), StorageOptions()).violations == ()


def test_paths_of_a_manifest_are_below_the_base_and_keys_that_it_gives_stay(days: Path) -> None:
    folder = days / "raw" / "dt=2026-03-01"
    (folder / "some.csv").write_text(f"uri,key\ncam/0.jpg,\ncam/1.jpg,mine\n{folder}/cam/2.jpg,\n")
    label(days, "raw/dt={today}/some.csv", "as_of=2026-03-01")
    assert keys(days) == sorted([FIRST[0], "mine", f"{folder}/cam/2.jpg"])


def test_a_part_lies_in_its_dataset(days: Path) -> None:
    with pytest.raises(ConfigError, match="does not lie in"):
        label(days, "raw", "as_of=null", base=str(days / "other"))
    label(days, "raw/dt=2026-03-02", "as_of=null", base=str(days / "raw"))
    assert keys(days) == SECOND
