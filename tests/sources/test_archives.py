"""sources/: what every shape of data promises, and what hostile archives, columns and videos get."""

from __future__ import annotations

import os
import random
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapes
from hypothesis import example, given
from hypothesis import strategies as st
from properties import tried
from shapes import SHAPES, Shaped, add

from segray import config
from segray._system.memory import MemoryBudget
from segray.errors import ImageError, SourceError
from segray.imaging.decode import decode
from segray.instances import ImageRef
from segray.label_set import plan
from segray.limits import ImageLimits
from segray.sources import listing, tar_archive, video
from segray.sources import reader as reading
from segray.sources.shard_index import Index
from segray.sources.uris import inside
from segray.storage.fsspec_backend import FsspecBackend
from segray.storage.store import StorageOptions, Store


def png(value: int, size_wh: tuple[int, int] = (8, 6)) -> bytes:
    done, data = cv2.imencode(".png", np.full((size_wh[1], size_wh[0], 3), value, np.uint8))
    assert done
    return data.tobytes()


LIMITS = ImageLimits()
FILES = {f"{i:03d}.png": png(i) for i in range(10)} | {"sub/é 1.png": png(100)}


@pytest.fixture
def store() -> Store:
    return Store(StorageOptions(retries=0))


def refs(shaped: Shaped, store: Store, index: Index | None = None) -> list[ImageRef]:
    asked = config.SourceSettings(uri=shaped.uri, **shaped.source)
    return [ref for batch in listing.configured(asked, store, index) for ref in listing.refs(batch)]


def files(store: Store, limits: ImageLimits = LIMITS) -> reading.Files:
    return reading.Files(store, limits, MemoryBudget(64 << 20))


def contents(found: list[ImageRef], store: Store, limits: ImageLimits = LIMITS) -> dict[str, Any]:
    """What a worker reads for each reference, by key: bytes, or the error."""
    read: dict[str, Any] = {}
    for portion in files(store, limits).portions(found):
        for row in portion.rows:
            try:
                with portion.take(row) as data:
                    read[found[row].key] = data
            except ImageError as error:
                read[found[row].key] = error
    return {ref.key: read[ref.key] for ref in found}


# ---- the contract that every shape keeps ----------------------------------------------------------


@pytest.fixture(params=SHAPES)
def shaped(request: pytest.FixtureRequest, tmp_path: Path) -> Shaped:
    return SHAPES[request.param](FILES, tmp_path / "data")


def test_every_shape_gives_the_same_references_twice_sorted_with_versions(shaped: Shaped, store: Store) -> None:
    found = refs(shaped, store)
    assert found == refs(shaped, store)
    assert [ref.key for ref in found] == sorted(shaped.keys.values())
    assert all(ref.version for ref in found)
    listed, total, _ = plan.build(
        listing.configured(config.SourceSettings(uri=shaped.uri, **shaped.source), store), None
    )
    assert (len(listed), total) == (len(FILES), len(FILES))
    assert listed.rows(0, 99).column("uri").to_pylist() == [ref.uri for ref in found]


def test_every_shape_gives_the_bytes_that_went_in(shaped: Shaped, store: Store) -> None:
    found = refs(shaped, store)
    read = contents(found, store)
    assert {name: read[key] for name, key in shaped.keys.items()} == FILES
    assert {ref.key: files(store).read(ref) for ref in found} == read
    assert {ref.key: reading.by_uri(store)(ref.uri) for ref in found} == read


def test_what_changes_has_another_version(shaped: Shaped, store: Store, tmp_path: Path) -> None:
    before = {ref.key: ref.version for ref in refs(shaped, store)}
    if shaped.holder is None:
        (tmp_path / "data" / "000.png").write_bytes(png(200, (9, 9)))
        changed = {"000.png"}
    else:
        os.utime(shaped.holder, ns=(1, 1))
        changed = {key for key in before if key.startswith(shaped.holder.name)}
    after = {ref.key: ref.version for ref in refs(shaped, store)}
    assert {key for key in after if after[key] != before[key]} == changed


