"""URIs are joined, taken apart and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from segray.storage.uris import absolute, bucket_and_key, is_s3, join, name, parent, redact, scheme


def test_uris_are_joined_and_taken_apart() -> None:
    assert join("s3://b/p", "x", "y.jpg") == join("s3://b/p/", "x", "y.jpg") == "s3://b/p/x/y.jpg"
    assert join("/", "x") == "/x"
    assert join("", "x", "y") == "x/y"
    assert (parent("s3://b/p/x.jpg"), name("s3://b/p/x.jpg")) == ("s3://b/p", "x.jpg")
    assert (parent("x.jpg"), name("x.jpg")) == ("", "x.jpg")
    assert [scheme(uri) for uri in ("/a", "a", "file:///a", "s3://b", "GS://b")] == ["", "", "", "s3", "gs"]
    assert bucket_and_key("s3://b/p/a%20b.jpg") == ("b", "p/a%20b.jpg")
    assert bucket_and_key("s3://b") == ("b", "")
    assert [is_s3(uri) for uri in ("s3://b", "S3A://b/k", "gs://b", "/s3")] == [True, True, False, False]


def test_local_paths_become_absolute_and_others_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute("a/../b%20c") == str(tmp_path / "b%20c")
    assert absolute("file:///data/x y") == "/data/x y"
    assert absolute("~/x") == "/home/someone/x"
    assert absolute("s3://b/../x") == "s3://b/../x"


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("https://user:pw@host/a.jpg?X-Amz-Signature=abc", "https://host/a.jpg?..."),
        ("http://host/a.jpg", "http://host/a.jpg"),
        ("s3://b/what?.jpg", "s3://b/what?.jpg"),
        ("/data/user@host?.jpg", "/data/user@host?.jpg"),
    ],
)
def test_a_link_is_shown_without_its_secrets_and_other_uris_as_they_are(uri: str, text: str) -> None:
    assert redact(uri) == text
