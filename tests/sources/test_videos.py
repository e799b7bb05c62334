"""Videos as people have them: cut clips, no length, odd rates, other formats, turned pictures, unknown codecs."""

from __future__ import annotations

import io
import itertools
import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapes

from segray._system.memory import MemoryBudget
from segray.errors import ImageError
from segray.imaging.decode import decode
from segray.limits import ImageLimits
from segray.sources import listing, mp4_times
from segray.sources import reader as reading
from segray.sources.archives import SourceSpec
from segray.sources.passed_over import PassedOver
from segray.storage.store import StorageOptions, Store

STORE = Store(StorageOptions(retries=0))


def frames(uri: Path, frames_per_s: float, kind: str = "auto") -> dict[float, int | str]:
    """By moment in seconds: the number of the frame that shapes.py drew, or the reason of the failed row."""
    spec = SourceSpec(kind, frames_per_s=frames_per_s)
    files = reading.Files(STORE, ImageLimits(), MemoryBudget(64 << 20))
    found: dict[float, int | str] = {}
    for batch in listing.read(str(uri), STORE, spec=spec):
        for ref in listing.refs(batch):
            moment = float(ref.key.partition("#t=")[2] or -1)
            try:
                found[moment] = shapes.frame_of(decode(files.read(ref)).image)
            except ImageError as error:
                found[moment] = str(error)
    return dict(sorted(found.items()))


