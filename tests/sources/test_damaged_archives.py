"""Joined, damaged and cut archives: each member has a row, or a failed row says what was not read. Names and habits."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapes
from hypothesis import example, given
from hypothesis import strategies as st
from properties import tried
from shapes import add

from segray import config
from segray._system.memory import MemoryBudget
from segray.errors import ImageError, SourceError
from segray.instances import ImageRef
from segray.limits import ImageLimits
from segray.sources import listing
from segray.sources import reader as reading
from segray.sources.passed_over import PassedOver
from segray.sources.shard_index import Index
from segray.sources.uris import inside
from segray.storage.store import StorageOptions, Store

STORE = Store(StorageOptions(retries=0))


def listed(
    uri: Path | str, passed_over: PassedOver | None = None, index: Index | None = None, **source: object
) -> list[ImageRef]:
    settings = config.SourceSettings.model_validate({"uri": str(uri), **source})
    batches = listing.configured(settings, STORE, index, passed_over=passed_over)
    return [ref for batch in batches for ref in listing.refs(batch)]


def contents(uri: Path | str, **source: object) -> dict[str, bytes | str]:
    """By key without the archive's name: the bytes, or the reason of the failed row."""
    files = reading.Files(STORE, ImageLimits(), MemoryBudget(64 << 20))
    found: dict[str, bytes | str] = {}
    for ref in listed(uri, **source):
        try:
            found[ref.key.partition("/")[2]] = files.read(ref)
        except ImageError as error:
            found[ref.key.partition("/")[2]] = str(error)
    return found


