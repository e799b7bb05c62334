"""Azure and Google Cloud Storage on real servers: objects, listings, tables, refusals and outages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import deltalake
import label_sets
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from azurite import Azurite
from command import here, in_both_ways, write_config
from gcs_emulator import Emulator
from label_sets import Image

import segray
from segray import rle
from segray.errors import AccessError, InfrastructureError
from segray.label_set import maintenance
from segray.label_set.class_names import partition_value
from segray.label_set.validation import verify
from segray.storage import arrow_fs, retry
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join
from segray.synthetic import dataset

pytestmark = pytest.mark.integration

ODD_NAMES = ["a b", "a%20b", "a+b", "ü", "a#b", "a?b", "a&b=c", "x[1]*", "..x", "q'\"."]


@pytest.fixture(params=["az", "abfss", "gs"])
def root(request: pytest.FixtureRequest) -> str:
    """A folder in a new container or bucket, of which the environment names the account."""
    if request.param == "gs":
        return f"gs://{request.getfixturevalue('gcs_env').bucket()}/folder"
    container = request.getfixturevalue("azure_env").container()
    account = "@devstoreaccount1.dfs.core.windows.net" if request.param == "abfss" else ""
    return f"{request.param}://{container}{account}/folder"


@pytest.fixture
def store() -> Store:
    return Store(StorageOptions(retries=2, timeout_s=10))


def test_objects_are_written_read_listed_and_removed(store: Store, root: str) -> None:
    for name in ODD_NAMES:
        uri = join(root, name)
        assert not store.exists(uri)
        store.put(uri, b"old")
        store.put(uri, name.encode())
        store.create(uri, b"second")
        assert store.read(uri) == name.encode()
        assert store.read(uri, max_bytes=2) == name.encode()[:2]
    store.put(join(root, "sub", "x"), b"12345")
    store.put(join(root, "empty"), b"")
    assert store.read_range(join(root, "sub", "x"), 1, 3) == b"234"
    assert store.read_range(join(root, "sub", "x"), 1, 30) == b"2345"
    assert store.read(join(root, "empty")) == store.read(join(root, "empty"), 10) == b""
    entries = list(store.list(root))
    assert [entry.key for entry in entries] == sorted([*ODD_NAMES, "sub/x", "empty"])
    assert [entry.key for entry in store.list(root, prefix="sub/")] == ["sub/x"]
    assert store.names(root) == sorted([*ODD_NAMES, "sub", "empty"])
    for entry in entries:
        assert store.stat(entry.uri).version == entry.version
        store.delete(entry.uri)
        store.delete(entry.uri)
    assert list(store.list(root)) == []


def test_deltalake_and_arrow_reach_the_same_place(store: Store, root: str) -> None:
    table = pa.table({"x": [1, 2, 3]})
    uri, options = join(root, "table"), store.delta_options(root)
    deltalake.write_deltalake(uri, table, storage_options=options)
    assert deltalake.DeltaTable(uri, storage_options=options).to_pyarrow_table().equals(table)
    assert any(entry.key.endswith(".json") for entry in store.list(uri))
    native = arrow_fs.native(uri, options)
    if root.startswith("az://"):
        assert native is not None
        assert native.get_file_info("_delta_log").is_file is False
        assert native.open_input_file("_delta_log/00000000000000000000.json").read()


@pytest.mark.chaos
def test_classes_of_every_script_have_folders_in_a_container(root: str) -> None:
    names = dict(enumerate(["болт 1", "007", "null", "a/b", "*?#", "café", "100%", "=", "stop sign", "hard_hat"], 1))
    mask = rle.encode(np.ones((8, 8), np.bool_))
    images = {f"{i}.jpg": Image((8, 8), [(i, 0.5, mask)]) for i in names}
    for _ in range(2):
        label_sets.write(root, images, classes=names)
    maintenance.maintain(root, StorageOptions(), grace_hours=0, limits=maintenance.CompactionThresholds(files=2))
    rows = segray.scan(root).to_table(columns=["class_name", "class"]).to_pylist()
    assert {row["class_name"]: row["class"] for row in rows} == {name: partition_value(name) for name in names.values()}
    assert segray.scan(root).to_table(filter=ds.field("class") == "болт_1").num_rows == 1
    assert len(rows) == len(names)
    options = Store(StorageOptions()).delta_options(root)
    log = deltalake.DeltaTable(join(root, "instances"), storage_options=options)
    assert log.to_pyarrow_table(columns=["class_name", "class"]).num_rows == len(names)
    report = verify(root, StorageOptions())
    assert (report.violations, report.warnings) == ((), ())


def test_a_missing_bucket_is_told_at_once(store: Store, root: str) -> None:
    start, separator, rest = root.partition("://")
    missing = f"{start}{separator}nothing-here{'@' * ('@' in rest)}{rest.partition('@')[2].partition('/')[0]}"
    begin_s = time.monotonic()
    for call in (lambda uri: list(store.list(uri)), lambda uri: store.put(join(uri, "x"), b"")):
        with pytest.raises(AccessError, match=r"No such bucket[\s\S]*create the bucket or container"):
            call(missing)
    assert time.monotonic() - begin_s < 10


@in_both_ways
@pytest.mark.parametrize(
    "root",
    ["az", pytest.param("abfss", marks=pytest.mark.chaos), pytest.param("gs", marks=pytest.mark.chaos)],
    indirect=True,
)
def test_from_container_to_container_with_the_variables_alone(
    command: Callable[..., CompletedProcess[str]], root: str, tmp_path: Path
) -> None:
    dataset.write(tmp_path / "scenes", 6, seed=3)
    store = Store()
    for path in sorted((tmp_path / "scenes" / "images").iterdir()):
        store.put(join(root, "raw", path.name), path.read_bytes())
    config = write_config(tmp_path / "run.yaml", join(root, "raw"), join(root, "labels"), report=True)
    done = command("label", "--config", config)
    assert done.returncode == 0, done.stderr
    again = here("label", "--config", config)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    images = segray.images(join(root, "labels")).to_table().to_pylist()
    assert len(images) == 6
    assert {row["status"] for row in images} <= {"ok", "empty"}
    assert segray.scan(join(root, "labels")).to_table().num_rows == sum(row["n_instances"] for row in images) > 0


def refused(call: Callable[[], object], says: str) -> None:
    begin_s = time.monotonic()
    with pytest.raises(AccessError, match=says):
        call()
    assert time.monotonic() - begin_s < 10


def test_a_wrong_key_of_azure_is_refused_at_once(azure_env: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"az://{azure_env.container()}/x"
    wrong = "d3Jvbmc="
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azure_env.connection_string(key=wrong))
    store = Store()
    for call in (lambda: store.read(root), lambda: list(store.list(root)), lambda: store.put(root, b"")):
        refused(call, r"refused the request[\s\S]*AZURE_STORAGE_CONNECTION_STRING")
    refused(
        lambda: store.retrying(root, lambda: deltalake.DeltaTable(root, storage_options=store.delta_options(root))),
        r"refused the request[\s\S]*AZURE_STORAGE_CONNECTION_STRING",
    )


@pytest.mark.parametrize("text", ["", "nonsense", "AccountKey=x"])
def test_an_account_that_no_variable_names_is_told_at_once(
    azure_env: Azurite, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    store = Store()
    refused(lambda: store.read("az://c/x"), r"AZURE_STORAGE_CONNECTION_STRING")
    refused(lambda: store.delta_options("az://c/x"), r"AZURE_STORAGE_CONNECTION_STRING")


def test_the_variables_of_an_account_do_as_well(azure_env: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    container = azure_env.container()
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING")
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", f"http://127.0.0.1:{azure_env.port}")
    store = Store()
    store.put(f"az://{container}/x", b"x")
    assert store.read(f"az://{container}/x") == b"x"
    monkeypatch.delenv("AZURE_STORAGE_USE_EMULATOR")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azure_env.client().credential.account_key)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azure_env.endpoint_url)
    assert Store().read(f"az://{container}/x") == b"x"


@pytest.mark.parametrize("kind", ["azurite", "gcs"])
def test_a_server_that_dies_is_the_worlds_fault(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(retry, "sleep", naps.append)
    server: Azurite | Emulator = request.getfixturevalue("azure_env" if kind == "azurite" else "gcs_env")
    root = f"gs://{server.bucket()}" if isinstance(server, Emulator) else f"az://{server.container()}"
    store = Store(StorageOptions(retries=2))
    store.put(f"{root}/x", b"x")
    server.stop()
    try:
        for call in (lambda: store.read(f"{root}/x"), lambda: list(store.list(root))):
            naps.clear()
            with pytest.raises(InfrastructureError, match="cannot be reached"):
                call()
            assert len(naps) == 2
    finally:
        server.start()
    assert store.read(f"{root}/x") == b"x"
