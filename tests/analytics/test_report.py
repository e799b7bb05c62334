"""The page is whole and safe whatever the labels say, its numbers are those of the tables, its pictures chosen well."""

from __future__ import annotations

import html
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import jinja2
import label_sets
import numpy as np
import pytest
from label_sets import Image
from swift_server import Swift

from segray import config, rle
from segray.analytics.reports import report as pages
from segray.analytics.reports import statistics
from segray.analytics.reports.html import environment, number, percent, short, size, visible
from segray.analytics.reports.live_page import live
from segray.analytics.reports.report import choose, report
from segray.errors import InfrastructureError, LabelSetError, UserError
from segray.execution.progress import Counters, RunProgress
from segray.execution.run import Summary
from segray.instances import ImageRef
from segray.label_set import run_records, snapshot
from segray.label_set.run_records import Run
from segray.monitoring import session
from segray.monitoring.console import Plain
from segray.monitoring.heartbeat import HeartbeatWriter
from segray.sources.reader import Files
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join

SIZE_HW = (60, 80)
EVIL = {1: "<script>alert(1)</script>", 2: '"><img src=x onerror=alert(2)>', 3: "a&amp;b'\u202egnp.exe"}
HOSTILE = "\"'><script>alert(7)</script><a href=javascript:alert(8)>\u202e"
URLS = {"src", "href", "srcset", "srcdoc", "action", "formaction", "xlink:href", "background", "poster", "data", "ping"}
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Checked(HTMLParser):
    """A document that is balanced, and nothing in it that runs or is elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []
        assert len(page.encode()) < 8_000_000

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs)
        assert tag not in {"script", "iframe", "object", "link", "base", "form"}
        for name, value in found.items():
            assert not name.startswith("on")
            assert name != "style"
            assert "://" not in (value or "") or name in {"alt", "aria-label"}
            if name in URLS:
                assert (value or "").startswith(("data:image/jpeg;base64,", "#"))
        self.seen.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.seen if name == tag]


def found(class_id: int, score: float, side: int = 20) -> tuple[int, float, str]:
    mask = np.zeros(SIZE_HW, bool)
    mask[5 : 5 + side, 5 : 5 + side] = True
    return class_id, score, rle.encode(mask)


def drawn(folder: Path, images: Mapping[str, Sequence[tuple[int, float, str]]]) -> dict[str, Image]:
    """Images with pixels, under names of their own."""
    folder.mkdir(exist_ok=True)
    made = {}
    for i, (key, instances) in enumerate(images.items()):
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), np.full((*SIZE_HW, 3), 100 + i, np.uint8))
        made[key] = Image(SIZE_HW, instances, uri=str(path))
    return made


@pytest.fixture
def root(tmp_path: Path) -> str:
    images = drawn(
        tmp_path / "pixels",
        {
            **{f"typical-{i}.png": [found(17, 0.9), found(18, 0.8, 12)] for i in range(5)},
            "crowd.png": [found(17, 0.9 - i / 50, 10) for i in range(12)],
            "unsure.png": [found(18, 0.08), found(17, 0.06)],
            "zebra.png": [found(24, 0.7, 40)],
            "bare.png": [],
        },
    )
    broken = {f"broken-{i}.png": Image((0, 0), failed=True) for i in range(4)}
    return label_sets.write(tmp_path / "labels", {**images, **broken})


def test_the_page_is_whole_and_can_be_read_by_anybody(root: str) -> None:
    page = Checked(report(root))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1
    ids = [each["id"] for _, each in page.seen if "id" in each]
    assert len(ids) == len(set(ids))
    assert {each["href"] for each in page.all("a")} == {f"#{name}" for name in ids}
    assert len(page.all("table")) == len(page.all("caption")) > 5
    assert all(each.get("alt") and each.get("width") and each.get("height") for each in page.all("img"))
    assert len(page.all("img")) == 9
    for chart in page.all("svg"):
        assert chart.get("aria-hidden") or (chart.get("role") == "img" and chart.get("aria-label"))
    assert {"name": "viewport", "content": "width=device-width,initial-scale=1"} in page.all("meta")
    allowed = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert {"http-equiv": "Content-Security-Policy", "content": allowed} in page.all("meta")


def test_its_numbers_are_those_of_the_tables(root: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    from segray.analytics.query.duckdb_views import sql

    con = duckdb.connect()
    sql(con, root)
    counted = statistics.compute_stats(snapshot.snapshot(root))

    def rows(query: str) -> list[tuple[object, ...]]:
        return list(con.execute(query).fetchall())

    assert dict(rows("SELECT status, count(*) FROM images GROUP BY 1")) == counted.statuses
    assert rows("SELECT sum(bytes) FROM images") == [(counted.bytes,)]
    assert rows("SELECT stage, error, count(*) FROM images WHERE status = 'failed' GROUP BY 1, 2") == [
        (each.stage, each.error, each.count) for each in counted.failures
    ]
    assert rows(
        "SELECT run_id, count(*), count(*) FILTER (status = 'failed') FROM images GROUP BY 1 ORDER BY 1 DESC"
    ) == [(run.run_id, run.images, run.failed) for run in counted.runs]
    small = "count(*) FILTER (area < 1024), count(*) FILTER (area BETWEEN 1024 AND 9215), count(*) FILTER (area > 9215)"
    expected = rows(f"SELECT class_id, class_name, count(*), {small} FROM instances GROUP BY 1, 2 ORDER BY 1")
    assert [(i, each.name, each.instances, *each.sizes) for i, each in counted.classes.items()] == expected
    for class_id, mean, best in rows("SELECT class_id, avg(score), max(score) FROM instances GROUP BY 1"):
        assert counted.classes[class_id].mean_score == pytest.approx(mean)
        assert counted.classes[class_id].best_score == best
    bins = dict(rows("SELECT least(floor(score::DOUBLE * 20), 19)::int, count(*) FROM instances GROUP BY 1"))
    assert counted.scores.tolist() == [bins.get(i, 0) for i in range(20)]
    per_image = dict(rows("SELECT image_key, n_instances FROM images WHERE n_instances > 0"))
    assert {each.key: each.instances for each in counted.sample} == per_image
    scores = dict(rows("SELECT image_key, avg(score) FROM instances GROUP BY 1"))
    assert {each.key: each.score for each in counted.sample} == pytest.approx(scores)
    said = Checked(report(root, images=0)).text
    ((confident,),) = rows("SELECT count(*) FROM instances WHERE score >= 0.5")
    assert 0 < confident < 25
    assert re.search(rf"images\s+13\s+instances of score 0.5 and more\s+{confident} \(25 in all\)\s", said)
    assert "4 (30.8%)" in said
    assert "0 of the failed images failed in the latest run, 4 in earlier runs" in " ".join(said.split())


def test_pictures_are_chosen_for_a_reason_each(root: str) -> None:
    chosen = choose(statistics.compute_stats(snapshot.snapshot(root)), 5)
    kinds = {each.kind: each.key for each in chosen}
    assert kinds["Typical"].startswith("typical-")
    assert (kinds["Lowest confidence"], kinds["Most crowded"]) == ("unsure.png", "crowd.png")
    assert kinds["Rare class"] == "zebra.png"
    everything = choose(statistics.compute_stats(snapshot.snapshot(root)), 60)
    keys = [each.key for each in everything]
    assert len(keys) == len(set(keys)) == 9
    assert "bare.png" in keys
    assert not any(key.startswith("broken") for key in keys)


def test_a_sample_is_the_same_in_whatever_parts_rows_come(root: str) -> None:
    images = snapshot.snapshot(root).images.to_table()
    whole, parts = statistics._ImageCounts(), statistics._ImageCounts()
    whole.add(images)
    for i in range(len(images)):
        parts.add(images.slice(len(images) - 1 - i, 1))
    for name in ("sample", "crowded", "largest", "empty"):
        assert getattr(whole, name).rows == getattr(parts, name).rows
    assert whole.statuses == parts.statuses
    assert whole.spans() == parts.spans()


def test_only_the_first_so_many_are_kept() -> None:
    kept = statistics._TopRows(3, ("n_instances", "descending"))
    for start in range(0, 100, 10):
        rows = [
            {"image_id": f"{i:02d}", "image_key": f"k{i}", "n_instances": i % 50, "pixels": 1}
            for i in range(start, start + 10)
        ]
        kept.add(label_sets.pa.Table.from_pylist(rows))
    assert [row["image_key"] for row in kept.rows] == ["k49", "k99", "k48"]


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    keys = ["<script>alert(3)</script>.png", 'x" onload="alert(4).png', "a\x00b\x1b[2J.png", "k" * 900 + ".png"]
    images = drawn(tmp_path / "pixels", {key: [found(1 + i % 3, 0.9)] for i, key in enumerate(keys)})
    images["</td></table><img src=//evil.example/x>.png"] = Image((0, 0), failed=True)
    page = report(label_sets.write(tmp_path / "labels", images, classes=EVIL))
    checked = Checked(page)
    assert "<script" not in page
    assert "<script>alert(3)</script>.png" in checked.text
    assert "<script>alert(1)</script>" in checked.text
    assert "\\x00b\\x1b[2J" in checked.text
    assert "\\u202e" in checked.text
    assert "\u202e" not in page
    assert "k" * 301 not in page
    assert {each["src"][:5] for each in checked.all("img") if each["src"]} == {"data:"}


def test_whatever_a_run_recorded_is_text(root: str) -> None:
    worker = dict.fromkeys(("precision", "device", "device_name", "host", "openvino"), HOSTILE)
    record = dict.fromkeys(("state", "run_id", "segray", "source"), HOSTILE)
    spent = {"seconds": {HOSTILE: 1.0}, "cpu_seconds": {HOSTILE: 1.0}, "labelled": {"ok": 1}, "workers": [worker]}
    run_records.new_run(root).save(Store(), {**record, **spent, "config": {HOSTILE: HOSTILE}})
    page = Checked(report(root, images=0))
    assert page.text.count("<script>alert(7)</script>") == 12
    assert "\u202e" not in page.text


def test_whatever_a_heartbeat_says_is_text() -> None:
    longest = {"stage": HOSTILE, "s": 1.0}
    slow = {**_slow(), "worker": HOSTILE, "host": HOSTILE, "device": HOSTILE, "longest": longest}
    driver = {"host": HOSTILE}
    beat = {**_beat(), "run_id": HOSTILE, "driver": driver, "at": HOSTILE, "phase": HOSTILE, "slowest": [slow]}
    page = Checked(live(beat))
    assert page.text.count("<script>alert(7)</script>") == 8
    assert "\u202e" not in page.text


def test_a_template_escapes_each_value_and_lacks_none() -> None:
    made = environment().from_string('<i title="{{ value }}">{{ value }}</i>').render(value=HOSTILE)
    parsed = Checked(made)
    (found,) = parsed.all("i")
    assert found["title"] == parsed.text == HOSTILE.replace("\u202e", "\\u202e")
    assert "<script" not in made
    with pytest.raises(jinja2.UndefinedError, match="'value' is undefined"):
        environment().from_string("{{ value }}").render()


@pytest.mark.parametrize("name", environment().list_templates(["jinja"]))
def test_no_template_turns_escaping_off_or_takes_an_address_from_a_value(name: str) -> None:
    assert environment().loader is not None
    source = environment().loader.get_source(environment(), name)[0]
    assert not re.search(r"\|\s*safe|autoescape|Markup", source)
    assert not re.search(r"[\w-]=\s*\{\{", source), "an attribute without quotes"
    for value in re.findall(r'\b(?:src|href)="([^"]*)"', source):
        assert re.fullmatch(r"#\{\{ name \}\}|data:image/jpeg;base64,\{\{ figure\.jpeg \| e \}\}", value)


def test_pictures_that_are_gone_or_changed_are_named(root: str, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "pixels")
    page = Checked(report(root))
    assert page.all("img") == []
    assert "9 of the example images cannot be shown" in page.text
    assert "crowd.png" in page.text


def test_an_image_of_another_size_is_not_drawn_over(root: str, tmp_path: Path) -> None:
    for path in (tmp_path / "pixels").iterdir():
        cv2.imwrite(str(path), np.zeros((30, 30, 3), np.uint8))
    page = Checked(report(root))
    assert page.all("img") == []
    assert "the image is 30x30 now, and was labelled as 80x60" in page.text


def test_storage_that_is_down_is_asked_once(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(files: Files, ref: ImageRef) -> bytes:
        asked.append(ref.key)
        raise InfrastructureError("storage is down")

    monkeypatch.setattr(Files, "read", refuse)
    page = Checked(report(root))
    assert len(asked) == 1
    assert page.text.count("storage is down") == 9


def test_pictures_without_room_are_left_out(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_PICTURES_BYTES", 6000)
    page = Checked(report(root))
    assert 0 < len(page.all("img")) < 9
    assert "more images are left out to keep this page small" in page.text


def test_a_label_set_where_everything_failed_has_a_page(tmp_path: Path) -> None:
    page = Checked(report(label_sets.write(tmp_path, {"a.png": Image((0, 0), failed=True)})))
    assert "No instance was found in any image." in page.text
    assert "made to fail" in page.text


def test_what_cannot_be_reported_is_said(tmp_path: Path, root: str) -> None:
    with pytest.raises(LabelSetError, match="no label set here"):
        report(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="at most 60 images"):
        report(root, images=61)


def test_a_truth_brings_an_evaluation(root: str, tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    box = {"bbox": [5, 5, 40, 40], "area": 1600, "iscrowd": 0, "segmentation": [[5, 5, 45, 5, 45, 45, 5, 45]]}
    rows = [{"id": 1, "image_id": 1, "category_id": 24, **box}]
    content = {
        "images": [
            {"id": i + 1, "file_name": key, "height": SIZE_HW[0], "width": SIZE_HW[1]}
            for i, key in enumerate(["zebra.png", *(f"typical-{n}.png" for n in range(5)), "crowd.png", "unsure.png",
                                     "bare.png", *(f"broken-{n}.png" for n in range(4))])
        ],
        "annotations": rows,
        "categories": [{"id": 24, "name": "zebra"}],
    }  # fmt: skip
    truth.write_text(json.dumps(content))
    said = Checked(report(root, truth=str(truth), images=0)).text
    assert "Accuracy" in said
    assert "1 objects in 13 images" in said
    assert re.search(r"masks\s+1\.000\s+1\.000", said)


def test_text_says_what_cannot_be_seen_and_cuts_what_is_too_long() -> None:
    assert visible("\ud800\u200b") == "\\ud800\\u200b"
    assert visible("é字\n") == "é字\n"
    assert len(visible("x" * 1000, 50)) < 60
    escaped = environment().from_string("{{ value }}|{{ value | e }}|{{ value | e | e }}").render(value="<b>&\"'")
    assert html.unescape(escaped).split("|") == ["<b>&\"'"] * 3
    assert (number(None), number(12345.6), number(0.5, 2)) == ("-", "12,346", "0.50")
    assert (size(0), size(1500), size(12_345_678)) == ("0 B", "1.5 kB", "12 MB")
    assert (percent(1, 8), percent(3, 0), percent(1, 3, 0)) == ("12.5%", "0.0%", "33%")
    assert [short(n) for n in (7, 1000, 1234, 12_345, 10_000_000)] == ["7", "1k", "1234", "12k", "10M"]


def test_a_histogram_of_nothing_is_a_chart() -> None:
    template = environment().from_string(
        "{% from 'parts.html.jinja' import histogram %}{{ histogram('empty', 'units', ['0', '1'], [0, 0]) }}"
    )
    (chart,) = Checked(template.render()).all("svg")
    assert chart["aria-label"] == "empty: 0 in all, most at none units; the numbers are in the table below"


# ---- while a run goes on, and at its end ----------------------------------------------------------


def vitals(run: Run) -> RunProgress:
    return RunProgress(run, "labelling", 100, 40, 50, Counters(ok=40, instances=7), 4, 0, 0, 1, ())


def test_a_live_page_asks_for_itself_until_the_run_has_ended(tmp_path: Path) -> None:
    run = run_records.new_run(str(tmp_path))
    told: list[bool] = []

    def page(beat: Mapping[str, object]) -> str:
        told.append('http-equiv="refresh"' in live(beat))
        return live(beat)

    heart = HeartbeatWriter(StorageOptions(), lambda note: pytest.fail(note), every_s=3600, render_page=page)
    heart.beat(vitals(run))
    heart.close()
    last = Checked(Path(run.page).read_text())
    assert "40 of 100 images" in last.text
    assert not told[-1]
    assert all(told[:-1])
    beat = {**_beat(), "ended": False}
    assert {"http-equiv": "refresh", "content": "5"} in Checked(live(beat)).all("meta")


def _slow() -> dict[str, object]:
    return {"worker": "<1>", "host": "<h>", "device": "CPU", "images": 1, "images_per_s": 0.5, "in_flight": 1,
            "rss_mb": 5, "longest": {"stage": "infer", "s": 1.0}}  # fmt: skip


def _beat() -> dict[str, object]:
    return {"run_id": "r", "driver": {"host": "<script>"}, "at": "now", "every_s": 5.0, "phase": "labelling", "done": 1,
            "images": 2, "eta_s": 60.0, "images_per_s": 1.0, "labelled": {"instances": 1, "failed": 0}, "workers": 1,
            "units": 1, "retries": 0, "lost_workers": 0, "commits": 0, "bytes_read": 5, "waiting": 0, "in_flight": 1,
            "slowest": [_slow()]}  # fmt: skip


def ended(root: str) -> Summary:
    return Summary(root, {}, {}, Counters(), 1.0, 1.0, 13, 0, (), (), 0)


def settings(root: str, **given: object) -> config.Config:
    values = {"source": {"uri": "photos"}, "output": {"root": root}, "model": {"name": "stickers"}, **given}
    return config.validate(values, "test")


def test_a_run_leaves_its_report_beside_its_record(root: str) -> None:
    run = run_records.new_run(root)
    workers = [{"precision": "bf16", "device": "CPU", "device_name": "A CPU", "host": "h", "openvino": "2026.4"}]
    done = {"ok": 8, "empty": 1, "failed": 4}
    spent = {"read": 0.5, "infer": 2.0}
    run.save(Store(), {"state": "done", "source": "photos", "workers": workers, "labelled": done, "seconds": spent})
    where = session.report(settings(root), ended(root), Plain())
    assert where == run.page
    said = Checked(Path(run.page).read_text()).text
    assert "bf16" in said
    assert re.search(r"infer\s+2\.0\s+80%\s+-\s+153\.8\s+6\.5", said)
    assert session.report(settings(root, report=False), ended(root), Plain()) is None
    assert session.report(settings(root), replace(ended(root), planned=0), Plain()) is None


def test_a_report_that_fails_is_told_and_fails_nothing(tmp_path: Path) -> None:
    said = io.StringIO()
    assert session.report(settings(str(tmp_path)), ended(str(tmp_path)), Plain(said)) is None
    assert "the labels are complete: UserError: no run is recorded here" in said.getvalue()


@pytest.mark.integration
def test_a_label_set_in_a_bucket_is_reported_into_it(root: str, swift_env: Swift) -> None:
    options = StorageOptions(endpoint_url=swift_env.endpoint_url)
    store, remote = Store(options), f"s3://{swift_env.bucket()}/labels"
    run_records.new_run(root).save(Store(), {"state": "done"})
    for path in Path(root).rglob("*"):
        if path.is_file():
            store.put(join(remote, str(path.relative_to(root))), path.read_bytes())
    where = pages.of_run(remote, endpoint_url=swift_env.endpoint_url)
    assert len(Checked(store.read(where).decode()).all("img")) == 9


@pytest.mark.integration
def test_a_browser_shows_it_in_light_and_dark_and_on_a_phone(root: str, tmp_path: Path) -> None:
    browser = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    if browser is None:
        pytest.skip("no Chromium on the path, and none named by CHROMIUM")
    page = tmp_path / "page.html"
    page.write_text(report(root))

    def shot(width: int, scheme: int) -> np.ndarray:
        out = tmp_path / f"{width}-{scheme}.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={out}",
             f"--user-data-dir={tmp_path}/profile", f"--window-size={width},1500",
             f"--blink-settings=preferredColorScheme={scheme}", page.as_uri()],
            check=True, timeout=300, capture_output=True,
        )  # fmt: skip
        return cv2.imread(str(out)).astype(int)

    light, dark, phone = shot(1200, 1), shot(1200, 0), shot(500, 1)
    assert light[5, 5].min() > 230
    assert dark[5, 5].max() < 40
    assert np.ptp(light, axis=(0, 1)).min() > 100  # there is something on it
    assert (phone[:, -8:] == phone[5, 5]).all()  # and nothing sticks out