def tar_of(*names: str, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as archive:
        for name in names:
            add(archive, name, name.encode() * 40)
    return stream.getvalue()


def zip_of(*names: str, comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, name.encode() * 40)
        archive.comment = comment
    return stream.getvalue()


def bodies(*names: str) -> dict[str, bytes | str]:
    return {name: name.encode() * 40 for name in names}


ZERO_BLOCK = bytes(512)
EMPTY_TAR = tar_of()


# ---- joined archives ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        [tar_of("1.png", "2.png"), tar_of("3.png", "4.png")],
        [EMPTY_TAR, tar_of("1.png", "2.png", "3.png", "4.png")],
        [EMPTY_TAR, EMPTY_TAR, tar_of("1.png", "2.png"), EMPTY_TAR, tar_of("3.png", "4.png"), EMPTY_TAR],
        [tar_of("1.png", "2.png")[:2048], ZERO_BLOCK, tar_of("3.png", "4.png")],
        [tar_of("1.png", "2.png")[:2048], tar_of("3.png", "4.png")],
        [tar_of("1.png", "2.png", "3.png", "4.png")[:4096], ZERO_BLOCK],
        [tar_of("1.png", "2.png", "3.png", "4.png"), bytes(1 << 20)],
    ],
    ids=[
        "two",
        "an empty one first",
        "several",
        "one zero block",
        "no end mark between",
        "one zero block last",
        "zeros",
    ],
)
def test_tars_in_one_file_give_all_members(parts: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    assert contents(tmp_path / "a.tar") == bodies("1.png", "2.png", "3.png", "4.png")


def test_an_empty_tar_is_no_fault_beside_others(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of("1.png"))
    (tmp_path / "b.tar").write_bytes(EMPTY_TAR)
    (tmp_path / "c.tar").write_bytes(bytes(1024))
    assert [ref.key for ref in listed(tmp_path)] == ["a.tar/1.png"]


@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
@pytest.mark.parametrize("tar_format", ["ustar", "gnu", "pax", "v7"])
def test_tars_of_gnu_tar_in_one_file_give_all_members(tar_format: str, tmp_path: Path) -> None:
    long_name = "d" * 60 + "/" + "e" * 30 + "/3.png"
    names = {"1.png": b"1" * 700, "2.png": b"", **({} if tar_format == "v7" else {long_name: b"3" * 10_000})}
    for name, data in names.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    for number, name in enumerate(names):
        command = ["tar", f"--format={tar_format}", "-C", str(tmp_path / "in"), "-cf", str(tmp_path / f"{number}.tar")]
        subprocess.run([*command, name], check=True)
    joined = b"".join((tmp_path / f"{number}.tar").read_bytes() for number in range(len(names)))
    (tmp_path / "a.tar").write_bytes(joined)
    assert contents(tmp_path / "a.tar") == names


@pytest.mark.parametrize(
    "parts",
    [
        [zip_of("1.png", "2.png"), zip_of("3.png", "4.png")],
        [zip_of("1.png"), zip_of("2.png"), zip_of("3.png"), zip_of("4.png")],
        [b"#!/bin/sh\nexit\n", zip_of("1.png", "2.png", "3.png", "4.png")],
        [b"MZ program", zip_of("1.png", "2.png"), zip_of("3.png", "4.png", comment=b"a comment")],
        [zip_of("1.png", "2.png", comment=b"c" * 60_000), b"between", zip_of("3.png", "4.png"), b"\n"],
        [zip_of(), zip_of("1.png", "2.png", "3.png", "4.png")],
        [zip_of("1.png", "2.png", "3.png", "4.png"), zip_of()],
    ],
    ids=[
        "two",
        "four",
        "a script first",
        "a program first",
        "bytes between",
        "an empty one first",
        "an empty one last",
    ],
)
def test_zips_in_one_file_give_all_members(parts: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"".join(parts))
    assert contents(tmp_path / "a.zip") == bodies("1.png", "2.png", "3.png", "4.png")


def test_the_last_zip_keeps_its_keys_where_names_repeat(tmp_path: Path) -> None:
    first, last = io.BytesIO(), io.BytesIO()
    for stream, data in ((first, b"first"), (last, b"last")):
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("1.png", data)
    (tmp_path / "a.zip").write_bytes(first.getvalue() + last.getvalue())
    found = contents(tmp_path / "a.zip")
    assert found["1.png"] == b"last"
    assert "another member of the archive has this name" in str(found["1.png#2"])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tar_of("1.png", "2.png") + b"x" * 512 + tar_of("3.png"), "no tar header at byte 10240"),
        (tar_of("1.png", "2.png")[:2048] + ZERO_BLOCK + b"x" * 2000, "no tar header at byte 2560"),
        (tar_of("1.png", "2.png")[:2048], "ends at byte 2048 without its end mark"),
        (tar_of("1.png") + bytes(3 << 20), "only zeros from byte 1024 to byte"),
        (bytes(20_480), "only zeros from byte 0 to byte 20480"),
    ],
)
def test_a_tar_says_from_which_byte_on_nothing_was_read(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    found = contents(tmp_path / "a.tar")
    assert reason in str(found[""])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.tar", gzip.compress(tar_of("1.png")), "compressed by gzip"),
        ("a.tar", zip_of("1.png"), "a zip archive"),
        ("a.tar", b"\n<!DOCTYPE html>" + b" " * 600, "HTML"),
        ("a.tar", tar_of("1.png")[:300], "truncated header"),
        ("a.tar", b"", "an empty file"),
        ("a.zip", tar_of("1.png"), "a tar archive"),
        ("a.zip", zip_of("1.png")[:-30], "no directory at its end"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",  # A zip's bytes hold the time when they were made.
)
def test_a_file_of_another_kind_is_named(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert words in str(contents(tmp_path / name)[""])


def test_a_name_in_another_encoding_is_no_path_out_of_the_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="shift-jis") as archive:
        add(archive, "日本.png", b"1")
    assert contents(tmp_path / "a.tar") == {"\\x93\\xfa\\x96{.png": b"1"}


def test_the_name_of_a_volume_is_no_member(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        label = tarfile.TarInfo("photos")
        label.type = b"V"
        archive.addfile(label)
        add(archive, "1.png", b"1")
    passed_over = PassedOver()
    assert [ref.key for ref in listed(tmp_path / "a.tar", passed_over)] == ["a.tar/1.png"]
    assert passed_over.notes() == []


def test_the_signature_of_a_record_in_a_comment_hides_no_archive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_of("1.png", comment=b"PK\5\6 and then more text than a record has bytes"))
    assert contents(tmp_path / "a.zip") == bodies("1.png")


def test_a_zip_says_which_bytes_were_not_read(tmp_path: Path) -> None:
    one, two = zip_of("1.png", "2.png"), zip_of("3.png", "4.png")
    (tmp_path / "a.zip").write_bytes(one + two[:-22])
    found = contents(tmp_path / "a.zip")
    assert f"from byte {len(one)} on, members were not read" in str(found.pop(""))
    assert found == bodies("1.png", "2.png")
    (tmp_path / "a.zip").write_bytes(one[:-22] + two)
    found = contents(tmp_path / "a.zip")
    assert f"before byte {len(one) - 22}, members were not read" in str(found.pop(""))
    assert found == bodies("3.png", "4.png")


# ---- damage ---------------------------------------------------------------------------------------

LONG_NAME = "d" * 90 + "/" + "e" * 90 + ".png"


def members_of_tar(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), ignore_zeros=True) as archive:
        return archive.getmembers()


