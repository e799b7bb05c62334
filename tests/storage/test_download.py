"""download.py against a real server with bad habits, and archives made to do harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from web import Web

from segray.errors import InfrastructureError, ModelError, SegrayError
from segray.storage import download as module
from segray.storage.download import RetryPolicy, download_file, unpack

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SHA384 = hashlib.sha384(CONTENT).hexdigest()
HASTY = RetryPolicy(retries=2, pause_s=0.001, timeout_s=5)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- downloads ------------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_alone(web: Web, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "a.bin"
    url = web.put("/a.bin", CONTENT)
    digest = download_file(
        [url], target, sha256=SHA256, sha384=SHA384, size_bytes=len(CONTENT),
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert digest == SHA256
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == ["a.bin"]
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_a_file_that_is_there_costs_no_request(web: Web, tmp_path: Path) -> None:
    url = web.put("/a.bin", CONTENT)
    for _ in range(2):
        download_file([url], tmp_path / "a.bin", sha256=SHA256)
    assert len(web.asked) == 1


def test_a_file_that_is_there_but_another_is_left_and_told(web: Web, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(
        ModelError, match=r"differs from the expected file[\s\S]*4 bytes, expected 1024000[\s\S]*Remove the file"
    ):
        download_file([], tmp_path / "a.bin", size_bytes=len(CONTENT))
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_a_cut_connection_goes_on_where_it_ended(web: Web, tmp_path: Path) -> None:
    url = web.put("/a.bin", CONTENT, cuts=[300_000, 400_000])
    assert download_file([url], tmp_path / "a.bin", sha256=SHA256, retry_policy=HASTY) == SHA256
    assert [wanted for _, wanted in web.asked] == [None, "bytes=300000-", "bytes=700000-"]
    assert names(tmp_path) == ["a.bin"]


def test_what_came_before_an_interruption_is_kept_for_the_next_call(web: Web, tmp_path: Path) -> None:
    url = web.put("/a.bin", CONTENT, cuts=[500_000, 0, 0, 0])
    with pytest.raises(InfrastructureError, match=r"ended after 500000 of 1024000 bytes \(500000 bytes are kept\)"):
        download_file([url], tmp_path / "a.bin", sha256=SHA256, retry_policy=HASTY)
    assert names(tmp_path) == ["a.bin.part", "a.bin.part.from"]
    assert download_file([url], tmp_path / "a.bin", sha256=SHA256, retry_policy=HASTY) == SHA256
    assert web.asked[-1][1] == "bytes=500000-"
    assert names(tmp_path) == ["a.bin"]


def test_another_mirror_goes_on_with_the_same_part(web: Web, tmp_path: Path) -> None:
    urls = [web.put("/a", CONTENT, cuts=[600_000, 0, 0, 0]), web.put("/b", CONTENT, tag='"two"')]
    download_file(urls, tmp_path / "a.bin", sha256=SHA256, retry_policy=HASTY)
    assert web.asked[-1] == ("/b", "bytes=600000-")


def test_without_a_checksum_mirrors_do_not_mix(web: Web, tmp_path: Path) -> None:
    urls = [web.put("/a", CONTENT, cuts=[600_000, 0, 0, 0]), web.put("/b", b"other", tag='"two"')]
    download_file(urls, tmp_path / "a.bin", retry_policy=HASTY)
    assert web.asked[-1] == ("/b", None)
    assert (tmp_path / "a.bin").read_bytes() == b"other"


def test_without_a_checksum_a_file_that_changed_meanwhile_starts_anew(web: Web, tmp_path: Path) -> None:
    url = web.put("/a", b"x" * 1000, cuts=[500, 0, 0, 0])
    with pytest.raises(InfrastructureError):
        download_file([url], tmp_path / "a.bin", retry_policy=HASTY)
    web.put("/a", b"y" * 1000, tag='"two"')
    download_file([url], tmp_path / "a.bin", retry_policy=HASTY)
    assert (tmp_path / "a.bin").read_bytes() == b"y" * 1000


def test_a_server_that_ignores_if_range_does_not_mix_two_files(web: Web, tmp_path: Path) -> None:
    url = web.put("/a", b"x" * 1000, cuts=[500], heeds_tag=False, later=(b"y" * 1000, '"two"'))
    download_file([url], tmp_path / "a.bin", retry_policy=HASTY)
    assert (tmp_path / "a.bin").read_bytes() == b"y" * 1000


def test_a_server_without_ranges_starts_anew(web: Web, tmp_path: Path) -> None:
    url = web.put("/a.bin", CONTENT, ranges=False, cuts=[500_000])
    assert download_file([url], tmp_path / "a.bin", sha256=SHA256, retry_policy=HASTY) == SHA256
    assert len(web.asked) == 2


def test_a_server_without_ranges_that_always_cuts_is_given_up(web: Web, tmp_path: Path) -> None:
    url = web.put("/a.bin", CONTENT, ranges=False, cuts=[500_000] * 9)
    with pytest.raises(InfrastructureError, match="ended after 500000"):
        download_file([url], tmp_path / "a.bin", sha256=SHA256, retry_policy=HASTY)
    assert len(web.asked) == 4


def test_another_range_than_asked_for_is_not_glued_on(web: Web, tmp_path: Path) -> None:
    url = web.put("/a.bin", CONTENT, cuts=[500_000], shift=7)
    assert download_file([url], tmp_path / "a.bin", sha256=SHA256, retry_policy=HASTY) == SHA256


def test_a_part_that_was_whole_already_is_only_checked(web: Web, tmp_path: Path) -> None:
    url = web.put("/a.bin", CONTENT)
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert download_file([url], tmp_path / "a.bin", sha256=SHA256) == SHA256  # 416: the range begins at the end
    assert web.asked == [("/a.bin", "bytes=1024000-")]
    (tmp_path / "b.bin.part").write_bytes(CONTENT)
    assert download_file([url], tmp_path / "b.bin", sha256=SHA256, size_bytes=len(CONTENT)) == SHA256
    assert len(web.asked) == 1
    assert names(tmp_path) == ["a.bin", "b.bin"]


@pytest.mark.parametrize("left", [b"garbage", CONTENT[:-1] + b"!", CONTENT + b"more"])
def test_a_damaged_part_is_thrown_away_and_fetched_once_more(web: Web, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "a.bin.part").write_bytes(left)
    url = web.put("/a.bin", CONTENT)
    download_file([url], tmp_path / "a.bin", sha256=SHA256, size_bytes=len(CONTENT), retry_policy=HASTY)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_is_told_and_nothing_stays(web: Web, tmp_path: Path) -> None:
    url = web.put("/a.bin", CONTENT[:-1] + b"!")
    with pytest.raises(ModelError, match=rf"another file than expected[\s\S]*{url}: sha384 \w+, expected {SHA384}"):
        download_file([url], tmp_path / "a.bin", sha384=SHA384)
    assert names(tmp_path) == []


def test_after_a_wrong_checksum_the_next_mirror_is_tried(web: Web, tmp_path: Path) -> None:
    urls = [web.put("/a", b"bad"), web.put("/b", CONTENT)]
    download_file(urls, tmp_path / "a.bin", sha256=SHA256)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_another_size_is_refused_before_the_body(web: Web, tmp_path: Path) -> None:
    told: list[int] = []
    with pytest.raises(InfrastructureError, match="has 1024000 bytes, not 5"):
        download_file(
            [web.put("/a", CONTENT)], tmp_path / "a", size_bytes=5, progress=lambda done, _: told.append(done)
        )
    assert told == []


def test_the_first_mirror_is_gone(web: Web, tmp_path: Path) -> None:
    urls = [f"{web.root}/gone", web.put("/b", CONTENT)]
    download_file(urls, tmp_path / "a.bin", sha256=SHA256)
    assert [path for path, _ in web.asked] == ["/gone", "/b"]


@contextmanager
def mute(silent: bool) -> Iterator[tuple[str, list[socket.socket]]]:
    """An address that takes connections and answers none, and the connections. silent: they stay open."""
    with ExitStack() as ends:
        server = ends.enter_context(socket.create_server(("127.0.0.1", 0)))
        taken: list[socket.socket] = []

        def take() -> None:
            with suppress(OSError):  # The server is closed at the end.
                while True:
                    taken.append(server.accept()[0])
                    ends.callback(taken[-1].close)
                    if not silent:
                        taken[-1].recv(1 << 16)
                        taken[-1].close()

        thread = threading.Thread(target=take)
        ends.callback(thread.join)
        ends.callback(server.shutdown, socket.SHUT_RDWR)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a", taken


@pytest.mark.parametrize("silent", [True, False])
def test_a_server_that_does_not_answer_costs_a_few_tries(web: Web, tmp_path: Path, silent: bool) -> None:
    retry_policy = RetryPolicy(retries=2, pause_s=0.001, timeout_s=0.2 if silent else 5)
    began_s = time.monotonic()
    with mute(silent) as (url, tries):
        download_file([url, web.put("/b", CONTENT)], tmp_path / "a.bin", sha256=SHA256, retry_policy=retry_policy)
    assert time.monotonic() - began_s < 30, "a try waits longer than timeout_s"
    assert len(tries) == 1 + retry_policy.retries
    assert web.asked == [("/b", None)]
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_closed_port_is_tried_again_and_then_told(web: Web, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # It does not listen, so connections are refused.
        closed = f"http://127.0.0.1:{bound.getsockname()[1]}/a"
        with pytest.raises(InfrastructureError, match=rf"{closed}: .*Connection refused.* \(0 bytes are kept\)"):
            download_file([closed], tmp_path / "a.bin", sha256=SHA256, retry_policy=HASTY)
        download_file([closed, web.put("/b", CONTENT)], tmp_path / "a.bin", sha256=SHA256, retry_policy=HASTY)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_busy_servers_are_asked_again_and_refusals_are_not(web: Web, tmp_path: Path) -> None:
    download_file([web.put("/a", CONTENT, statuses=[503, 429])], tmp_path / "a", retry_policy=HASTY)
    assert len(web.asked) == 3
    with pytest.raises(InfrastructureError, match=r"No address gives the file[\s\S]*HTTP 403"):
        download_file([web.put("/b", CONTENT, statuses=[403])], tmp_path / "b", retry_policy=HASTY)
    assert len(web.asked) == 4


def test_a_login_page_is_no_file(web: Web, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="a web page, not a file"):
        download_file([web.put("/a", b"<html>", content_type="text/html")], tmp_path / "a")
    assert names(tmp_path) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/a", "a.bin"])
def test_only_http_is_spoken(tmp_path: Path, url: str) -> None:
    with pytest.raises(InfrastructureError, match="not an http address"):
        download_file([url], tmp_path / "a")


def test_without_a_length_the_checksum_decides(web: Web, tmp_path: Path) -> None:
    url = web.put("/a", CONTENT, length=False)
    download_file([url], tmp_path / "a", sha256=SHA256)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_the_first_downloads_checksum_holds_from_then_on(web: Web, tmp_path: Path) -> None:
    url, target = web.put("/a", CONTENT), tmp_path / "a.bin"
    download_file([url], target)
    assert (tmp_path / "a.bin.sha256").read_text() == f"{SHA256}  a.bin\n"
    target.unlink()
    web.put("/a", CONTENT + b"!")
    with pytest.raises(ModelError, match=rf"expected {SHA256}[\s\S]*or remove a\.bin\.sha256 to accept"):
        download_file([url], target)
    assert names(tmp_path) == ["a.bin.sha256"]
    target.write_bytes(b"tampered")
    with pytest.raises(ModelError, match="differs from the expected file"):
        download_file([url], target)


def test_a_file_that_the_user_put_there_is_recorded_too(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    assert download_file([], tmp_path / "a.bin") == SHA256
    assert SHA256 in (tmp_path / "a.bin.sha256").read_text()


def test_a_record_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.bin.sha256").write_text("")
    with pytest.raises(ModelError, match="record does not contain a SHA-256"):
        download_file([], tmp_path / "a.bin")


def test_two_at_once_do_not_write_into_each_other(web: Web, tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def wait(done: int, total: int | None) -> None:
        reached.set()
        assert go_on.wait(10)

    arguments: dict[str, Any] = {"sha256": SHA256, "progress": wait}
    first = threading.Thread(
        target=download_file, args=([web.put("/a", CONTENT)], tmp_path / "a.bin"), kwargs=arguments
    )
    first.start()
    assert reached.wait(10)
    with pytest.raises(InfrastructureError, match="Another process downloads this file"):
        download_file([web.put("/a", CONTENT)], tmp_path / "a.bin", sha256=SHA256)
    go_on.set()
    first.join(10)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_disk_that_does_not_take_it_is_the_worlds_fault(web: Web, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InfrastructureError, match=r"cannot be written[\s\S]*another folder"):
        download_file([web.put("/a", CONTENT)], tmp_path / "file" / "a.bin")


# ---- archives -------------------------------------------------------------------------------------


def member(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return path


GOOD = (
    member("model", type=tarfile.DIRTYPE, mode=0o000),
    member("model/graph.pb", CONTENT, mode=0o4777, uid=0),
    member("model/deep/variables", b"v"),
)


def test_an_archive_becomes_a_folder_at_once(tmp_path: Path) -> None:
    unpack(archive(tmp_path / "a.tar.gz", *GOOD), tmp_path / "out")
    assert (tmp_path / "out" / "model" / "graph.pb").read_bytes() == CONTENT
    assert (tmp_path / "out" / "model" / "deep" / "variables").read_bytes() == b"v"
    assert (tmp_path / "out" / "model" / "graph.pb").stat().st_mode & 0o7133 == 0
    assert names(tmp_path) == ["a.tar.gz", "out"]


def test_a_folder_that_is_there_is_left_alone_and_an_unfinished_one_is_not(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", *GOOD)
    (tmp_path / "out.part" / "model" / "graph.pb").mkdir(parents=True)
    unpack(source, tmp_path / "out")
    (tmp_path / "out" / "mine").write_text("x")
    unpack(source, tmp_path / "out")
    assert names(tmp_path / "out") == ["mine", "model"]


BAD = {
    "parent": (member("../evil", b"x"), "lies outside"),
    "hidden parent": (member("a/../../evil", b"x"), "lies outside"),
    "absolute": (member("/tmp/segray-evil", b"x"), "lies outside"),
    "symlink out": (member("link", type=tarfile.SYMTYPE, linkname="../evil"), "neither a file nor"),
    "symlink to the root": (member("link", type=tarfile.SYMTYPE, linkname="/"), "neither a file nor"),
    "hardlink out": (member("link", type=tarfile.LNKTYPE, linkname="../evil"), "neither a file nor"),
    "device": (member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "neither a file nor"),
    "block device": (member("disk", type=tarfile.BLKTYPE), "neither a file nor"),
    "pipe": (member("pipe", type=tarfile.FIFOTYPE), "neither a file nor"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_archive_that_reaches_out_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    bad, says = BAD[case]
    home = tmp_path / "home"
    home.mkdir()
    source = archive(home / "a.tar.gz", *GOOD, bad)
    with pytest.raises(ModelError, match=rf"cannot be unpacked[\s\S]*{says}"):
        unpack(source, home / "out")
    assert names(home) == ["a.tar.gz"]
    assert names(tmp_path) == ["home"]
    assert not Path("/tmp/segray-evil").exists()


def test_a_link_cannot_be_written_through(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    link = member("link", type=tarfile.SYMTYPE, linkname="..")
    source = archive(tmp_path / "home" / "a.tar.gz", link, member("link/../evil", b"x"), member("link/evil", b"x"))
    with pytest.raises(ModelError):
        unpack(source, tmp_path / "home" / "out")
    assert names(tmp_path) == ["home"]


def test_too_many_members(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", *(member(f"f{i}") for i in range(11)))
    with pytest.raises(ModelError, match="more than 10 members"):
        unpack(source, tmp_path / "out", max_members=10)
    unpack(source, tmp_path / "out", max_members=11)


def test_too_many_bytes(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.tar.gz", member("a", bytes(600)), member("b", bytes(600)))
    with pytest.raises(ModelError, match="more than 1199 bytes"):
        unpack(source, tmp_path / "out", max_bytes=1199)
    unpack(source, tmp_path / "out", max_bytes=1200)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    source = tmp_path / "a.tar.gz"
    header = member("zeros")[0]
    header.size = 4 << 30
    with gzip.open(source, "wb", compresslevel=1) as stream:
        stream.write(header.tobuf())
    with pytest.raises(ModelError, match="more than 1048576 bytes"):
        unpack(source, tmp_path / "out", max_bytes=1 << 20)
    assert names(tmp_path) == ["a.tar.gz"]


def test_a_sparse_file_counts_with_its_holes(tmp_path: Path) -> None:
    holes = member("holes", pax_headers={
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40), "GNU.sparse.name": "x",
    })[0]  # fmt: skip
    source = tmp_path / "a.tar.gz"
    with gzip.open(source, "wb") as stream:
        body = b"1\n0\n0\n".ljust(512, b"\0")
        holes.size = len(body)
        stream.write(holes.tobuf(tarfile.PAX_FORMAT) + body + bytes(1024))
    with pytest.raises(ModelError, match="more than"):
        unpack(source, tmp_path / "out", max_bytes=1 << 30)


def test_a_bomb_in_the_headers_is_not_read(tmp_path: Path) -> None:
    header = member("./PaxHeaders", type=tarfile.XHDTYPE)[0]
    header.size = 1 << 30
    source = tmp_path / "a.tar.gz"
    with gzip.open(source, "wb", compresslevel=1) as stream:
        stream.write(header.tobuf(tarfile.USTAR_FORMAT))
    with pytest.raises(ModelError, match="a header of 1073741824 bytes"):
        unpack(source, tmp_path / "out")


def test_a_bomb_behind_the_end_mark_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLACK_BYTES", 1 << 20)
    source = tmp_path / "a.tar.gz"
    with gzip.open(source, "wb", compresslevel=1) as stream:
        stream.write(bytes(8 << 20))
    with pytest.raises(ModelError, match="more than"):
        unpack(source, tmp_path / "out", max_bytes=1 << 20)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip", "no tar", "header", "empty"])
def test_a_damaged_archive_is_never_half_a_folder(tmp_path: Path, damage: str) -> None:
    noise = os.urandom(20_000)
    source = archive(tmp_path / "a.tar.gz", member("a", noise), member("b", noise), member("c", noise))
    data = source.read_bytes()
    plain = bytearray(gzip.decompress(data))
    plain[20_992 + 10] ^= 0xFF  # in the header of b
    middle = len(data) // 2
    broken = {
        "cut": data[:middle],
        "flipped": data[:-6] + bytes([data[-6] ^ 1]) + data[-5:],
        "no gzip": noise,
        "no tar": gzip.compress(noise),
        "header": gzip.compress(bytes(plain)),
        "empty": b"",
    }
    source.write_bytes(broken[damage])
    with pytest.raises(SegrayError, match="cannot be unpacked"):
        unpack(source, tmp_path / "out")
    assert names(tmp_path) == ["a.tar.gz"]
