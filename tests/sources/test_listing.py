"""sources.py: what is taken from folders, globs and manifests, under which key, and what an empty one says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import tried
from swift_server import Swift

from segray.errors import AccessError, SourceError
from segray.instances import ImageRef
from segray.sources import listing, manifest
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join

TREE = (
    "a b.JPG",
    "a%20b.jpeg",
    "empty.png",
    "naïve+.tiff",
    "new\nline.webp",
    "notes.txt",
    "sub/a.jpg",
    "sub/deep/b.jpg",
    "sub/photo[1].jpg",
    ".hidden.jpg",
    ".cache/c.jpg",
    "_delta_log/d.jpg",
    "_MG_0001.jpg",
    "noextension",
)
IMAGES = sorted(set(TREE) - {"notes.txt", ".hidden.jpg", ".cache/c.jpg", "_delta_log/d.jpg", "noextension"})


@pytest.fixture
def store() -> Store:
    return Store(StorageOptions(retries=0))


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path, store: Store) -> Iterator[str]:
    """The TREE, below a folder that itself is hidden."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    root = str(tmp_path / ".data") if request.param == "local" else "memory://.data"
    for key in TREE:
        store.put(join(root, key), b"" if "empty" in key else key.encode())
    yield root
    memory.store.clear()


def all_refs(uri: str, store: Store) -> list[ImageRef]:
    return [ref for batch in listing.read(uri, store) for ref in listing.refs(batch)]


def keys(uri: str, store: Store) -> list[str]:
    return [ref.key for ref in all_refs(uri, store)]


# Folders and single files


def test_a_folder_gives_every_visible_image_sorted(store: Store, root: str) -> None:
    for uri in (root, root + "/"):
        found = all_refs(uri, store)
        assert [ref.key for ref in found] == IMAGES
    for ref in found:
        assert ref == ImageRef(
            ref.key, join(root, ref.key), store.stat(ref.uri).version, store.stat(ref.uri).size_bytes
        )
        assert store.read(ref.uri) == (b"" if ref.key == "empty.png" else ref.key.encode())
        assert ref.version


def test_the_extensions_can_be_chosen(store: Store, root: str) -> None:
    (batch,) = listing.read(root, store, extensions=frozenset({"txt"}))
    assert batch["key"].to_pylist() == ["notes.txt"]


def test_a_single_image_is_a_dataset(store: Store, root: str) -> None:
    (ref,) = all_refs(join(root, "sub/a.jpg"), store)
    assert (ref.key, ref.uri, ref.size_bytes) == ("a.jpg", join(root, "sub/a.jpg"), 9)


def test_uris_do_not_depend_on_the_working_directory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"a")
    monkeypatch.chdir(tmp_path)
    expected = [("a.jpg", str(tmp_path / "photos" / "a.jpg"))]
    for uri in ("photos", "./photos/", "photos/*", "photos/a.jpg", f"file://{tmp_path}/photos"):
        assert [(ref.key, ref.uri) for ref in all_refs(uri, store)] == expected


def test_references_come_in_batches_of_one_schema(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "REF_BATCH_ROWS", 2)
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    batches = list(listing.read(str(tmp_path), store))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert all(batch.schema.equals(listing.REF_SCHEMA) for batch in batches)


# Globs


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("sub/*.jpg", ["a.jpg", "photo[1].jpg"]),
        ("**/*.jpg", ["_MG_0001.jpg", "_delta_log/d.jpg", "sub/a.jpg", "sub/deep/b.jpg", "sub/photo[1].jpg"]),
        ("sub/**", ["a.jpg", "deep/b.jpg", "photo[1].jpg"]),
        ("*/deep/?.jpg", ["sub/deep/b.jpg"]),
        ("sub/[!b].jpg", ["a.jpg"]),
        ("sub/*/[a-b].jp*g", ["deep/b.jpg"]),
        (".h*", [".hidden.jpg"]),
        ("*", sorted({*IMAGES, "notes.txt", "noextension"} - {key for key in IMAGES if "/" in key})),
        ("new?line.webp", ["new\nline.webp"]),
    ],
)
def test_a_glob_takes_what_it_names(store: Store, root: str, glob: str, expected: list[str]) -> None:
    assert keys(join(root, glob), store) == expected


def test_a_name_that_exists_is_no_pattern(store: Store, root: str) -> None:
    assert keys(join(root, "sub/photo[1].jpg"), store) == ["photo[1].jpg"]


def test_a_glob_without_a_match_says_what_it_saw(store: Store, root: str) -> None:
    with pytest.raises(SourceError, match=r"No file matches[\s\S]*2 files below"):
        keys(join(root, "sub/*.png"), store)
    with pytest.raises(SourceError, match="Not a glob"):
        keys(join(root, "[z-a].png"), store)