def write(path: Path, codec: str, count: int = 60, fps: float = 10.0) -> None:
    """Write the frames of shapes.video with another codec."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, (64, 48))
    assert writer.isOpened()
    for number in range(count):
        picture = np.full((48, 64, 3), number // 12 * 20 + 10, np.uint8)
        picture[:, 32:] = number % 12 * 20 + 10
        writer.write(picture)
    writer.release()


# ---- MP4 headers, written anew ---------------------------------------------------------------------


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at + 8 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        found.append((data[at + 4 : at + 8], data[at + 8 : at + size]))
        at += size
    return found


def changed(data: bytes, path: list[bytes], change: dict[int, bytes]) -> bytes:
    """Return boxes with some bytes of one of them replaced, all sizes as before."""
    parts = []
    for kind, content in boxes(data):
        body = content
        if kind == path[0]:
            if len(path) > 1:
                body = changed(content, path[1:], change)
            else:
                for at, new in change.items():
                    body = body[:at] + new + body[at + len(new) :]
        parts.append(struct.pack(">I", len(body) + 8) + kind + body)
    return b"".join(parts)


def cut(path: Path, first: int, count: int, fps: int = 10) -> None:
    """Cut an MP4 file as `ffmpeg -ss .. -t .. -c copy` does: an edit list says what is shown, all packets stay."""
    data = path.read_bytes()
    (movie,) = [content for kind, content in boxes(data) if kind == b"moov"]
    ticks_per_s = struct.unpack_from(">I", dict(boxes(movie))[b"mvhd"], 12)[0]
    track = dict(boxes(movie))[b"trak"]
    media_per_s = struct.unpack_from(">I", dict(boxes(dict(boxes(track))[b"mdia"]))[b"mdhd"], 12)[0]
    length = struct.pack(">I", ticks_per_s * count // fps)
    entry = length + struct.pack(">i", media_per_s * first // fps)
    data = changed(data, [b"moov", b"trak", b"edts", b"elst"], {8: entry})
    data = changed(data, [b"moov", b"trak", b"tkhd"], {20: length})
    path.write_bytes(changed(data, [b"moov", b"mvhd"], {16: length}))


@pytest.mark.parametrize(("first", "count"), [(0, 33), (24, 36), (24, 20)])
def test_a_cut_clip_has_the_moments_that_it_shows(first: int, count: int, tmp_path: Path) -> None:
    shapes.video(tmp_path / "a.mp4", frames=60, fps=10)
    cut(tmp_path / "a.mp4", first, count)
    shown = [first + number for number in range(count)]
    assert list(frames(tmp_path / "a.mp4", 10).values()) == shown
    assert list(frames(tmp_path / "a.mp4", 2).values()) == shown[::5]
    assert list(frames(tmp_path / "a.mp4", 50).values()) == shown


def test_the_length_of_a_clip_that_was_not_cut_is_that_of_its_frames(tmp_path: Path) -> None:
    for name, fps in (("a.mp4", 10.0), ("b.mov", 29.97), ("c.mp4", 0.5), ("d.mp4", 239.76)):
        shapes.video(tmp_path / name, frames=30, fps=fps)
        with (tmp_path / name).open("rb") as file:
            found = mp4_times.times(file, (tmp_path / name).stat().st_size)
        assert found is not None
        assert found.shown_s == pytest.approx(30 / fps, abs=0.01)
        assert found.longest_s == pytest.approx(1 / fps, rel=0.01)
        assert list(frames(tmp_path / name, min(fps, 240)).values()) == list(range(30))


@pytest.mark.parametrize("junk", [b"", b"\0" * 100, b"\0\0\0\x08moov", b"\0\0\0\x01ftyp" + b"\xff" * 40])
def test_a_header_that_is_none_gives_no_length(junk: bytes) -> None:
    assert mp4_times.times(io.BytesIO(junk), len(junk)) is None


def test_any_damage_to_a_header_gives_a_length_or_none(tmp_path: Path) -> None:
    shapes.video(tmp_path / "a.mp4", frames=5)
    data = (tmp_path / "a.mp4").read_bytes()
    start = data.index(b"moov") - 4
    for at in range(start, len(data)):
        damaged = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        found = mp4_times.times(io.BytesIO(damaged), len(damaged))
        assert found is None or (found.shown_s > 0 and found.longest_s >= 0)


# ---- lengths and rates ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.webm", "a.mkv"])
def test_a_video_without_a_length_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path, "VP80" if name == "a.webm" else "mp4v")
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88")  # the element Duration, of 8 bytes, becomes an element Void of the same size
    path.write_bytes(data[:at] + b"\xec\x89" + bytes(9) + data[at + 11 :])
    reader = cv2.VideoCapture(str(path))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) < 1
    assert frames(path, 1) == {float(second): 10 * second for second in range(6)}


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
@pytest.mark.parametrize(("fps", "asked"), [(10, 25.0), (10, 240.0), (0.5, 1.0), (29.97, 30.0), (5, 5.0)])
def test_no_frame_is_taken_twice(name: str, fps: float, asked: float, tmp_path: Path) -> None:
    shapes.video(tmp_path / name, frames=40, fps=fps)
    found = frames(tmp_path / name, asked)
    assert list(found.values()) == list(range(40))
    assert all(moment * asked == pytest.approx(round(moment * asked), abs=0.001 * asked) for moment in found)


def variable(path: Path, gaps: list[int], fps: int = 10) -> None:
    """Write an MP4 file whose frames are shown for these multiples of 1/fps s: its table of times is changed."""
    shapes.video(path, frames=len(gaps), fps=fps)
    data = path.read_bytes()
    table = data.index(b"stts")
    ticks = struct.unpack_from(">I", data, table + 16)[0]
    (movie,) = [content for kind, content in boxes(data) if kind == b"moov"]
    entries = b"".join(struct.pack(">II", 1, gap * ticks) for gap in gaps)
    new_table = struct.pack(">I4sII", 16 + len(entries), b"stts", 0, len(gaps)) + entries
    grown = len(new_table) - struct.unpack_from(">I", data, table - 4)[0]
    data = data[: table - 4] + new_table + data[table - 4 + struct.unpack_from(">I", data, table - 4)[0] :]
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        at = data.index(kind) - 4
        data = data[:at] + struct.pack(">I", struct.unpack_from(">I", data, at)[0] + grown) + data[at + 4 :]
    ticks_per_s = struct.unpack_from(">I", dict(boxes(movie))[b"mvhd"], 12)[0]
    length = struct.pack(">I", ticks_per_s * sum(gaps) // fps)
    data = changed(data, [b"moov", b"trak", b"edts", b"elst"], {8: length})
    data = changed(data, [b"moov", b"trak", b"tkhd"], {20: length})
    path.write_bytes(changed(data, [b"moov", b"mvhd"], {16: length}))


def test_a_video_of_a_variable_rate_gives_each_frame_once_and_its_end(tmp_path: Path) -> None:
    gaps = [1] * 20 + [7] * 5 + [1] * 10 + [30, 1, 1]
    variable(tmp_path / "a.mp4", gaps)
    times = np.cumsum([0, *gaps[:-1]]) / 10
    for asked in (1.0, 2.0, 10.0, 40.0):
        found = frames(tmp_path / "a.mp4", asked)
        firsts = [
            int(np.searchsorted(times, moment - 0.0006)) for moment in np.arange(0, times[-1] + 0.0006, 1 / asked)
        ]
        assert list(found.values()) == sorted(set(firsts))


def in_pairs(matroska: bytes) -> bytes:
    """Return a Matroska file of ten frames a second with each odd frame 90 ms earlier (RFC 9559, SimpleBlock)."""
    data, numbers = bytearray(matroska), itertools.count()
    for block in re.finditer(
        rb"\xa3(?:[\x81-\xfe]|[\x40-\x7f].|[\x20-\x3f]..|[\x10-\x1f]...)\x81(?=..[\x00\x80])", matroska, re.S
    ):
        if next(numbers) % 2:
            (time_ms,) = struct.unpack_from(">h", data, block.end())
            struct.pack_into(">h", data, block.end(), time_ms - 90)
    assert next(numbers) == 60
    return bytes(data)


def test_a_format_without_a_table_of_frames_gives_no_frame_twice_at_a_variable_rate(tmp_path: Path) -> None:
    write(tmp_path / "even.mkv", "mp4v")
    (tmp_path / "pairs.mkv").write_bytes(in_pairs((tmp_path / "even.mkv").read_bytes()))
    assert frames(tmp_path / "even.mkv", 10) == {n / 10: n for n in range(60)}
    # The frames are at 0, 10, 200, 210, 400 ms and so on. The frame of a moment is the first at the moment or later.
    assert frames(tmp_path / "pairs.mkv", 10) == {0.0: 0, **{(n - 1) / 10: n for n in range(2, 60, 2)}}


def test_an_end_that_is_missing_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", "mp4v", count=120)
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data[: len(data) * 6 // 10])
    for asked in (1, 20):
        found = list(frames(tmp_path / "a.mkv", asked).values())
        assert found[0] == 0
        assert "ends or breaks" in str(found[-1])
        assert len(found) >= 12


# ---- formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.ts", "mp4v"),
        ("a.ts", "MPG2"),
        ("a.mts", "mp4v"),
        ("a.m2ts", "mp4v"),
        ("a.wmv", "WMV2"),
        ("a.asf", "WMV2"),
        ("a.flv", "FLV1"),
        ("a.3gp", "mp4v"),
        ("a.3g2", "mp4v"),
        ("a.webm", "VP80"),
    ],
)
def test_other_formats_are_videos(name: str, codec: str, tmp_path: Path) -> None:
    write(tmp_path / name, codec)
    assert frames(tmp_path, 1) == {float(second): 10 * second for second in range(6)}


def test_type_script_is_no_video(tmp_path: Path) -> None:
    shapes.tar({"1.png": b"1"}, tmp_path)
    (tmp_path / "index.ts").write_text("Good: export const a = 1;\n" * 20)
    passed_over = PassedOver()
    found = [
        ref.key for batch in listing.read(str(tmp_path), STORE, passed_over=passed_over) for ref in listing.refs(batch)
    ]
    assert found == ["train-0000.tar/1.png"]
    assert "index.ts (not a video)" in "\n".join(passed_over.notes())


@pytest.mark.parametrize(
    ("code", "reasons"),
    [
        (b"av01", {"no frame of this video can be decoded; its codec is AV1 (AV01)"}),
        (b"apch", {"no frame of this video can be decoded; its codec is ProRes (apch)"}),
        (b"zzzz", {"not a video that OpenCV reads: its codec is zzzz"}),
    ],
)
def test_a_codec_that_cannot_be_decoded_is_named(code: bytes, reasons: set[str], tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    shapes.video(path, frames=20)
    path.write_bytes(path.read_bytes().replace(b"mp4v", code).replace(b"esds", b"free"))
    assert {str(reason).partition("\n  where")[0] for reason in frames(path, 1).values()} == reasons


def test_a_codec_of_matroska_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", "mp4v")
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(data.replace(b"V_MPEG4/ISO/ASP", b"V_ZZZZZZZZZZZZZ"))
    assert frames(tmp_path / "a.mkv", 1)[-1.0].startswith("not a video that OpenCV reads: its codec is V_ZZZZZZZZZZZZZ")  # type: ignore[union-attr]


def test_turned_pictures_are_upright(tmp_path: Path) -> None:
    shapes.video(tmp_path / "a.mp4", frames=20)
    data = (tmp_path / "a.mp4").read_bytes()
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(changed(data, [b"moov", b"trak", b"tkhd"], {40: matrix}))
    (batch,) = listing.read(str(tmp_path / "a.mp4"), STORE)
    files = reading.Files(STORE, ImageLimits(), MemoryBudget(64 << 20))
    assert {decode(files.read(ref)).image.shape for ref in listing.refs(batch)} == {(64, 48, 3)}


def test_a_clip_without_a_frame_is_one_failed_row(tmp_path: Path) -> None:
    shapes.video(tmp_path / "a.avi", frames=0)
    (tmp_path / "b.mp4").write_bytes(b"")
    shapes.video(tmp_path / "c.mp4", frames=1)
    found = frames(tmp_path, 30, kind="video")
    assert found[0.0] == 0
    assert all(isinstance(why, str) for moment, why in found.items() if moment < 0)
    assert len(found) == 2