def name_bytes_of_zip(data: bytes) -> set[int]:
    """The offsets of names in all directories: their bytes are the names of other members."""
    found: set[int] = set()
    at = data.find(b"PK\1\2")
    while at >= 0:
        found |= set(range(at + 46, at + 46 + struct.unpack_from("<H", data, at + 28)[0]))
        at = data.find(b"PK\1\2", at + 46)
    return found


TARS = [
    tar_of("1.png", "2.png") + tar_of("3.png", tar_format=tarfile.GNU_FORMAT),
    tar_of("1.png", LONG_NAME, "2.png") + EMPTY_TAR + tar_of(LONG_NAME + "3.png", tar_format=tarfile.GNU_FORMAT),
    tar_of("1.png", "2.png", "3.png", tar_format=tarfile.USTAR_FORMAT),
]
ZIPS = [
    zip_of("1.png", "2.png") + zip_of("3.png", "4.png"),
    b"#!/bin/sh\n" + zip_of("1.png", "2.png", comment=b"of May"),
    zip_of("1.png") + zip_of("2.png") + zip_of("3.png"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def lost_without_a_word(path: Path, names: list[str]) -> set[str]:
    """The members that have no row, where no failed row of the archive tells so."""
    try:
        refs = listed(path)
    except SourceError:  # Nothing is labelled, and the error says so.
        return set()
    is_told = any(ref.key == path.name and inside(ref.uri).kind == "unreadable" for ref in refs)  # type: ignore[union-attr]
    return set() if is_told else set(names) - {ref.key.partition("/")[2] for ref in refs}


@tried(300)
@given(st.sampled_from(TARS), st.integers(0, 2**31), st.integers(1, 255))
@example(TARS[0], 156, 1)
@example(TARS[0], 124, 4)
def test_a_damaged_byte_of_a_tar_loses_no_member_without_a_word(
    folder: Path, data: bytes, place: int, change: int
) -> None:
    members = members_of_tar(data)
    place %= len(data)
    if any(member.offset + 512 <= place < member.offset_data - 512 for member in members):
        return  # A part of a long name, which no checksum covers.
    damaged = bytearray(data)
    damaged[place] ^= change
    (folder / "a.tar").write_bytes(damaged)
    assert not lost_without_a_word(folder / "a.tar", [member.name for member in members])


@tried(200)
@given(st.sampled_from(TARS), st.integers(0, 2**31))
@example(TARS[0], 1024)
@example(TARS[2], 3072)
def test_a_cut_tar_loses_no_member_without_a_word(folder: Path, data: bytes, stop: int) -> None:
    stop %= len(data)
    names = [member.name for member in members_of_tar(data)]
    if data.startswith(tar_of("1.png", "2.png")) and stop in (10_240, *range(2048 + 1, 10_240)):
        names = ["1.png", "2.png"]  # A whole archive, or its zeros in part.
    elif data is TARS[1] and members_of_tar(data)[3].offset >= stop > members_of_tar(data)[2].offset_data + 512:
        names = names[:3]
    (folder / "a.tar").write_bytes(data[:stop])
    assert not lost_without_a_word(folder / "a.tar", names)


@tried(400)
@given(st.sampled_from(ZIPS), st.integers(0, 2**31), st.integers(1, 255))
@example(ZIPS[0], 423, 1)
@example(ZIPS[2], 230, 140)
def test_a_damaged_byte_of_a_zip_loses_no_member_without_a_word(
    folder: Path, data: bytes, place: int, change: int
) -> None:
    place %= len(data)
    if place in name_bytes_of_zip(data):
        return
    names = [
        data[at + 46 : at + 46 + struct.unpack_from("<H", data, at + 28)[0]].decode()
        for at in range(len(data))
        if data[at : at + 4] == b"PK\1\2"
    ]
    damaged = bytearray(data)
    damaged[place] ^= change
    (folder / "a.zip").write_bytes(damaged)
    assert not lost_without_a_word(folder / "a.zip", names)


@tried(200)
@given(st.sampled_from([ZIPS[0], ZIPS[2]]), st.integers(0, 2**31))
@example(ZIPS[0], 0)
@example(ZIPS[0], 5)
def test_a_cut_zip_loses_no_member_without_a_word(folder: Path, data: bytes, stop: int) -> None:
    first_stop = data.index(b"PK\5\6") + 22
    stop = first_stop + 1 + stop % (len(data) - first_stop - 1)
    (folder / "a.zip").write_bytes(data[:stop])
    names = ["1.png", *(["2.png"] if data is ZIPS[0] else [])]
    assert not lost_without_a_word(folder / "a.zip", names)
    if data is ZIPS[0]:
        assert any(ref.key == "a.zip" for ref in listed(folder / "a.zip"))


# ---- names in zips --------------------------------------------------------------------------------


def zip_with(raw_name: bytes, flags: int = 0, extra: bytes = b"", method: int = 0, data: bytes = b"x") -> bytes:
    """A zip of one member, written field by field."""
    crc = zlib.crc32(data)
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, flags, method, 0, 33, crc, len(data), len(data), len(raw_name), 0)
    local += raw_name + data
    entry = struct.pack(
        "<4s6H3I5H2I", b"PK\1\2", 20, 20, flags, method, 0, 33, crc, len(data), len(data), len(raw_name), len(extra),
        0, 0, 0, 0, 0,
    )  # fmt: skip
    entry += raw_name + extra
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0)
    return local + entry + end