def test_a_bucket_cannot_be_a_pattern(store: Store) -> None:
    with pytest.raises(SourceError, match="bucket"):
        keys("memory://b*/x", store)


# Manifests


def write(root: str, store: Store, name: str, content: str | pa.Table) -> str:
    uri = join(root, name)
    if isinstance(content, str):
        store.put(uri, content.encode())
    else:
        buffer = pa.BufferOutputStream()
        pq.write_table(content, buffer)
        store.put(uri, buffer.getvalue().to_pybytes())
    return uri


PLAIN = ["a b.JPG", "#1.jpg", "sub/a%20b.jpg", "naïve+.tiff"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.txt", "\n".join(PLAIN)),
        ("M.TXT", "\ufeff" + "\r\n".join(["", *PLAIN, "  ", PLAIN[0], ""])),
        ("m.csv", "\ufeffuri\r\n" + "\r\n".join(PLAIN) + "\r\n\r\n"),
        ("m.csv", "path\n" + "\n".join([*PLAIN, PLAIN[1]])),
        ("headerless.csv", "\n".join(PLAIN)),
        ("m.csv", "uri,key\n" + "\n".join(f"{each}," for each in PLAIN) + "\n,\n , \n"),
        ("m.csv", "size,uri\n" + "\n".join(f'1,"{each}"' for each in PLAIN)),
        ("m.parquet", pa.table({"uri": PLAIN, "size": [1] * 4})),
        ("m.parquet", pa.table({"path": pa.array(PLAIN).dictionary_encode()})),
    ],
)
def test_a_manifest_gives_each_image_once_as_written(
    store: Store, root: str, name: str, content: str | pa.Table
) -> None:
    found = all_refs(write(root, store, name, content), store)
    assert found == [ImageRef(each, join(root, each)) for each in PLAIN]


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_manifest_may_carry_keys_and_versions(store: Store, root: str, name: str) -> None:
    columns = {"version": ["1", "2", ""], "uri": ["s3://b/a.jpg", "./x/b.jpg", "/c.jpg"], "key": ["k1", "k,2", ""]}
    text = 'version,uri,key\n1,s3://b/a.jpg,k1\n2,./x/b.jpg,"k,2"\n,/c.jpg,\n'
    found = all_refs(write(root, store, name, text if name == "m.csv" else pa.table(columns)), store)
    assert found == [
        ImageRef("k1", "s3://b/a.jpg", "1"),
        ImageRef("k,2", join(root, "x/b.jpg"), "2"),
        ImageRef("/c.jpg", "/c.jpg", ""),
    ]


def test_parquet_manifests_may_hold_nulls_and_numbers(store: Store, root: str) -> None:
    table = pa.table({"uri": ["a.jpg", "b.jpg"], "key": [None, "b"], "version": [7, None]})
    found = all_refs(write(root, store, "m.parquet", table), store)
    assert [(ref.key, ref.version) for ref in found] == [("a.jpg", "7"), ("b", "")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.txt", " \n\n", "names no image"),
        ("m.csv", "uri\n", "names no image"),
        ("m.csv", "", "no column 'uri'"),
        ("m.csv", "a,b\n1,2\n", r"no column 'uri' among 'a', 'b'"),
        ("m.csv", "uri,key\nx.jpg,1\ny.jpg\n", "line 3 has 1 columns"),
        ("m.csv", "uri,key\nx.jpg,1\n,2\n", r"m\.csv, line 3"),
        ("m.csv", "uri,key\nx.jpg,1\ny.jpg,1\n", r"One key for two images[\s\S]*line 3[\s\S]*'1'"),
        ("m.csv", 'uri\n"x.jpg\n', "CSV"),
        ("m.txt", "a\0b", "without a URI"),
        ("m.csv", "uri,key\nx.jpg,a\0b\n", "without a URI"),
        ("m.txt", "ok.jpg\n" + "x" * 200_000, "line 2 has more than 131071 characters"),
        ("m.csv", "uri\n" + "x" * 200_000, "line 2 has more than"),
        ("m.csv", "uri,uri\na,b\n", "two columns 'uri'"),
        ("m.csv", "uri;key\na;b\n", "no column 'uri' among 'uri;key'"),
        ("m.parquet", pa.table({"uri": [1, 2]}), "column 'uri' holds int64, not text"),
        ("m.parquet", pa.table([["a"], ["b"]], names=["uri", "uri"]), "two columns 'uri'"),
        ("m.parquet", pa.table({"uri": pa.array([b"\xff\xfe"])}), "Parquet"),
        ("m.parquet", "not parquet", "Parquet"),
        ("m.parquet", pa.table({"uri": pa.array([{"x": 1}])}), "Parquet"),
        ("m.parquet", pa.table({"uri": pa.array([None], pa.string())}), "without a URI"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_where(
    store: Store, root: str, name: str, content: str | pa.Table, says: str
) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        keys(write(root, store, name, content), store)
    assert name in caught.value.where


def test_a_manifest_in_another_encoding_is_refused(store: Store, root: str) -> None:
    store.put(join(root, "m.txt"), "größe.jpg".encode("latin-1"))
    with pytest.raises(SourceError, match="UTF-8"):
        keys(join(root, "m.txt"), store)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()])
