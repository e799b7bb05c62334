"""Folders in which one entry is odd: it may not be read, loops, or is no image. Only that entry is left out."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from swift_server import Swift

from segray.errors import AccessError, SourceError
from segray.instances import ImageRef
from segray.sources import listing
from segray.sources.archives import SourceSpec
from segray.sources.passed_over import PassedOver
from segray.sources.uris import inside
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join

NOBODY = 65534
STORE = Store(StorageOptions(retries=0))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@contextmanager
def another_user() -> Iterator[None]:
    """Lose the right of root to read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def refs(uri: object, *, kind: str = "auto", label_set: str | None = None) -> tuple[list[ImageRef], list[str]]:
    """The references of a source, and the notes on what was left out."""
    passed_over = PassedOver()
    batches = listing.read(str(uri), STORE, spec=SourceSpec(kind), label_set=label_set, passed_over=passed_over)
    return [ref for batch in batches for ref in listing.refs(batch)], passed_over.notes()


def keys(uri: object, *, kind: str = "auto", label_set: str | None = None) -> list[str]:
    return [ref.key for ref in refs(uri, kind=kind, label_set=label_set)[0]]


def write(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def shard(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return path


def table(path: Path, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


# Links


def test_a_link_to_itself_removes_no_neighbour(folder: Path) -> None:
    write(folder / "a.jpg"), write(folder / "sub" / "b.jpg")
    (folder / "sub" / "me").symlink_to("me")
    (folder / "me.jpg").symlink_to("me.jpg")
    found, notes = refs(folder)
    assert [(ref.key, ref.size_bytes) for ref in found] == [("a.jpg", 1), ("me.jpg", -1), ("sub/b.jpg", 1)]
    assert "sub/me" in " ".join(notes)
    with pytest.raises(FileNotFoundError):
        STORE.read(found[1].uri)


def test_a_link_to_a_folder_above_is_named(folder: Path) -> None:
    write(folder / "sub" / "b.jpg")
    (folder / "sub" / "up").symlink_to("..")
    found, notes = refs(folder)
    assert [ref.key for ref in found] == ["sub/b.jpg"]
    assert "sub/up/ (a link to a folder above the link)" in notes[0]


def test_a_link_without_a_target_is_named(folder: Path) -> None:
    write(folder / "a.jpg")
    (folder / "data").symlink_to("/no/such/disk")
    assert refs(folder)[1] == ["passed over: data (a link without a target)"]


# Permissions


@pytest.mark.parametrize("name", ["lost+found", "private"])
def test_a_folder_that_may_not_be_listed_is_named(folder: Path, name: str) -> None:
    write(folder / "a.jpg"), write(folder / "z" / "b.jpg"), write(folder / name / "c.jpg")
    (folder / name).chmod(0o700)
    with another_user():
        found, notes = refs(folder)
    assert [ref.key for ref in found] == ["a.jpg", "z/b.jpg"]
    assert notes == [f"passed over: {name}/ (permission denied)"]


def test_a_folder_whose_files_may_not_be_looked_at_is_named(folder: Path) -> None:
    write(folder / "a.jpg"), write(folder / "b" / "c.jpg")
    (folder / "b").chmod(0o744)
    with another_user():
        found, notes = refs(folder)
    assert [ref.key for ref in found] == ["a.jpg"]
    assert notes == ["passed over: b/c.jpg (permission denied)"]


def test_hidden_folders_are_not_entered(folder: Path) -> None:
    write(folder / "a.jpg"), write(folder / ".Trash-0" / "files" / "b.jpg")
    (folder / ".Trash-0").chmod(0o700)
    with another_user():
        assert refs(folder) == ([ImageRef("a.jpg", *_rest(folder / "a.jpg"))], [])


def test_folders_below_a_glob_are_not_entered(folder: Path) -> None:
    write(folder / "a.jpg"), write(folder / "lost+found" / "b.jpg")
    (folder / "lost+found").chmod(0o700)
    with another_user():
        assert refs(f"{folder}/*.jpg") == ([ImageRef("a.jpg", *_rest(folder / "a.jpg"))], [])
        assert refs(f"{folder}/**/*.jpg")[1] == ["passed over: lost+found/ (permission denied)"]


def test_a_folder_that_is_refused_itself_stops_the_run(folder: Path) -> None:
    write(folder / "photos" / "a.jpg")
    (folder / "photos").chmod(0o700)
    with another_user(), pytest.raises(AccessError, match="No permission"):
        refs(folder / "photos")


def test_a_container_that_may_not_be_read_is_one_reference(folder: Path) -> None:
    for name in ("a.tar", "b.tar", "c.tar"):
        shard(folder / name, "1.jpg")
    (folder / "a.tar").chmod(0o600)
    with another_user():
        found, _ = refs(folder)
    assert [ref.key for ref in found] == ["b.tar/1.jpg", "c.tar/1.jpg", "a.tar"]
    location = inside(found[-1].uri)
    assert location is not None
    assert "ermission denied" in location.reason


def test_containers_that_are_all_refused_stop_the_run(folder: Path) -> None:
    for name in ("a.tar", "b.tar"):
        shard(folder / name, "1.jpg").chmod(0o600)
    with another_user(), pytest.raises(AccessError, match=r"No permission[\s\S]*a\.tar"):
        refs(folder)


def _rest(path: Path) -> tuple[str, str, int]:
    entry = STORE.stat(str(path))
    return entry.uri, entry.version, entry.size_bytes


# Names


def test_a_name_that_is_not_utf_8_is_one_unreadable_image(folder: Path) -> None:
    write(folder / "a.jpg"), write(folder / "z.jpg")
    for name in (b"\xff.jpg", b"caf\xe9/b.jpg"):
        write(Path(os.fsdecode(os.fsencode(folder) + b"/" + name)))
    found, _ = refs(folder)
    assert sorted(ref.key for ref in found) == ["\\xff.jpg", "a.jpg", "caf\\xe9/b.jpg", "z.jpg"]
    reasons = [location.reason for ref in found if (location := inside(ref.uri))]
    assert len(reasons) == 2
    assert all("not UTF-8" in reason for reason in reasons)
    assert all(ref.version for ref in found)


def test_folders_with_wildcard_characters_are_taken_as_they_are(folder: Path) -> None:
    write(folder / "set[1]" / "a.jpg"), write(folder / "what?" / "b*" / "c.jpg"), write(folder / "set1" / "d.jpg")
    assert keys(folder / "set[1]") == keys(f"{folder}/set[1]/") == ["a.jpg"]
    assert keys(folder / "what?") == ["b*/c.jpg"]
    assert keys(folder / "what?" / "b*") == ["c.jpg"]
    assert keys(folder / "set[0-9]" / "*") == ["set1/d.jpg"]


# Files that are no images of the source


def test_stray_tables_beside_shards_are_passed_over(folder: Path) -> None:
    shard(folder / "a.tar", "1.jpg"), table(folder / "metadata.parquet", caption=["x"])
    found, notes = refs(folder)
    assert [ref.key for ref in found] == ["a.tar/1.jpg"]
    assert notes == ["passed over: metadata.parquet (a Parquet file without a column of images)"]


def test_a_table_that_may_not_be_read_is_passed_over_beside_shards(folder: Path) -> None:
    shard(folder / "a.tar", "1.jpg"), table(folder / "metadata.parquet", caption=["x"]).chmod(0o600)
    with another_user():
        found, notes = refs(folder)
    assert [ref.key for ref in found] == ["a.tar/1.jpg"]
    assert notes == ["passed over: metadata.parquet (storage refuses it)"]


def test_stray_tables_beside_tables_of_images_are_passed_over(folder: Path) -> None:
    for name in ("train-0.parquet", "train-1.parquet"):
        table(folder / name, image=[b"1"])
    table(folder / "metadata.parquet", caption=["x"])
    table(folder / "_metadata", image=[b"1"])
    for uri, kind in ((folder, "auto"), (folder, "parquet"), (f"{folder}/*", "parquet")):
        found, notes = refs(uri, kind=kind)
        assert [ref.key.partition("/")[0] for ref in found] == ["train-0.parquet", "train-1.parquet"]
        assert "metadata.parquet" in " ".join(notes)


def test_tables_without_images_alone_are_refused(folder: Path) -> None:
    table(folder / "a.parquet", caption=["x"]), table(folder / "b.parquet", caption=["x"])
    with pytest.raises(SourceError, match="No column of images"):
        refs(folder)


GLOB = "a glob in source.uri takes files of any extension"
UNPACK = "unpack .tar.gz before"


@pytest.mark.parametrize(
    ("names", "kind", "note"),
    [
        (["a.jpg", "b.tar", "c.tar", "d.psd", "notes.txt"], "auto",
         f"2 .tar, 1 .psd, 1 .txt; source.kind=tar takes .tar; {GLOB}"),
        (["a.jpg", *(f"{n}.psd" for n in range(1200))], "auto", f"1,200 .psd; {GLOB}"),
        (["a.jpg", "README", "b.tar.gz", "c.TAR.GZ"], "auto", f"2 .tar.gz, 1 without extension; {GLOB}; {UNPACK}"),
        (["a.jpg", "frame.2026-11-30T00", "b.caf\u00e9-menu"], "auto", f"2 without extension; {GLOB}"),
        (["a.jpg", ".DS_Store", "._a.jpg"], "auto", "2 hidden"),
        (["a.jpg", "b.tar", "c.zip"], "auto",
         "1 .tar, 1 .zip; source.kind=tar takes .tar; source.kind=zip takes .zip"),
        (["a.tar", "b.jpg", "c.png"], "tar", "1 .jpg, 1 .png; source.kind=images takes .jpg, .png"),
        (["a.tar", "a.json", "b.tar.gz"], "auto", f"1 .json, 1 .tar.gz; {GLOB}; {UNPACK}"),
    ],
)  # fmt: skip
def test_files_of_other_kinds_are_counted(folder: Path, names: list[str], kind: str, note: str) -> None:
    for name in names:
        shard(folder / name, "x.jpg") if name.endswith(".tar") else write(folder / name)
    assert refs(folder, kind=kind)[1] == [f"passed over: {note}"]


def test_a_file_alone_and_a_glob_pass_nothing_over(folder: Path) -> None:
    for name in ("a.jpg", "b.psd", "c"):
        write(folder / name)
    assert refs(folder / "a.jpg")[1] == []
    assert [ref.key for ref in refs(f"{folder}/*")[0]] == ["a.jpg", "b.psd", "c"]
    assert refs(f"{folder}/*")[1] == []


def test_any_number_of_extensions_is_one_short_line(folder: Path) -> None:
    write(folder / "a.jpg")
    for number in range(1500):
        write(folder / f"frame.{number:06}")
    passed_over = PassedOver()
    assert sum(batch.num_rows for batch in listing.read(str(folder), STORE, passed_over=passed_over)) == 1
    (note,) = passed_over.notes()
    assert len(note) < 300
    counts = passed_over.as_record()["files"]
    assert (sum(counts.values()), len(counts)) == (1500, 1001)


def test_a_label_set_inside_its_source_is_left_out(folder: Path) -> None:
    table(folder / "train.parquet", image=[b"1"])
    for name in ("images", "instances"):
        table(folder / "labels" / name / "b1.parquet", rle=[b"1"])
    (folder.parent / f"{folder.name}-link").symlink_to(folder)
    try:
        for root in (f"{folder}/labels", f"{folder}-link/labels"):
            assert keys(folder, label_set=root) == ["train.parquet/000000000"]
            assert keys(f"{folder}/**/*.parquet", label_set=root) == ["train.parquet/000000000"]
    finally:
        (folder.parent / f"{folder.name}-link").unlink()


def test_a_label_set_in_the_folder_of_its_source_is_left_out(folder: Path) -> None:
    write(folder / "images" / "a.jpg"), table(folder / "images" / "b1.parquet", rle=[b"1"])
    write(folder / "_segray" / "b.jpg")
    assert keys(f"{folder}/**/*", label_set=str(folder)) == ["images/a.jpg"]
    assert refs(folder, label_set=str(folder))[1] == []


@pytest.mark.integration
def test_odd_prefixes_of_a_bucket(swift_env: Swift) -> None:
    store, bucket = Store(StorageOptions(endpoint_url=swift_env.endpoint_url)), f"s3://{swift_env.bucket()}"
    for key in ("photos", "photos/a.jpg", "set[1]/b.jpg", "labels/images/p.parquet", "labels.jpg"):
        store.put(join(bucket, key), b"" if key == "photos" else b"x")

    def listed(uri: str) -> list[str]:
        return [
            ref.key for batch in listing.read(uri, store, label_set=f"{bucket}/labels") for ref in listing.refs(batch)
        ]

    assert listed(f"{bucket}/photos") == ["a.jpg"]
    assert listed(f"{bucket}/set[1]") == ["b.jpg"]
    assert listed(f"{bucket}/*") == ["labels.jpg", "photos"]
    assert listed(f"{bucket}/**/*") == ["labels.jpg", "photos", "photos/a.jpg", "set[1]/b.jpg"]