def unicode_path(raw_name: bytes, name: str) -> bytes:
    data = struct.pack("<BI", 1, zlib.crc32(raw_name)) + name.encode()
    return struct.pack("<2H", 0x7075, len(data)) + data


@pytest.mark.parametrize(
    ("raw_name", "flags", "extra", "name"),
    [
        ("münze.jpg".encode(), 0, b"", "münze.jpg"),
        ("münze.jpg".encode(), 0x800, b"", "münze.jpg"),
        ("grüss.jpg".encode("cp437"), 0, b"", "grüss.jpg"),
        ("日本.jpg".encode(), 0, b"", "日本.jpg"),
        (b"plain.jpg", 0, b"", "plain.jpg"),
        (b"gr\x81ss.jpg", 0, unicode_path(b"gr\x81ss.jpg", "日本.jpg"), "日本.jpg"),
        (b"gr\x81ss.jpg", 0, unicode_path(b"another", "日本.jpg"), "grüss.jpg"),
        (b"a.jpg\0.txt", 0, b"", "a.jpg"),
        (b"a\xff.jpg", 0x800, b"", "a\\xff.jpg"),
        (b"\xff.jpg", 0x800, b"", "\\xff.jpg"),
        (b"a.jpg", 0, b"\x01", "a.jpg"),
    ],
)
def test_names_in_zips_follow_one_rule(raw_name: bytes, flags: int, extra: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_with(raw_name, flags, extra))
    assert contents(tmp_path / "a.zip") == {name: b"x"}


@pytest.mark.parametrize(
    ("flags", "method", "reason"),
    [
        (1, 0, "encrypted"),
        (1 << 6, 0, "encrypted"),
        (1 << 13, 0, "encrypted"),
        (0, 14, "compressed by method 14 (LZMA)"),
        (0, 99, "compressed by method 99 (AES encryption)"),
        (0, 94, "compressed by method 94 (unknown)"),
    ],
)
def test_a_member_that_cannot_be_read_says_why(flags: int, method: int, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_with(b"a.jpg", flags, method=method))
    assert reason in str(contents(tmp_path / "a.zip")["a.jpg"])