def test_a_parquet_manifest_may_hold_text_of_any_kind(store: Store, root: str, kind: pa.DataType) -> None:
    table = pa.table({"uri": pa.array([each.encode() for each in PLAIN], pa.binary()).cast(kind)})
    assert all_refs(write(root, store, "m.parquet", table), store) == [
        ImageRef(each, join(root, each)) for each in PLAIN
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifests")


def refs_or_refusal(folder: Path, kind: str, content: bytes) -> None:
    """Whatever the bytes: references with keys that differ, or a SourceError that says where."""
    manifest = folder / f"m.{kind}"
    manifest.write_bytes(content)
    try:
        found = keys(str(manifest), Store(StorageOptions(retries=0)))
    except SourceError as error:
        assert str(manifest) in error.where
        return
    assert found
    assert all(found)
    assert len(set(found)) == len(found)


WORDS = [
    "a.jpg", "b c.jpg", "%20.jpg", "é🙂.jpg", "../up.jpg", "s3://b/k", "s3://", "file:///x", "http://[::1", "~root/x",
    "uri", "key", "version", "", " ", ",", ";",
    '"', '""', "\t", "\n", "\r", "\r\n", "\ufeff", "\u2028", "\x85", "\0", "\x1a",
    "x" * 140_000,
]  # fmt: skip


@tried(250)
@given(
    st.sampled_from(["txt", "csv", "tsv", "jsonl"]),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"uri\n", b"uri,key,version\r\n"]),
    st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
    st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1"]),
    st.binary(max_size=5),
)
def test_any_text_gives_references_or_is_refused(
    folder: Path, kind: str, start: bytes, text: str, encoding: str, noise: bytes
) -> None:
    refs_or_refusal(folder, kind, start + text.encode(encoding, "replace") + noise)


COLUMNS = (
    pa.array(["a.jpg", "é b.jpg", None, "a.jpg"]),
    pa.array(["a", "b", "a", "b"]).dictionary_encode(),
    pa.array([b"a", b"b", b"\xff", None]),
    pa.array([1, 2, None, 4]),
    pa.array([[], ["a"], None, ["b", "c"]]),
    pa.array([{"uri": "a"}, {"uri": "b"}, None, {"uri": None}]),
    pa.nulls(4),
)


@tried(150)
@given(
    st.lists(st.tuples(st.sampled_from(["uri", "key", "version", "uri.x", ""]), st.sampled_from(COLUMNS)), max_size=3),
    st.integers(0, 4),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3),
    st.booleans(),
)
def test_any_parquet_gives_references_or_is_refused(
    folder: Path,
    columns: list[tuple[str, pa.Array]],
    rows: int,
    length: float,
    flips: list[tuple[float, int]],
    cut: bool,
) -> None:
    """Of any types, with columns that are there twice, nested or missing; whole, cut short, or with bytes flipped."""
    names, arrays = [name for name, _ in columns], [array.slice(0, rows) for _, array in columns]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, names), sink, compression="zstd")
    data = bytearray(sink.getvalue().to_pybytes())
    for place, value in flips:
        data[int(place * (len(data) - 1))] = value
    refs_or_refusal(folder, "parquet", bytes(data[: int(length * len(data))] if cut else data))


@pytest.mark.integration
@tried(60)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 1)), max_size=40), st.sampled_from([1, 700, 2500]))
def test_what_was_seen_is_known_however_much_it_is(repeats: list[tuple[int, int]], many: int) -> None:
    seen, known = manifest._SeenKeys(), {}
    for key, uri in [*((i, 0) for i in range(many)), *repeats]:
        before = seen.add(f"k{key}", f"u{uri}")
        assert before is (None if key not in known else known[key] == uri)
        known.setdefault(key, uri)
    assert len(seen) == len(known)


# Nothing there


def test_a_folder_without_images_says_what_it_holds(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no files at all"):
        keys(str(tmp_path), store)
    for each in ("a.pdf", "b.pdf", "c", ".d.jpg"):
        (tmp_path / each).write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"4 files: \.pdf 2, without extension 1, hidden \.jpg 1|4 files: \.pdf 2, hidden"
    ):
        keys(str(tmp_path), store)


