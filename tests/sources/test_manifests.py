"""Manifests as people have them: formats, encodings, columns, comments, file URIs, and several at once."""

from __future__ import annotations

import gzip
import json
import os
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapes
from hypothesis import given
from hypothesis import strategies as st
from properties import tried

from segray import config
from segray.errors import SourceError
from segray.instances import ImageRef
from segray.sources import listing
from segray.sources.base_prefix import resolve_base
from segray.sources.braces import expand, has_braces
from segray.sources.passed_over import PassedOver
from segray.storage.store import StorageOptions, Store

NAMES = ["a.jpg", "sub/b c.jpg", "é.jpg"]


def listed(uri: Path | str, passed_over: PassedOver | None = None, **source: object) -> list[ImageRef]:
    settings = config.SourceSettings.model_validate({"uri": str(uri), **source})
    batches = listing.configured(settings, Store(StorageOptions(retries=0)), passed_over=passed_over)
    return [ref for batch in batches for ref in listing.refs(batch)]


def notes_of(uri: Path | str, **source: object) -> str:
    passed_over = PassedOver()
    listed(uri, passed_over, **source)
    return "\n".join(passed_over.notes())


def expected(folder: Path, names: list[str] = NAMES) -> list[ImageRef]:
    return [ImageRef(name, str(folder / name)) for name in names]


def objects(column: str) -> str:
    return "".join(json.dumps({column: name, "caption": '5" of text, and\ttabs'}) + "\n" for name in NAMES)