def test_zip64_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ZIP64_LIMIT", "ZIP_FILECOUNT_LIMIT"):
        monkeypatch.setattr(zipfile, name, 1)
    data = zip_of("1.png", "2.png", "3.png")
    monkeypatch.undo()
    assert b"PK\6\6" in data
    (tmp_path / "a.zip").write_bytes(data)
    assert contents(tmp_path / "a.zip") == bodies("1.png", "2.png", "3.png")
    (tmp_path / "a.zip").write_bytes(b"#!x\n" + data + data.replace(b".png", b".jpg"))
    assert len(contents(tmp_path / "a.zip")) == 6


# ---- habits of WebDataset -------------------------------------------------------------------------


def test_members_that_may_be_images_are_counted_and_a_glob_takes_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("000.jpg", "000.cls", "000.json", "001", "002", "003.psd", "004.dat", "x.jpg", "x.jpg/y.jpg",
                     "._000.jpg", "5.jpg.gz"):  # fmt: skip
            add(archive, name, name.encode())
    index = tmp_path / "index"
    for _ in range(2):  # The second time, the index of the shard tells the counts.
        passed_over = PassedOver()
        found = listed(tmp_path / "a.tar", passed_over, Index(STORE, str(index), keep=True))
        assert [ref.key for ref in found] == ["a.tar/000.jpg", "a.tar/x.jpg", "a.tar/x.jpg/y.jpg"]
        (note,) = passed_over.notes()
        assert "in archives: 2 without extension, 1 .cls, 1 .dat, 1 .gz, 1 .json, 1 .psd, 1 hidden;" in note
        assert passed_over.as_record()["members"].items() >= {"without extension": 2, "hidden": 1}.items()
        assert "source.members" in note
    assert list(contents(tmp_path / "a.tar", members="00*")) == ["000.jpg", "001", "002"]
    assert list(contents(tmp_path / "a.tar", members="*.dat")) == ["004.dat"]
    assert list(contents(tmp_path / "a.tar", members="**/*")) == ["000.jpg", "x.jpg", "x.jpg/y.jpg"]


def test_an_error_for_archives_without_images_counts_their_members(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of("000", "001", "1.jpg.gz"))
    with pytest.raises(SourceError, match=r"members: 2 without extension, 1 \.gz"):
        listed(tmp_path / "a.tar")


def test_a_packed_file_must_be_unpacked(tmp_path: Path) -> None:
    for name in ("a.7z", "b.tar.gz", "c.csv"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=r"unpack the file"):
        listed(tmp_path / "a.7z")
    with pytest.raises(SourceError, match=r"source\.kind=manifest [\s\S]* \.csv [\s\S]*unpack \.7z, \.tar\.gz before"):
        listed(tmp_path)
    (tmp_path / "d.txt").write_text("b.tar.gz\n")
    (ref,) = listed(tmp_path / "d.txt")
    assert "decompress the tar" in inside(ref.uri).reason  # type: ignore[union-attr]


def test_compressed_tars_beside_others_are_told(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar.gz", "c.TGZ", "d.tar.zst"):
        (tmp_path / name).write_bytes(tar_of("1.png"))
    for uri in (tmp_path, tmp_path / "*.*", tmp_path / "{a.tar,b.tar.gz,c.TGZ,d.tar.zst}"):
        passed_over = PassedOver()
        assert [ref.key for ref in listed(uri, passed_over)] == ["a.tar/1.png"]
        (note,) = passed_over.notes()
        assert all(ending in note for ending in (".tar.gz", ".tgz", ".tar.zst"))
    with pytest.raises(SourceError, match=r"compressed tar[\s\S]*b\.tar\.gz"):
        listed(tmp_path / "b*")


# ---- stray Parquet --------------------------------------------------------------------------------


def test_stray_parquet_files_beside_shards_are_told(tmp_path: Path) -> None:
    shapes.tar({"1.png": b"1"}, tmp_path)
    pq.write_table(pa.table({"key": ["1"], "caption": ["x"]}), tmp_path / "metadata.parquet")
    pq.write_metadata(pa.schema([("n", pa.int64())]), tmp_path / "_metadata")
    passed_over = PassedOver()
    assert [ref.key for ref in listed(tmp_path, passed_over)] == ["train-0000.tar/1.png"]
    notes = "\n".join(passed_over.notes())
    assert "metadata.parquet (a Parquet file without a column of images)" in notes
    assert "_metadata (a Parquet file without rows)" in notes