def test_a_folder_that_is_missing_names_its_neighbours(store: Store, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for wrong in ("photoz", "photoz/*.jpg"):
        with pytest.raises(SourceError, match=r"No such folder[\s\S]*photos"):
            keys(str(tmp_path / wrong), store)


def test_a_file_that_is_neither_image_nor_manifest(store: Store, root: str) -> None:
    with pytest.raises(SourceError, match="Neither an image nor a manifest"):
        keys(join(root, "noextension"), store)


def test_a_folder_that_no_table_can_hold_stops_with_its_name(store: Store, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match=r"not UTF-8[\s\S]*udcff/a\.jpg"):
        keys(str(folder), store)


# A real S3 server


@pytest.mark.integration
def test_s3_prefixes_globs_and_manifests(swift_env: Swift) -> None:
    store, bucket = Store(StorageOptions(endpoint_url=swift_env.endpoint_url)), swift_env.bucket()
    root = f"s3://{bucket}/photos"
    for key in TREE:
        store.put(join(root, key), b"" if "empty" in key else b"x")
    store.put(f"s3://{bucket}/photos-2/x.jpg", b"x")
    assert keys(root, store) == IMAGES
    assert keys(f"s3://{bucket}", store) == ["photos-2/x.jpg", *(f"photos/{key}" for key in IMAGES)]
    assert keys(f"s3://{bucket}/ph*-2/*", store) == ["photos-2/x.jpg"]
    assert keys(join(root, "**/[ab].jpg"), store) == ["sub/a.jpg", "sub/deep/b.jpg"]
    (ref,) = all_refs(join(root, "sub/a.jpg"), store)
    assert ref == ImageRef("a.jpg", join(root, "sub/a.jpg"), "9dd4e461268c8034f5c8564e155c67a6", 1)
    assert all(store.read(ref.uri) in (b"x", b"") for ref in all_refs(root, store))
    for name, content in (("m.txt", "sub/a.jpg\n"), ("m.parquet", pa.table({"uri": ["sub/a.jpg"]}))):
        assert all_refs(write(root, store, name, content), store) == [ImageRef("sub/a.jpg", join(root, "sub/a.jpg"))]
    with pytest.raises(SourceError, match="No images here"):
        keys(f"s3://{bucket}/nothing", store)
    with pytest.raises(AccessError, match="No such bucket"):
        keys("s3://no-such-bucket/photos", store)


# Size


def peak_growth_mb(program: str) -> float:
    """Run `program`, which defines work(), in a fresh process: how much its peak memory grew over its imports."""
    measured = f"""
import json
{program}
# Not getrusage: a child inherits its parent's peak there.
peak = lambda: next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
kept = work()
print(json.dumps(peak() - before))
"""
    done = subprocess.run([sys.executable, "-c", measured], check=True, capture_output=True, text=True, timeout=300)
    return float(json.loads(done.stdout))


# At most 1,000 bytes for each image.
COUNTS = [pytest.param(200_000, marks=pytest.mark.integration), pytest.param(1_000_000, marks=pytest.mark.chaos)]


@pytest.mark.parametrize("count", COUNTS)
def test_a_million_listed_keys_would_cost_less_than_a_gigabyte(count: int) -> None:
    growth = peak_growth_mb(f"""
count = {count}
from segray.sources import listing as sources

from segray.storage.store import ListedObject, Store
class Synthetic(Store):
    def stat(self, uri): raise FileNotFoundError(uri)
    def list(self, uri, *, prefix="", walk=None):
        for i in range(count):
            key = f"camera-{{i // 10_000:04d}}/2024-06-01/IMG_{{i:08d}}.jpg"
            yield ListedObject(f"{{uri}}/{{key}}", key, f"{{i:032x}}", 2_000_000 + i)
def work():
    kept = list(sources.read("s3://a-bucket-with-a-name/some/prefix", Synthetic()))
    assert sum(map(len, kept)) == count
    return kept
""")
    print(f"{growth:.0f} MB")
    assert growth < count / 1_000


@pytest.mark.parametrize("count", COUNTS)
def test_a_manifest_of_a_million_would_cost_less_than_a_gigabyte(tmp_path: Path, count: int) -> None:
    with (tmp_path / "m.txt").open("w") as file:
        file.writelines(f"s3://a-bucket/camera-{i // 10_000:04d}/2024-06-01/IMG_{i:08d}.jpg\n" for i in range(count))
    growth = peak_growth_mb(f"""
from segray.sources import listing as sources

from segray.storage.store import Store
def work():
    kept = list(sources.read({str(tmp_path / "m.txt")!r}, Store()))
    assert sum(map(len, kept)) == {count}
    return kept
""")
    print(f"{growth:.0f} MB")
    assert growth < count / 1_000
