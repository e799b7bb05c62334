"""Which withheld images get a row: those that their host, bucket or folder withholds alone, while it serves others."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pytest
import trouble_server
from test_labeller import labeller, photo
from trouble_server import TroubleServer

from segray.execution.labeller import Labeller
from segray.instances import ImageRef
from segray.storage.store import StorageOptions, Store
from segray.tasks import Task, TaskReport

TROUBLES = ["status/401", "status/403", "status/429", "status/500", "status/503", "reset", "garbage", "silent", "cut"]
# What a host answers that is at fault as a whole, but no longer has a file.
OUTAGES = [*TROUBLES, "status/404"]


def tried(troubles: Sequence[str], usual: Collection[str]) -> list[object]:
    """Return the troubles as parameters. Those that are not usual belong to chaos."""
    return [pytest.param(trouble, marks=[] if trouble in usual else [pytest.mark.chaos]) for trouble in troubles]


@pytest.fixture
def hosts() -> Iterator[tuple[TroubleServer, TroubleServer]]:
    with trouble_server.serve() as one, trouble_server.serve() as other:
        yield one, other


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Labeller]:
    made = labeller(tmp_path / "staged", store=Store(StorageOptions(timeout_s=3, retries=0)))
    yield made
    made.close()


@pytest.fixture
def links(tmp_path: Path) -> Callable[[TroubleServer, int], list[str]]:
    """Return links to so many images of a host."""

    def put(host: TroubleServer, count: int) -> list[str]:
        pictures = [Path(photo(tmp_path / f"{number}.png", number).uri).read_bytes() for number in range(count)]
        return [host.put(f"{number}.png", data) for number, data in enumerate(pictures)]

    return put


def label(worker: Labeller, uris: Sequence[str]) -> TaskReport:
    return worker.label(Task(0, 0, len(uris)), [ImageRef(uri, uri) for uri in uris])


def row_errors(report: TaskReport) -> list[str]:
    return [image.row_error for image in report.withheld]


@pytest.mark.parametrize("trouble", tried(TROUBLES, ("status/401", "status/500", "garbage", "silent")))
def test_a_link_that_its_host_withholds_alone_gets_a_row(
    hosts: tuple[TroubleServer, TroubleServer],
    worker: Labeller,
    links: Callable[[TroubleServer, int], list[str]],
    trouble: str,
) -> None:
    uris = links(hosts[0], 3)
    report = label(worker, [uris[0], f"{hosts[0].root}/{trouble}/x.png", *uris[1:]])
    is_refused = trouble in ("status/401", "status/403")
    assert row_errors(report) == ["AccessDenied" if is_refused else "Unreachable"]
    assert report.withheld[0].refused == is_refused
    assert sum(part.ok + part.empty for part in report.staged) == 3


@pytest.mark.parametrize("trouble", tried(OUTAGES, ("status/403", "status/404", "status/503", "cut")))
def test_a_host_that_served_and_withholds_everything_now_costs_no_row_yet(
    hosts: tuple[TroubleServer, TroubleServer],
    worker: Labeller,
    links: Callable[[TroubleServer, int], list[str]],
    trouble: str,
) -> None:
    uris, others = links(hosts[0], 6), links(hosts[1], 4)
    assert label(worker, [*uris[:3], *others[:2]]).withheld == ()
    hosts[0].everywhere = trouble
    report = label(worker, [*uris[3:], *others[2:]])
    # A host that no longer answers fails in the end, after a longer time.
    is_patient = trouble not in ("status/401", "status/403")
    assert row_errors(report) == ["Unreachable" if is_patient else ""] * 3
    assert {image.host_served for image in report.withheld} == {is_patient}
    assert [part.failed for part in report.staged] == [0]
    hosts[0].everywhere = ""
    assert label(worker, uris[3:]).withheld == ()


@pytest.mark.parametrize("trouble", tried(TROUBLES, ("status/401", "status/429", "reset")))
def test_a_host_that_never_served_is_unreachable_while_another_serves_and_costs_no_row_alone(
    hosts: tuple[TroubleServer, TroubleServer],
    worker: Labeller,
    links: Callable[[TroubleServer, int], list[str]],
    trouble: str,
) -> None:
    hosts[0].everywhere = trouble
    uris = links(hosts[0], 3)
    assert row_errors(label(worker, uris)) == [""] * 3
    assert row_errors(label(worker, [*uris, *links(hosts[1], 2)])) == ["Unreachable"] * 3


def test_links_that_are_gone_get_rows_where_nothing_else_was_served_or_something_still_is(
    hosts: tuple[TroubleServer, TroubleServer], worker: Labeller, links: Callable[[TroubleServer, int], list[str]]
) -> None:
    gone = [f"{hosts[0].root}/ok/gone-{number}.png" for number in range(3)]
    first, second = label(worker, gone), label(worker, [*links(hosts[0], 2), *gone])
    assert [sum(part.failed for part in report.staged) for report in (first, second)] == [3, 3]


def test_a_host_that_answers_every_link_with_a_page_costs_no_row(
    hosts: tuple[TroubleServer, TroubleServer], worker: Labeller, links: Callable[[TroubleServer, int], list[str]]
) -> None:
    uris = links(hosts[0], 4)
    page = f"{hosts[0].root}/html/x.png"
    (part,) = label(worker, [*uris[:2], page]).staged
    assert part.failed == 1
    hosts[0].everywhere = "html"
    report = label(worker, uris[2:])
    assert row_errors(report) == [""] * 2
    assert "also where the host served images before" in report.withheld[0].reason
    hosts[0].everywhere = ""
    assert label(worker, uris[2:]).withheld == ()


# ---- folders --------------------------------------------------------------------------------------


@pytest.fixture
def disks(tmp_path: Path) -> list[Path]:
    """Two folders with four images each, two of them in a folder below."""
    for disk in ("one", "two"):
        (tmp_path / disk / "below").mkdir(parents=True)
        for number in range(4):
            photo(tmp_path / disk / ("below" if number > 1 else ".") / f"{number}.png", number)
    return [tmp_path / "one", tmp_path / "two"]


def files(disk: Path) -> list[str]:
    return [str(disk / name) for name in ("0.png", "1.png", "below/2.png", "below/3.png")]


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_disk_that_goes_away_costs_no_row_while_another_stays(
    worker: Labeller, disks: list[Path], left: str, tmp_path: Path
) -> None:
    one, two = map(files, disks)
    assert label(worker, [*one[:2], *two[:2]]).withheld == ()
    disks[0].rename(tmp_path / "unmounted")
    if left == "an empty folder":
        disks[0].mkdir()
    report = label(worker, [*one[2:], *two[2:]])
    assert [image.index for image in report.withheld] == [0, 1]
    assert not any(image.row_error or image.refused for image in report.withheld)
    assert [(part.failed, part.images) for part in report.staged] == [(0, 2)]
    shutil.rmtree(disks[0], ignore_errors=True)
    (tmp_path / "unmounted").rename(disks[0])
    assert label(worker, one[2:]).withheld == ()


def test_files_that_are_gone_alone_get_rows(worker: Labeller, disks: list[Path]) -> None:
    one, _ = map(files, disks)
    Path(one[1]).unlink()
    shutil.rmtree(disks[0] / "below")
    report = label(worker, one)
    assert report.withheld == ()
    assert sum(part.failed for part in report.staged) == 3
