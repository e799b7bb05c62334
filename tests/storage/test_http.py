"""Links by http: bounded reads, time limits, and the trouble that servers make."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import trouble_server
from trouble_server import TroubleServer

from segray.errors import AccessError, InfrastructureError
from segray.storage.store import StorageOptions, Store

CONTENT = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def server() -> Iterator[TroubleServer]:
    with trouble_server.serve() as running:
        yield running


@pytest.fixture
def store() -> Store:
    return Store(StorageOptions(timeout_s=0.5, retries=0))


def test_whole_files_beginnings_and_ranges_are_read(server: TroubleServer, store: Store) -> None:
    url = server.put("a.jpg", CONTENT)
    assert store.read(url) == CONTENT
    assert store.read(url, 100) == CONTENT[:100]
    assert store.read(url, len(CONTENT) + 1) == CONTENT
    assert store.read_range(url, 300, 50) == CONTENT[300:350]
    assert store.read_range(url, len(CONTENT) + 5, 50) == b""
    assert store.stat(url).size_bytes == len(CONTENT)
    assert store.stat(url).version == str(len(CONTENT))
    assert store.read(url.replace("/ok/", "/away/")) == CONTENT
    with store.reader(url) as file:
        file.seek(-10, 2)
        assert file.read() == CONTENT[-10:]


def test_a_server_without_ranges_is_read_from_the_start(server: TroubleServer, store: Store) -> None:
    url = server.put("b.jpg", CONTENT).replace("/ok/", "/whole/")
    assert store.read_range(url, 300, 50) == CONTENT[300:350]
    assert store.read(url, 10) == CONTENT[:10]


def test_an_empty_file_and_names_of_any_script_are_read(server: TroubleServer, store: Store) -> None:
    assert store.read(server.put("empty.jpg", b"")) == b""
    server.put("%E7%8C%AB%20a+b.jpg", CONTENT)
    assert store.read(f"{server.root}/ok/猫 a+b.jpg") == CONTENT
    assert store.read(f"{server.root}/ok/%E7%8C%AB%20a+b.jpg?sig=a%2Fb+c") == CONTENT
    assert server.requests[-1][0].endswith("?sig=a%2Fb+c")


def test_requests_carry_the_programs_name_or_the_configured_headers(server: TroubleServer, store: Store) -> None:
    url = server.put("a.jpg", CONTENT)
    store.read(url)
    assert server.requests[-1][2].startswith("segray/")
    Store(StorageOptions(http_headers={"User-Agent": "our crawler"})).read(url)
    assert server.requests[-1][2] == "our crawler"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, FileNotFoundError), (410, FileNotFoundError), (401, AccessError), (403, AccessError), (451, AccessError)],
)
def test_a_link_is_gone_or_refused_by_its_status(
    server: TroubleServer, store: Store, status: int, kind: type[Exception]
) -> None:
    asked = len(server.requests)
    with pytest.raises(kind, match=str(status)):
        store.read(f"{server.root}/status/{status}/a.jpg")
    assert len(server.requests) == asked + 1


@pytest.mark.parametrize(
    "kind",
    [
        "silent",
        "stops",
        "slow",
        "cut",
        "reset",
        "loop",
        "encoding",
        "garbage",
        "status/429",
        "status/500",
        "status/503",
    ],
)
def test_trouble_is_one_of_infrastructure_and_ends_in_time(server: TroubleServer, store: Store, kind: str) -> None:
    begin_s = time.monotonic()
    with pytest.raises(InfrastructureError) as caught:
        store.read(f"{server.root}/{kind}/a.jpg", 10_000)
    assert time.monotonic() - begin_s < 5
    assert not isinstance(caught.value, AccessError)
    assert caught.value.found


def test_hosts_that_are_not_there_are_told_in_time(store: Store) -> None:
    for url in ("http://127.0.0.1:1/a.jpg", "http://nowhere.invalid/a.jpg", "https://127.0.0.1:1/a.jpg"):
        with pytest.raises(InfrastructureError, match="cannot be reached"):
            store.read(url)


def test_an_endless_body_is_read_to_the_limit_alone(server: TroubleServer, store: Store) -> None:
    before = server.sent_bytes
    assert len(store.read(f"{server.root}/endless/a.jpg", 100_001)) == 100_001
    time.sleep(0.5)
    assert server.sent_bytes - before < 20e6


def test_nothing_is_written_by_http(server: TroubleServer, store: Store) -> None:
    for write in (store.put, store.create):
        with pytest.raises(AccessError, match=r"(?s)read only.*output\.root"):
            write(f"{server.root}/ok/new", b"x")
    with pytest.raises(AccessError, match="read only"):
        store.delete(f"{server.root}/ok/a.jpg")