LARGE = {f"{i:03d}.png": random.Random(i).randbytes(2 << 20) for i in range(6)}


@pytest.mark.parametrize("kind", ["tar", "zip", "hugging_face", "column"])
def test_planning_reads_indexes_and_no_images(
    kind: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shaped = SHAPES[kind](LARGE, tmp_path)
    assert shaped.holder is not None
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe(f"/held/{shaped.holder.name}", shaped.holder.read_bytes())
    read = FsspecBackend.read
    asked: list[bytes] = []
    monkeypatch.setattr(FsspecBackend, "read", lambda *each: (asked.append(read(*each)), asked[-1])[1])
    found = refs(Shaped("memory://held", {}, shaped.source), store)
    assert {ref.key for ref in found} == {key for key in shaped.keys.values() if key.startswith(shaped.holder.name)}
    assert sum(map(len, asked)) < 0.1 * shaped.holder.stat().st_size
    memory.store.clear()


def test_a_shard_of_small_members_is_planned_in_one_pass_and_read_by_few_requests(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(300):
            add(archive, f"{i:05d}.png", random.Random(i).randbytes(100_000))
    asked: list[int] = []
    ranged = Store.read_range

    def counted(self: Store, uri: str, start: int, size: int) -> bytes:
        asked.append(size)
        return ranged(self, uri, start, size)

    monkeypatch.setattr(Store, "read_range", counted)
    found = refs(Shaped(str(tmp_path / "a.tar"), {}), store)
    planned = len(asked)
    assert len(found) == 300
    assert planned <= 9  # 30 MB, up to 8 MiB a time
    assert all(isinstance(data, bytes) and len(data) == 100_000 for data in contents(found[:256], store).values())
    assert len(asked) - planned == 2  # of 16 MiB
    assert max(asked) <= reading.PORTION_BYTES


def test_a_shard_in_another_order_than_its_names_is_read_front_to_back(store: Store, tmp_path: Path) -> None:
    names = [f"{i:03d}.png" for i in range(40)]
    random.Random(1).shuffle(names)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in names:
            add(archive, name, name.encode())
    found = refs(Shaped(str(tmp_path / "a.tar"), {}), store)
    assert [ref.key for ref in found] == sorted(f"a.tar/{name}" for name in names)
    (portion,) = files(store).portions(found)
    assert [found[row].key for row in portion.rows] == [f"a.tar/{name}" for name in names]
    assert contents(found, store) == {f"a.tar/{name}": name.encode() for name in sorted(names)}


def test_a_portion_gives_its_memory_back_however_it_ends(store: Store, tmp_path: Path) -> None:
    shaped = shapes.tar(FILES, tmp_path)
    budget = MemoryBudget(1 << 20)
    reader = reading.Files(store, ImageLimits(), budget)
    found = refs(shaped, store)
    taken, closed = reader.portions(found)
    for row in taken.rows:
        with taken.take(row):
            assert budget.free_bytes < 1 << 20
    assert budget.free_bytes == 1 << 20
    with closed.take(closed.rows[0]):
        closed.close()
        assert budget.free_bytes < 1 << 20
    assert budget.free_bytes == 1 << 20


# ---- which files are taken ------------------------------------------------------------------------


def test_a_folder_with_images_is_one_of_images_unless_told(store: Store, tmp_path: Path) -> None:
    shapes.tar(FILES, tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert [ref.key for ref in refs(Shaped(str(tmp_path), {}), store)] == ["a.jpg"]
    assert len(refs(Shaped(str(tmp_path), {}, {"kind": "tar"}), store)) == len(FILES)
    assert len(refs(Shaped(f"{tmp_path}/*.tar", {}), store)) == len(FILES)


def test_a_folder_of_several_kinds_asks_which(store: Store, tmp_path: Path) -> None:
    shapes.tar(FILES, tmp_path)
    shapes.zipped(FILES, tmp_path)
    with pytest.raises(
        SourceError, match=r"several kinds[\s\S]*\.tar 2, \.zip 1[\s\S]*source\.kind to one of tar, zip"
    ):
        refs(Shaped(str(tmp_path), {}), store)


def test_members_can_be_chosen_and_hidden_ones_are_passed_over(store: Store, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("./x.jpg", "sub/y.jpg", "sub/y.seg.png", "._x.jpg", "__MACOSX/z.jpg", "notes.txt"):
            add(archive, name, b"x")
    uri = str(tmp_path / "a.tar")
    keys = [ref.key for ref in refs(Shaped(uri, {}), store)]
    assert keys == ["a.tar/sub/y.jpg", "a.tar/sub/y.seg.png", "a.tar/x.jpg"]
    assert [ref.key for ref in refs(Shaped(uri, {}, {"members": "**/*.jpg"}), store)] == [keys[0], keys[2]]
    with pytest.raises(SourceError, match=r"No images in these files[\s\S]*\*\.bmp"):
        refs(Shaped(uri, {}, {"members": "*.bmp"}), store)


def test_a_manifest_may_name_shards(store: Store, tmp_path: Path) -> None:
    shaped = shapes.tar(FILES, tmp_path)
    (tmp_path / "list.txt").write_text("train-0001.tar\ntrain-0000.tar\n")
    found = refs(Shaped(str(tmp_path / "list.txt"), {}, {"kind": "tar"}), store)
    assert sorted(ref.key for ref in found) == sorted(shaped.keys.values())


def test_a_compressed_tar_is_refused_and_says_why(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(SourceError, match=r"compressed tar[\s\S]*decompress"):
        refs(Shaped(str(tmp_path / "a.tar.gz"), {}), store)


def test_a_column_is_chosen_or_asked_for(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"left": [b"x"], "right": [b"y"], "n": [1]}), path)
    with pytest.raises(SourceError, match=r"No column of images[\s\S]*left: binary[\s\S]*source\.image_column"):
        refs(Shaped(str(path), {}, {"kind": "parquet"}), store)
    (ref,) = refs(Shaped(str(path), {}, {"image_column": "right"}), store)
    assert files(store).read(ref) == b"y"


# ---- inventories ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_an_inventory_gives_what_listing_would(kind: str, store: Store, tmp_path: Path) -> None:
    names = {"b c+d.jpg": b"1", "é/a%20.png": b"22", "notes.txt": b""}
    found = refs(shapes.inventory(names, tmp_path, kind), store)
    assert found == [
        ImageRef("b c+d.jpg", "s3://a-bucket/raw/b c+d.jpg", "etag0", 1),
        ImageRef("é/a%20.png", "s3://a-bucket/raw/é/a%20.png", "etag1", 2),
    ]


@pytest.mark.parametrize("broken", ["not json", "{}", '{"sourceBucket": "b", "fileFormat": "ORC", "files": []}', "[]"])
def test_a_report_that_cannot_be_read_is_refused(broken: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(broken)
    with pytest.raises(SourceError, match=r"Not an S3 Inventory report[\s\S]*manifest\.json"):
        refs(Shaped(str(tmp_path / "manifest.json"), {}), store)


def test_a_report_with_a_broken_or_missing_file_is_refused(store: Store, tmp_path: Path) -> None:
    shaped = shapes.inventory({"a.jpg": b"1"}, tmp_path)
    (part,) = (tmp_path / "data").iterdir()
    part.write_bytes(part.read_bytes()[:-12])
    with pytest.raises(SourceError, match=r"Cannot read a file of the report"):
        refs(shaped, store)
    part.unlink()
    with pytest.raises(SourceError, match=r"names a file that is not there"):
        refs(shaped, store)


# ---- hostile archives -----------------------------------------------------------------------------


def told(uri: Path, store: Store, **source: Any) -> dict[str, str]:
    """By key: "" for what can be read, else the reason of its failed row."""
    read = contents(refs(Shaped(str(uri), {}, source), store), store, ImageLimits(max_bytes=1 << 20))
    return {key: str(found) if isinstance(found, ImageError) else "" for key, found in read.items()}


def test_a_bad_member_of_a_shard_is_one_failed_row(store: Store, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "good.png", b"1")
        add(archive, "../up.png", b"x")
        add(archive, "/etc/root.png", b"x")
        add(archive, "C:\\win.png", b"x")
        add(archive, "symlink.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "hardlink.png", type=tarfile.LNKTYPE, linkname="good.png")
        add(archive, "fifo.png", type=tarfile.FIFOTYPE)
        add(archive, "large.png", bytes(2 << 20))
        add(archive, "twice.png", b"first")
        add(archive, "twice.png#1.png", b"a name of its own")
        add(archive, "twice.png", b"second")
        add(archive, "twice.png", b"third")
        add(archive, "x" * 300 + ".png", b"1")
        add(archive, "folder.png", type=tarfile.DIRTYPE)
        add(archive, "last.png", b"1")
    found = told(tmp_path / "a.tar", store)
    good = {key for key, why in found.items() if not why}
    assert good == {f"a.tar/{name}.png" for name in ("good", "twice", "twice.png#1", "x" * 300, "last")}
    for name, why in (
        ("../up.png", "leads out of the archive"),
        ("/etc/root.png", "leads out of the archive"),
        ("C:\\win.png", "leads out of the archive"),
        ("symlink.png", "a link in an archive"),
        ("hardlink.png", "a link in an archive"),
        ("fifo.png", "special file"),
        ("large.png", "more than 1048576 bytes"),
        ("twice.png#2", "another member of the archive has this name"),
        ("twice.png#3", "another member of the archive has this name"),
    ):
        assert why in found[f"a.tar/{name}"]
    assert len(found) == len(good) + 9


def test_a_truncated_shard_keeps_what_came_before_and_says_where_it_ends(store: Store, tmp_path: Path) -> None:
    shaped = shapes.tar({f"{i}.png": bytes([i]) * 3000 for i in range(6)}, tmp_path / "whole")
    assert shaped.holder is not None
    data, path = shaped.holder.read_bytes(), tmp_path / "a.tar"
    path.write_bytes(data[: 3584 + 1024 + 512 + 1000])  # 0.png, 0.json and a third of 2.png
    found = told(path, store)
    assert found["a.tar/0.png"] == ""
    assert "the archive ends inside this member" in found["a.tar/2.png"]
    path.write_bytes(data[:3584] + b"garbage." * 128 + data[4608:])
    found = told(path, store)
    assert found["a.tar/0.png"] == ""
    assert "no tar header at byte 3584" in found["a.tar"]
    for junk in (b"", b"junk" * 1000, b"\0" * 100):
        path.write_bytes(junk)
        assert set(told(path, store)) == {"a.tar"}


def test_a_shard_that_changes_after_planning_fails_its_rows_instead_of_mixing_them_up(
    store: Store, tmp_path: Path
) -> None:
    one = shapes.tar({"a.png": b"1" * 600, "b.png": b"", "c.png": b"3" * 600}, tmp_path)
    found = refs(one, store)
    shapes.tar({"x.png": b"9" * 5000, "b.png": b"", "y.png": b"9" * 5000}, tmp_path)
    read = contents(found, store)
    assert "not the one that was planned" in str(read["train-0000.tar/c.png"])


def zip_of(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path.read_bytes()


def test_a_bad_member_of_a_zip_is_one_failed_row(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with pytest.warns(UserWarning, match="Duplicate name"):
        zip_of(path, ("good.png", b"1" * 99), ("../up.png", b"x"), ("bomb.png", bytes(3 << 20)),
               ("twice.png", b"1"), ("twice.png", b"2"))  # fmt: skip
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("lzma.png", b"1", zipfile.ZIP_LZMA)
    found = told(path, store)
    assert {key for key, why in found.items() if not why} == {"a.zip/good.png", "a.zip/twice.png"}
    for name, why in (
        ("../up.png", "leads out of the archive"),
        ("bomb.png", "more than 1048576 bytes"),
        ("link.png", "a link"),
        ("lzma.png", "method 14"),
        ("twice.png#2", "another member of the archive has this name"),
    ):
        assert why in found[f"a.zip/{name}"]


BOMB_BYTES = 0x01234567  # as it stands in no other field


def test_a_zip_that_lies_about_its_sizes_fills_no_memory(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    data = zip_of(path, ("bomb.png", bytes(BOMB_BYTES)), ("good.png", b"1"))
    path.write_bytes(data.replace(struct.pack("<I", BOMB_BYTES), struct.pack("<I", 1000)))
    found = told(path, store)
    assert found["a.zip/good.png"] == ""
    assert "checksum" in found["a.zip/bomb.png"]


def test_a_broken_zip_is_one_failed_row_or_some(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    data = zip_of(path, ("a.png", b"abc" * 50), ("b.png", b"abc" * 50), method=zipfile.ZIP_STORED)
    path.write_bytes(data.replace(b"abcabc", b"abcabX", 1))
    assert [("checksum" in why) for why in told(path, store).values()] == [True, False]
    for broken in (data[:100], b"", b"PK\5\6" + bytes(16)):
        path.write_bytes(broken)
        (why,) = told(path, store).values()
        assert "zip" in why


def test_broken_parquet_files_and_empty_cells_are_failed_rows(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    cells = [{"bytes": b"1", "path": "x"}, {"bytes": None, "path": "y.jpg"}, None, {"bytes": b"4", "path": None}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), path)
    found = list(told(path, store).values())
    assert [bool(why) for why in found] == [False, True, True, False]
    assert "y.jpg" in found[1]
    data = path.read_bytes()
    path.write_bytes(b"PAR1" + b"\xff" * 60 + data[64:])
    assert all("cannot be read" in why for why in told(path, store).values())
    path.write_bytes(data[:-9])
    assert "not a Parquet file" in told(tmp_path, store, kind="parquet")["a.parquet"]


def mutated(data: bytes, places: list[tuple[int, int]], end: int) -> bytes:
    found = bytearray(data[: len(data) - end % len(data)])
    for at, value in places:
        if found:
            found[at % len(found)] = value
    return bytes(found)


class Archives(dict[str, tuple[Path, bytes]]):
    """By kind, where to write and what. Says nothing of itself: it would be long."""

    def __repr__(self) -> str:
        return "archives"


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    folder = tmp_path_factory.mktemp("archives")
    small = {f"{i}.png": bytes([i]) * 40 for i in range(4)}
    holders = {kind: SHAPES[kind](small, folder / kind).holder for kind in ("tar", "zip", "hugging_face")}
    return Archives({kind: (path, path.read_bytes()) for kind, path in holders.items() if path is not None})


@tried(60)
@example("hugging_face", [(197, 128)], 0)  # a path that is no text
@example("zip", [(838, 0)], 0)  # a member without a name
@example("hugging_face", [(764, 128)], 0)  # a name of a column that is none
@given(
    st.sampled_from(["tar", "zip", "hugging_face"]),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=6),
    st.one_of(st.just(0), st.integers(0, 20_000)),
)
def test_any_bytes_give_references_and_whatever_is_wrong_is_told(
    archives: Archives, kind: str, places: list[tuple[int, int]], end: int
) -> None:
    path, data = archives[kind]
    path.write_bytes(mutated(data, places, end))
    store = Store(StorageOptions(retries=0))
    try:
        found = refs(Shaped(str(path), {}, {"kind": "parquet" if kind == "hugging_face" else kind}), store)
    except SourceError:
        return
    assert len({ref.key for ref in found}) == len(found)
    contents(found, store, ImageLimits(max_bytes=1 << 20))


# ---- videos ---------------------------------------------------------------------------------------


def greys(found: list[ImageRef], store: Store) -> dict[str, int]:
    """The frame that each reference gave, by the greys that tests/support/shapes.py drew it in."""
    read = contents(found, store)
    return {key: shapes.frame_of(decode(data).image) for key, data in read.items()}


@pytest.mark.parametrize("name", ["drive.avi", "drive.mp4"])
def test_a_video_gives_the_frames_of_its_moments(name: str, store: Store, tmp_path: Path) -> None:
    shapes.video(tmp_path / name, frames=120, fps=10)
    found = refs(Shaped(str(tmp_path), {}, {"frames_per_s": 0.8}), store)
    assert found == refs(Shaped(str(tmp_path), {}, {"frames_per_s": 0.8}), store)
    keys = [ref.key for ref in found]
    assert keys == sorted(f"{name}#t={1.25 * i:.3f}" for i in range(10))
    expected = {f"{name}#t={1.25 * i:.3f}": -(-125 * i // 10) for i in range(10)}
    assert greys(found, store) == expected
    reader = files(store)
    again = {ref.key: shapes.frame_of(decode(reader.read(ref)).image) for ref in reversed(found)}
    assert again == expected  # wherever reading begins, and whatever was read before


def test_frames_that_lie_far_apart_are_jumped_to(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes.video(tmp_path / "a.mp4", frames=125, fps=2)
    grab, grabbed = video.VideoFrames._grab, []
    monkeypatch.setattr(video.VideoFrames, "_grab", lambda frames: (grabbed.append(1), grab(frames))[1])
    found = refs(Shaped(str(tmp_path), {}, {"frames_per_s": 0.02}), store)
    assert greys(found, store) == {"a.mp4#t=0.000": 0, "a.mp4#t=50.000": 100}
    assert len(grabbed) < 20


def test_broken_videos_are_failed_rows(store: Store, tmp_path: Path) -> None:
    shapes.video(tmp_path / "whole.avi", frames=60)
    data = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 1000)
    (tmp_path / "empty.mp4").write_bytes(b"")
    found = told(tmp_path, store)
    assert "not a video" in found["junk.mp4"]
    assert "not a video" in found["empty.mp4"]
    cut = [why for key, why in found.items() if key.startswith("cut.avi")]
    assert not cut[0]
    assert [why for key, why in found.items() if key.startswith("whole.avi")] == [""] * 6


def test_a_video_over_the_limits_fails_before_a_frame_is_decoded(store: Store, tmp_path: Path) -> None:
    shapes.video(tmp_path / "a.avi", frames=3)
    found = refs(Shaped(str(tmp_path / "a.avi"), {}), store)
    (error,) = contents(found, store, ImageLimits(max_pixels=1000)).values()
    assert "image.max_pixels" in str(error)


# ---- indexes that are remembered ------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for each shard whose headers are read."""
    read = tar_archive.members
    found: list[int] = []
    monkeypatch.setattr(tar_archive, "members", lambda *each: (found.append(1), read(*each))[1])
    return found


def test_a_shard_is_indexed_once_and_again_when_it_changes(store: Store, tmp_path: Path, passes: list[int]) -> None:
    shaped, kept = shapes.tar(FILES, tmp_path / "data"), tmp_path / "index"
    first = refs(shaped, store, Index(store, str(kept), keep=True))
    assert len(passes) == 2
    assert refs(shaped, store, Index(store, str(kept), keep=True)) == first
    assert len(passes) == 2
    assert shaped.holder is not None
    shaped.holder.write_bytes(shaped.holder.read_bytes() + bytes(512))
    assert len(refs(shaped, store, Index(store, str(kept), keep=True))) == len(first)
    assert len(passes) == 3
    assert len(list(kept.iterdir())) == 2  # the old one is forgotten
    (broken, _) = kept.iterdir()
    broken.write_bytes(b"")
    assert len(refs(shaped, store, Index(store, str(kept), keep=False))) == len(first)
    assert len(passes) == 4


def test_a_place_that_is_badly_written_is_a_failed_row(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("tar-member://x::/a.tar\nzip-member://1+2::/a.zip\nvideo-frame://1::gone.mp4\n")
    found = refs(Shaped(str(path), {}), store)
    assert [inside(ref.uri).kind for ref in found] == ["unreadable", "unreadable", "video"]  # type: ignore[union-attr]
    with pytest.raises(ImageError, match="no place of this kind"):
        files(store).read(found[0])
    with pytest.raises(FileNotFoundError):
        files(store).read(found[2])
