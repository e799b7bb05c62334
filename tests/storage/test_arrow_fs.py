"""Which of Arrow's file systems a place is read through, and with what."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pytest

from segray.label_set import dataset
from segray.storage import arrow_fs

ENDPOINT = {"AWS_ENDPOINT_URL": "http://localhost:9000", "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}


def test_a_folder_is_read_by_arrow_itself(tmp_path: Path) -> None:
    found = arrow_fs.native(f"file://{tmp_path}", {})
    assert found.equals(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()))


def test_s3_gets_credentials_region_endpoint_and_token() -> None:
    options = {**ENDPOINT, "AWS_SESSION_TOKEN": "token", "AWS_REGION": "eu-west-1", "timeout": "5s", "max_retries": "0"}
    found = arrow_fs.native("s3://bucket/a b/", options)
    assert found.base_path == "bucket/a b/"
    given = found.base_fs.__reduce__()[1][0]
    assert {name: given[name] for name in ("access_key", "secret_key", "session_token", "region", "scheme")} == {
        "access_key": "id", "secret_key": "secret", "session_token": "token", "region": "eu-west-1", "scheme": "http",
    }  # fmt: skip
    assert given["endpoint_override"] == "localhost:9000"


def test_s3_without_credentials_is_anonymous_only_where_asked() -> None:
    found = arrow_fs.native("s3://bucket/x", {"AWS_SKIP_SIGNATURE": "true", "AWS_REGION": "us-east-1"})
    assert found.base_fs.__reduce__()[1][0]["anonymous"]


def test_s3_goes_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert arrow_fs._proxy("https", "amazonaws.com") == "http://proxy:3128"
    assert arrow_fs._proxy("https", "localhost:9000") is None


@pytest.mark.parametrize(
    ("uri", "options"),
    [("s3://b/x", {"AWS_UNKNOWN": "1"}), ("s3://b/x", {"AWS_ENDPOINT_URL": "http://host/path"}),
     ("gs://b/x", {"GOOGLE_SERVICE_ACCOUNT": "key.json"}), ("az://b/x", {"AZURE_STORAGE_AUTHORITY_HOST": "x"}),
     ("az://b/x", {}), ("hdfs://host/x", {})],
)  # fmt: skip
def test_what_arrow_cannot_be_told_is_left_to_others(
    uri: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    assert arrow_fs.native(uri, options) is None


@pytest.mark.parametrize("uri", ["az://box/a/b", "abfss://box@account.dfs.core.windows.net/a/b"])
def test_azure_takes_its_account_from_options_or_the_address(uri: str) -> None:
    found = arrow_fs.native(uri, {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"})
    assert found.base_path == "box/a/b/"
    assert found.base_fs.type_name == "abfs"


def test_bounds_say_nothing_of_a_column_with_unknown_nulls_and_keep_its_nulls() -> None:
    column = pa.field("x", pa.int32())
    for nulls, kept in ((None, [1, 5, None]), (0, [5]), (2, [5, None])):
        bounds = dataset._column_expression(column, 4, 6, nulls)
        rows = ds.dataset(pa.table({"x": pa.array([1, 5, None], pa.int32())}))
        assert rows.to_table(filter=bounds).column("x").to_pylist() == kept


def test_a_file_system_of_arrow_travels(tmp_path: Path) -> None:
    for found in (arrow_fs.native(str(tmp_path), {}), arrow_fs.native("s3://b/x", ENDPOINT)):
        assert pickle.loads(pickle.dumps(found)).equals(found)