TEXTS = {
    "m.txt": "\n".join(NAMES),
    "m.csv": "caption,uri\n" + "".join(f'"a, b",{name}\n' for name in NAMES),
    "m.tsv": "caption\turi\n" + "".join(f'5" of text, here\t{name}\n' for name in NAMES),
    "m.jsonl": objects("uri"),
    "m.ndjson": "".join(json.dumps(name) + "\n" for name in NAMES),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("is_gzipped", [False, True])
def test_every_format_is_read_in_every_encoding(
    name: str, encoding: str, ends: str, is_gzipped: bool, tmp_path: Path
) -> None:
    data = TEXTS[name].replace("\n", ends).encode(encoding)
    path = tmp_path / (f"{name}.gz" if is_gzipped else name)
    path.write_bytes(gzip.compress(data) if is_gzipped else data)
    assert listed(path) == expected(tmp_path)
    assert listed(path, kind="manifest") == expected(tmp_path)


def test_lines_of_old_macs_are_lines(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_bytes("\r".join(NAMES).encode())
    assert listed(tmp_path / "m.txt") == expected(tmp_path)


def test_a_gzipped_name_over_plain_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.txt.gz").write_text("\n".join(NAMES))
    assert listed(tmp_path / "m.txt.gz") == expected(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_gzip_is_refused(damage: str, tmp_path: Path) -> None:
    data = bytearray(gzip.compress(os.urandom(3000).hex().encode()))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "m.txt.gz").write_bytes(data[: len(data) // 3] if damage == "cut" else data)
    with pytest.raises(SourceError, match="Cannot read the manifest"):
        listed(tmp_path / "m.txt.gz")


# ---- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["url", "URL", "file_name", "image_path", "Filename", "image"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_one_known_column_is_taken_and_told(column: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"m.{kind}"
    if kind == "csv":
        path.write_text(f"TEXT,{column}\n" + "".join(f"x,{name}\n" for name in NAMES))
    elif kind == "jsonl":
        path.write_text(objects(column))
    else:
        pq.write_table(pa.table({"TEXT": ["x"] * 3, column: NAMES, "similarity": [0.5] * 3}), path)
    assert listed(path) == expected(tmp_path)
    assert f"m.{kind}: the column '{column}' holds the URIs; source.uri_column" in notes_of(path)


def test_several_known_columns_ask_which(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("url,file_name\na.jpg,b.jpg\n")
    with pytest.raises(SourceError, match=r"'url', 'file_name'[\s\S]*source\.uri_column"):
        listed(path)
    assert [ref.key for ref in listed(path, uri_column="file_name")] == ["b.jpg"]
    with pytest.raises(SourceError, match=r"no column 'link' among 'url', 'file_name'[\s\S]*source\.uri_column"):
        listed(path, uri_column="link")


def test_a_chosen_column_wins_over_uri_and_over_image_bytes(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,mine,key\na.jpg,b.jpg,k\n")
    assert listed(tmp_path / "m.csv", uri_column="mine") == [ImageRef("k", str(tmp_path / "b.jpg"))]
    pq.write_table(pa.table({"image": [b"x"], "source": ["c.jpg"]}), tmp_path / "m.parquet")
    assert [ref.key for ref in listed(tmp_path / "m.parquet")] == ["m.parquet/000000000"]
    assert [ref.key for ref in listed(tmp_path / "m.parquet", uri_column="source")] == ["c.jpg"]


def test_a_first_row_that_is_an_image_is_no_header(tmp_path: Path) -> None:
    for first in ("s3://b/0001", "/data/0001", "https://h/0001"):
        (tmp_path / "m.csv").write_text(f"{first}\n/data/0002\n")
        assert [ref.key for ref in listed(tmp_path / "m.csv")] == [first, "/data/0002"]
    (tmp_path / "m.csv").write_text("0001\n0002\n")
    assert "the only column, '0001', holds the URIs" in notes_of(tmp_path / "m.csv")


# ---- lines ----------------------------------------------------------------------------------------


def test_blanks_quotes_and_comments_are_no_part_of_a_uri(tmp_path: Path) -> None:
    lines = ["# pictures of May", "#", "  a.jpg", "\t", "b.jpg  ", '"c, d.jpg"', "## more", "#1.jpg", " s3://b/k.jpg"]
    (tmp_path / "m.txt").write_text("\n".join(lines) + "\n")
    keys = ["a.jpg", "b.jpg", "c, d.jpg", "#1.jpg", "s3://b/k.jpg"]
    assert [ref.key for ref in listed(tmp_path / "m.txt")] == keys
    assert "m.txt: 3 lines are comments, such as '# pictures of May'" in notes_of(tmp_path / "m.txt")
    (tmp_path / "m.csv").write_text("# made by hand\nuri,key\n# a note\n a.jpg,1\n")
    assert listed(tmp_path / "m.csv") == [ImageRef("1", str(tmp_path / "a.jpg"))]
    assert "m.csv: 2 lines are comments" in notes_of(tmp_path / "m.csv")


def test_a_name_as_written_wins_where_the_file_exists(tmp_path: Path) -> None:
    names = [" a.jpg", "b.jpg ", '"c.jpg"', "# d.jpg", "#e"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "m.txt").write_text("\n".join(names))
    assert listed(tmp_path / "m.txt") == expected(tmp_path, names)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_names_in_files_of_programs_are_taken_as_written(kind: str, tmp_path: Path) -> None:
    names = ["s3://b/e.jpg ", '"q".jpg"', " f.jpg", "# g.jpg", " http://h/a.jpg\n", " s3://b/h.jpg "]
    path = tmp_path / f"m.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"uri": name}) + "\n" for name in names))
    else:
        pq.write_table(pa.table({"uri": names}), path)
    assert [ref.key for ref in listed(path)] == [*names[:4], "http://h/a.jpg", "s3://b/h.jpg "]


def test_files_joined_with_their_marks_are_read(tmp_path: Path) -> None:
    part = "\ufeff" + "\n".join(NAMES) + "\n"
    (tmp_path / "m.txt").write_text(part + part)
    assert listed(tmp_path / "m.txt") == expected(tmp_path)


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("s4://b/a.jpg", "s4://"),
        ("s3:/b/a.jpg", "begins no URL and no path"),
        ("C:/photos/a.jpg", "begins no URL and no path"),
        ("s3:///a.jpg", "no bucket"),
        ("htp://h/a.jpg", "htp://"),
        ("file://server/share/a.jpg", "no file of this machine"),
        ("see http://h/a.jpg", "see http://"),
    ],
)
@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl"])
def test_an_address_that_no_store_has_is_refused_at_planning(
    kind: str, written: str, what: str, tmp_path: Path
) -> None:
    path = tmp_path / f"m.{kind}"
    good = "s3://b/good.jpg"
    values = [json.dumps({"uri": each}) for each in (good, good, written)]
    lines = {"txt": [good, "", written], "csv": ["uri", good, written], "jsonl": values}[kind]
    path.write_text("\n".join(lines))
    with pytest.raises(SourceError) as caught:
        listed(path)
    assert what in caught.value.what
    assert caught.value.where == f"{path}, line 3"
    assert written in caught.value.found


def test_a_row_of_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    pq.write_table(pa.table({"uri": ["a.jpg", "x4://b/a.jpg"]}), tmp_path / "m.parquet")
    with pytest.raises(SourceError) as caught:
        listed(tmp_path / "m.parquet")
    assert caught.value.where == f"{tmp_path / 'm.parquet'}, row 2"


# ---- file URIs ------------------------------------------------------------------------------------


def test_file_uris_are_read_as_programs_write_them(tmp_path: Path) -> None:
    names = ["a b é.jpg", "c%20d.jpg", "e+f.jpg", "#g?.jpg"]
    for name in names:
        (tmp_path / name).write_text(name)
    for write in (
        Path.as_uri,
        lambda path: f"file:{quote(str(path))}",
        lambda path: "file:" + urllib.request.pathname2url(str(path)),
        lambda path: f"file://localhost{quote(str(path))}",
        lambda path: f"FILE://{quote(str(path))}",
        lambda path: f"file://{path}",
    ):
        lines = [write(tmp_path / name) for name in names]
        (tmp_path / "m.txt").write_text("\n".join(lines))
        assert listed(tmp_path / "m.txt") == [
            ImageRef(line, str(tmp_path / name)) for line, name in zip(lines, names, strict=True)
        ]


def test_the_literal_file_wins_over_the_decoded_one(tmp_path: Path) -> None:
    for name in ("c%20d.jpg", "c d.jpg"):
        (tmp_path / name).write_text(name)
    line = f"file://{tmp_path}/c%20d.jpg"
    (tmp_path / "m.txt").write_text(line)
    assert listed(tmp_path / "m.txt") == [ImageRef(line, str(tmp_path / "c%20d.jpg"))]
    (tmp_path / "c%20d.jpg").unlink()
    assert listed(tmp_path / "m.txt") == [ImageRef(line, str(tmp_path / "c d.jpg"))]


@tried(100)
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=20))
def test_any_path_comes_back_from_its_uri(name: str) -> None:
    if name in (".", ".."):
        return
    path = Path("/no such folder") / f"{name}.jpg"
    resolved = listing.manifest._Resolver("/").resolve(path.as_uri())
    assert resolved == str(path)


# ---- several manifests ----------------------------------------------------------------------------


def test_several_manifests_are_one_list(tmp_path: Path) -> None:
    for folder, names in (("x", ["a.jpg", "s3://b/1.jpg"]), ("y", ["b.jpg", "s3://b/1.jpg"])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.txt").write_text("\n".join(names))
    (tmp_path / "y" / "z.csv.gz").write_bytes(gzip.compress(b"url,n\nc.jpg,1\n"))
    (tmp_path / "y" / "readme.md").write_text("x")
    found = [
        ImageRef("a.jpg", str(tmp_path / "x" / "a.jpg")),
        ImageRef("s3://b/1.jpg", "s3://b/1.jpg"),
        ImageRef("b.jpg", str(tmp_path / "y" / "b.jpg")),
    ]
    last = ImageRef("c.jpg", str(tmp_path / "y" / "c.jpg"))
    assert listed(tmp_path / "*/*.txt") == found
    assert listed(tmp_path / "*/*.txt", kind="manifest") == found
    assert listed(tmp_path / "{x,y}/m.txt") == found
    assert listed(tmp_path / "*/*", kind="manifest") == [*found, last]
    assert listed(tmp_path, kind="manifest") == [*found, last]
    assert "1 .md" in notes_of(tmp_path, kind="manifest")


def test_one_key_for_two_images_of_two_manifests_is_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.txt").write_text("a.jpg\n")
    with pytest.raises(SourceError, match=r"One key for two images[\s\S]*y/m\.txt, line 1"):
        listed(tmp_path / "*/m.txt")


def test_a_glob_without_a_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("x")
    with pytest.raises(SourceError, match=r"No manifest here[\s\S]*jpg 1"):
        listed(tmp_path / "*", kind="manifest")


def test_a_manifest_may_name_images_and_files_that_hold_images(tmp_path: Path) -> None:
    shapes.tar({"1.png": b"1", "2.png": b"2"}, tmp_path)
    (tmp_path / "m.txt").write_text("s3://b/a.jpg\ntrain-0000.tar\nz.jpg\n#x.tar\n")
    keys = [ref.key for ref in listed(tmp_path / "m.txt")]
    assert keys == ["s3://b/a.jpg", "train-0000.tar/1.png", "z.jpg", "#x.tar"]


# ---- braces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("a-{8..10}", ["a-8", "a-9", "a-10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("{a..c}", ["a", "b", "c"]),
        ("{x,y}/{1,2}", ["x/1", "x/2", "y/1", "y/2"]),
        ("{x,{y,z}}", ["x", "y", "z"]),
        ("{x,}.jpg", ["x.jpg", ".jpg"]),
        ("{today}", ["{today}"]),
        ("{}", ["{}"]),
        ("{09..10}", ["09", "10"]),
    ],
)
def test_braces_stand_for_names(text: str, names: list[str]) -> None:
    assert sorted(expand(text)) == sorted(names)
    assert has_braces(text) == (names != [text])


def test_too_many_names_are_refused() -> None:
    with pytest.raises(SourceError, match="more than 100,000 names"):
        expand("{0..999999999999}")


def test_shards_in_braces_are_read_and_a_missing_one_is_told(tmp_path: Path) -> None:
    shaped = shapes.tar({"1.png": b"1", "2.png": b"2"}, tmp_path / "shards")
    assert [ref.key for ref in listed(f"{shaped.uri}/train-{{0000..0001}}.tar")] == sorted(shaped.keys.values())
    found = listed(f"{shaped.uri}/train-{{0000..0002}}.tar")
    assert [ref.key for ref in found] == [*sorted(shaped.keys.values()), "train-0002.tar"]
    assert found[-1].uri.startswith("unreadable://the%20file%20is%20gone")
    found = listed(f"{tmp_path}/{{shards,other}}/train-0000.tar")
    assert [ref.key for ref in found] == ["other/train-0000.tar", "shards/train-0000.tar/1.png"]
    assert [ref.key for ref in listed(f"{tmp_path}/{{shards,shards}}/*1.tar")] == ["shards/train-0001.tar/2.png"]
    with pytest.raises(SourceError, match="No file of these names"):
        listed(f"{shaped.uri}/train-{{5..9}}.tar")


def test_names_in_braces_that_exist_are_names(tmp_path: Path) -> None:
    for folder in ("{a,b}", "a"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "{1,2}.jpg").write_bytes(b"x")
    assert [ref.key for ref in listed(tmp_path / "{a,b}")] == ["{1,2}.jpg"]
    assert [ref.key for ref in listed(tmp_path / "{a,b}/*.jpg")] == ["{1,2}.jpg"]
    assert [ref.uri for ref in listed(tmp_path / "a/{1,2}.jpg")] == [str(tmp_path / "a/{1,2}.jpg")]


def test_keys_of_names_in_braces_start_at_the_base(tmp_path: Path) -> None:
    source = config.SourceSettings(uri=f"{tmp_path}/day/{{x,y}}/*.jpg", base=str(tmp_path))
    assert resolve_base(source, Store()).prefix == "day/"


# ---- what people write instead --------------------------------------------------------------------


@pytest.mark.parametrize("header", ["URI,label", " uri , label", "Image Path,label", "label,Uri"])
def test_the_name_of_a_column_is_read_in_any_case(header: str, tmp_path: Path) -> None:
    row = "1,a.jpg" if header.startswith("label") else "a.jpg,1"
    (tmp_path / "m.csv").write_text(f"{header}\n{row}\n")
    assert listed(tmp_path / "m.csv") == expected(tmp_path, ["a.jpg"])


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("m.csv", "uri;label\na.jpg;1\n", "by commas in a .csv file"),
        ("m.csv", "uri\tlabel\na.jpg\t1\n", "by tabs in a .tsv file"),
        ("m.tsv", "uri,label\na.jpg,1\n", "by tabs in a .tsv file"),
        ("m.csv", "a.jpg,1\nb.jpg,2\n", "a first line with the names of its columns"),
    ],
)
def test_a_table_of_another_form_is_refused_with_the_form_that_is_read(
    name: str, text: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError) as refused:
        listed(tmp_path / name)
    assert hint in str(refused.value)


@pytest.mark.parametrize("line", ["a.jpg 0", "a.jpg\t0", "a.jpg,0", "a.jpg;0"])
def test_a_table_in_a_text_file_is_told(line: str, tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text(f"# train\n{line}\n{line}\n")
    assert f"each line is one URI, such as {line!r}" in notes_of(tmp_path / "m.txt")
    (tmp_path / "m.txt").write_text("a b.jpg\na.b c,d.jpg\n")
    assert not notes_of(tmp_path / "m.txt")


def test_a_manifest_that_braces_name_and_that_is_gone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("a.jpg\n")
    with pytest.raises(SourceError, match=r"manifest is gone[\s\S]*2\.txt"):
        listed(f"{tmp_path}/{{1,2}}.txt")


def test_a_url_without_a_host_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("https:///a.jpg\n")
    with pytest.raises(SourceError, match="names no host"):
        listed(tmp_path / "m.txt")
