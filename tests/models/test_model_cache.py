"""Models at an address: fetched once, resumed, checked, read-only, refused when they changed, and used offline."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command
import hub_server
import plain_s3
import pytest
import yaml
import yolo_network
from hub_server import HubServer
from plain_s3 import PlainS3
from web import Web

from segray import config
from segray.bench import runner
from segray.cli import main, models
from segray.config import ModelSettings
from segray.conversion.pull import Callbacks
from segray.errors import AccessError, ConfigError, InfrastructureError, ModelError, SourceError
from segray.execution import run
from segray.execution.estimate import estimate
from segray.execution.progress import ProgressListener
from segray.models import model_cache, remote_folder, resolve
from segray.models.model_cache import Copy
from segray.storage import download, hub
from segray.storage.options import StorageOptions
from segray.storage.store import Store

OPTIONS = StorageOptions(timeout_s=5)
CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _fast(hub_site: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_PAUSE_S", 0.001)
    monkeypatch.setattr(download, "sleep", lambda _: None)


@pytest.fixture
def server(hub_site: HubServer) -> HubServer:
    return hub_site


def settings(path: str, **model: Any) -> ModelSettings:
    return configured(path, **model).model


def configured(path: str, *, source: str = "photos", root: str = "labels", **model: Any) -> config.Config:
    values = {"source": {"uri": source}, "output": {"root": root}, "model": {"path": path, **model}}
    return config.validate(values, "test")


def label_nothing(configuration: config.Config) -> None:
    run.label(configuration, ProgressListener(), lambda *_: pytest.fail("no workers are needed"))


def fetched(path: str, notes: list[str] | None = None, **model: Any) -> Copy:
    return model_cache.fetched(settings(path, **model), OPTIONS, (notes if notes is not None else []).append)


def files_of(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{file.name}": file.read_bytes() for file in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# ---- the hub --------------------------------------------------------------------------------------


def test_a_folder_of_the_hub_is_the_same_model_as_its_files_here(server: HubServer, tmp_path: Path) -> None:
    export = yolo_network.write(tmp_path / "best_openvino_model")
    repository = server.repository("org/birds")
    commit = repository.push({**files_of(export, "export/"), "export/README.md": b"x", "weights.bin": CONTENT})
    uri = "hf://org/birds/export"
    model = model_cache.resolved(settings(uri), OPTIONS, lambda _: None)
    here = resolve.configured(settings(str(export)))
    assert model.fingerprint == here.fingerprint
    assert names(model.path.parent) == ["best.bin", "best.xml", "metadata.yaml"]
    assert model.origin is not None
    assert (model.origin["uri"], model.origin["revision"]) == (uri, commit)
    assert model.origin["sha256"]["best.bin"] == resolve.sha256(export / "best.bin")
    asked = len(server.downloads())
    assert model_cache.resolved(settings(uri), OPTIONS, lambda _: None).path == model.path
    assert len(server.downloads()) == asked


def test_an_xml_comes_with_its_weights_and_what_lies_beside(server: HubServer, tmp_path: Path) -> None:
    export = yolo_network.write(tmp_path / "m")
    server.repository("org/birds").push({**files_of(export), "segray.json": b"{}"})
    copy = fetched("hf://org/birds/best.xml")
    assert copy.path == copy.folder / "best.xml"
    assert names(copy.folder) == ["best.bin", "best.xml", "metadata.yaml", "segray.json"]


def test_a_copy_is_read_only(server: HubServer) -> None:
    server.repository("org/m").push({"a.onnx": CONTENT})
    copy = fetched("hf://org/m/a.onnx")
    assert stat.S_IMODE(copy.path.stat().st_mode) == 0o444
    assert stat.S_IMODE(copy.folder.stat().st_mode) == 0o555


def test_an_onnx_brings_its_weights_and_the_configuration_of_the_root(server: HubServer) -> None:
    server.repository("org/m").push({"onnx/a.onnx": CONTENT, "onnx/a.onnx_data": b"w", "config.json": b"{}"})
    assert names(fetched("hf://org/m/onnx/a.onnx").folder) == ["a.onnx", "a.onnx_data", "config.json"]


def test_a_cut_connection_is_resumed(server: HubServer) -> None:
    server.repository("org/m").push({"a.onnx": CONTENT})
    server.cuts += [40_000, 30_000]
    copy = fetched("hf://org/m/a.onnx")
    assert copy.path.read_bytes() == CONTENT
    assert [part for path, part in server.downloads() if "/cdn/" in path] == [None, "bytes=40000-", "bytes=70000-"]


def test_a_later_command_resumes_what_an_earlier_one_left(server: HubServer) -> None:
    server.repository("org/m").push({"a.onnx": CONTENT})
    server.cuts += [50_000, *[0] * 6]
    with pytest.raises(InfrastructureError, match="50000 bytes are kept"):
        fetched("hf://org/m/a.onnx")
    server.cuts.clear()
    assert fetched("hf://org/m/a.onnx").path.read_bytes() == CONTENT
    assert server.downloads()[-1][1] == "bytes=50000-"


@pytest.mark.parametrize("name", ["a.onnx", "segray.json"])
def test_bytes_other_than_the_hubs_are_not_kept(server: HubServer, name: str) -> None:
    server.repository("org/m").push({"a.onnx": CONTENT})
    if name == "segray.json":
        fetched("hf://org/m/a.onnx")
        server.repositories["org/m"].push({name: b'{"licence": "MIT"}'})
    server.corrupt = True
    with pytest.raises((ModelError, InfrastructureError), match="another file than"):
        fetched("hf://org/m/a.onnx", on_change="take")
    assert not list(model_cache.cache().glob(f"*/*/{name}"))


def test_a_changed_model_is_refused_until_the_user_decides(server: HubServer) -> None:
    repository, uri = server.repository("org/m"), "hf://org/m/a.onnx"
    commit = repository.push({"a.onnx": CONTENT})
    first = fetched(uri)
    repository.push({"README.md": b"other files may change"})
    assert fetched(uri) == first
    repository.push({"a.onnx": b"new"})
    with pytest.raises(ModelError, match="has changed since it was fetched") as error:
        fetched(uri)
    assert error.value.exit_code == 2
    assert f"sha256 {SHA256} -> sha256 {hashlib.sha256(b'new').hexdigest()}" in error.value.found
    assert "`model.on_change` to take" in error.value.hint
    pinned = f"hf://org/m@{commit}/a.onnx"
    assert pinned in error.value.hint
    assert fetched(uri, on_change="keep") == first
    assert fetched(pinned).path.read_bytes() == CONTENT
    assert fetched(uri, on_change="take").path.read_bytes() == b"new"
    assert fetched(uri).path.read_bytes() == b"new"
    assert first.path.read_bytes() == CONTENT  # A run may still read it.


def test_a_file_that_appears_beside_the_model_is_a_change(server: HubServer) -> None:
    repository = server.repository("org/m")
    repository.push({"a.onnx": CONTENT})
    fetched("hf://org/m/a.onnx")
    repository.push({"metadata.yaml": b"task: segment"})
    with pytest.raises(ModelError, match=r"metadata\.yaml: absent -> git "):
        fetched("hf://org/m/a.onnx")


def test_a_commit_is_asked_for_once(server: HubServer) -> None:
    commit = server.repository("org/m").push({"a.onnx": CONTENT})
    fetched(f"hf://org/m@{commit}/a.onnx")
    server.asked.clear()
    fetched(f"hf://org/m@{commit}/a.onnx")
    assert server.asked == []


def test_offline_the_copy_is_used_and_named(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repository("org/m").push({"a.onnx": CONTENT})
    first, notes = fetched("hf://org/m/a.onnx"), list[str]()
    server.statuses += [503] * 4
    assert fetched("hf://org/m/a.onnx", notes) == first
    assert "cannot be reached, using the copy of" in notes[0]
    assert str(first.folder) in notes[0]
    server.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetched("hf://org/m/a.onnx", notes) == first
    assert "HF_HUB_OFFLINE is set" in notes[1]
    with pytest.raises(ConfigError, match="no copy of the model"):
        fetched("hf://org/m/b.onnx")
    assert server.asked == []


def test_offline_without_a_copy_is_an_error_of_the_network(server: HubServer) -> None:
    server.statuses += [503] * 4
    with pytest.raises(InfrastructureError, match="The hub cannot be reached") as error:
        fetched("hf://org/m/a.onnx")
    assert error.value.exit_code == 3


def test_a_damaged_copy_is_fetched_again(server: HubServer) -> None:
    server.repository("org/m").push({"a.onnx": CONTENT})
    copy, notes = fetched("hf://org/m/a.onnx"), list[str]()
    copy.path.chmod(0o644)
    copy.path.write_bytes(CONTENT[:-1] + b"!")
    assert fetched("hf://org/m/a.onnx", notes).path.read_bytes() == CONTENT
    assert "is damaged" in notes[0]


@pytest.mark.parametrize(
    ("gate", "token", "what", "hint"),
    [
        ("gated", None, "is gated", r"Accept the licence on http.*/org/m, then set HF_TOKEN"),
        ("gated", "hf_wrong", "is gated", r"Accept the licence on http.*/org/m with the account of HF_TOKEN"),
        ("private", None, "does not exist, or is private", "set HF_TOKEN"),
        ("private", "hf_wrong", "does not exist, or is private", "that HF_TOKEN is valid"),
    ],
)
def test_a_closed_repository_says_what_to_do(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, gate: str, token: str | None, what: str, hint: str
) -> None:
    server.repository("org/m", gate).push({"a.onnx": CONTENT})
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessError, match=what) as error:
        fetched("hf://org/m/a.onnx")
    assert error.value.exit_code == 2
    error.match(hint)
    assert "hf_wrong" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    assert fetched("hf://org/m/a.onnx").path.read_bytes() == CONTENT


def test_the_token_of_the_users_login_is_taken(server: HubServer, tmp_path: Path) -> None:
    server.repository("org/m", "private").push({"a.onnx": CONTENT})
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text(f"{hub_server.TOKEN}\n")
    assert fetched("hf://org/m/a.onnx").path.read_bytes() == CONTENT
    assert not any(token for _, path, _, token in server.asked if path.startswith("/cdn/"))


@pytest.mark.parametrize(
    ("uri", "error", "what"),
    [
        ("hf://org/none/a.onnx", AccessError, "does not exist, or is private"),
        ("hf://org/m@none/a.onnx", AccessError, "has no such revision"),
        ("hf://org/m/none.onnx", ModelError, "does not exist at its address"),
        ("hf://org/m/none", ModelError, "does not exist at its address"),
        ("hf://org/m/lonely.xml", ModelError, r"no lonely\.bin"),
        ("hf://org/m/docs", ModelError, r"has no model: no \.xml and no \.onnx"),
        ("hf://org/m", ConfigError, r"several models[\s\S]*a\.onnx, lonely\.xml[\s\S]*hf://org/m/a\.onnx"),
        ("hf://org/m/best.pt", ModelError, r"suffix '\.pt'"),
        ("hf://org/m/saved_model.pb", ConfigError, "A SavedModel is a folder"),
        ("hf://org", ConfigError, "names no repository"),
    ],
)
def test_a_wrong_address_is_told_before_anything_is_fetched(
    server: HubServer, uri: str, error: type[Exception], what: str
) -> None:
    server.repository("org/m").push({"a.onnx": CONTENT, "lonely.xml": b"<net/>", "docs/README.md": b"x"})
    with pytest.raises(error, match=what):
        fetched(uri)
    assert not list(model_cache.cache().glob("*/*/*"))


def test_a_renamed_repository_is_found_with_the_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repository("org/new", "private").push({"a.onnx": CONTENT, "segray.json": b"{}"})
    server.renamed["org/old"] = "org/new"
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    assert names(fetched("hf://org/old").folder) == ["a.onnx", "segray.json"]


def test_a_redirect_that_names_the_hubs_own_host_is_followed(server: HubServer) -> None:
    server.repository("org/new").push({"a.onnx": CONTENT, "segray.json": b"{}"})
    server.renamed["org/old"], server.is_absolute = "org/new", True
    copy = fetched("hf://org/old")
    assert copy.versions["a.onnx"] == f"sha256 {SHA256}"
    assert copy.revision is not None


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        ("revision", []), ("revision", {}), ("revision", {"sha": "main"}),
        ("tree", {"error": "no"}), ("tree", ["a"]), ("tree", [{"type": "file"}]), ("tree", None),
    ],
)  # fmt: skip
def test_a_reply_of_another_protocol_is_an_error_of_the_network(server: HubServer, kind: str, reply: Any) -> None:
    server.repository("org/m").push({"a.onnx": CONTENT})
    server.replies[kind] = reply
    with pytest.raises(InfrastructureError, match="not the one of its protocol"):
        fetched("hf://org/m")


def test_a_file_name_that_leads_out_of_the_folder_is_refused(server: HubServer) -> None:
    server.repository("org/m").push({"saved_model.pb": b"g", "v/../../../evil": b"e"})
    with pytest.raises(ModelError, match="leads out of its folder"):
        fetched("hf://org/m")
    assert not list(model_cache.cache().rglob("evil"))


def test_a_long_listing_has_pages(server: HubServer) -> None:
    server.repository("org/m").push({f"{i:02}.txt": b"x" for i in range(25)} | {"z.onnx": CONTENT})
    server.page_entries = 10
    assert fetched("hf://org/m").path.name == "z.onnx"


def test_a_saved_model_comes_with_its_folders(server: HubServer) -> None:
    server.repository("org/m").push({"tf/saved_model.pb": b"g", "tf/variables/variables.index": b"i"})
    copy = fetched("hf://org/m/tf/")
    assert copy.path == copy.folder
    assert (copy.folder / "variables" / "variables.index").read_bytes() == b"i"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://org/m", ("models", "org/m", "main", "")),
        ("hf://org/m/a/b.onnx", ("models", "org/m", "main", "a/b.onnx")),
        ("hf://org/m@v1.0/a.onnx", ("models", "org/m", "v1.0", "a.onnx")),
        ("hf://org/m@refs/pr/3/a.onnx", ("models", "org/m", "refs/pr/3", "a.onnx")),
        ("hf://org/m@refs%2Fpr%2F3", ("models", "org/m", "refs/pr/3", "")),
        ("hf://datasets/org/m/a.onnx", ("datasets", "org/m", "main", "a.onnx")),
        ("https://huggingface.co/org/m/blob/v2/a.onnx", ("models", "org/m", "v2", "a.onnx")),
        ("https://huggingface.co/org/m/resolve/main/a.onnx?download=true", ("models", "org/m", "main", "a.onnx")),
    ],
)
def test_addresses_of_the_hub(uri: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    place = hub.parse(uri)
    assert place is not None
    assert (place.kind, place.repository, place.revision, place.path) == expected
    assert hub.parse(str(place)) == place
    assert hub.parse("https://example.org/a.onnx") is None


@pytest.mark.chaos
def test_a_killed_command_is_resumed(server: HubServer) -> None:
    server.repository("org/m").push({"a.onnx": CONTENT})
    server.cuts += [60_000, 0, 0, 0, 0]  # Half a second and more passes before each further attempt.
    process = command.start("models", "inspect", "hf://org/m/a.onnx")
    deadline = time.monotonic() + 60
    parts: list[Path] = []
    while not any(part.stat().st_size == 60_000 for part in parts):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        parts = list(model_cache.cache().glob("*/incoming-*/a.onnx.part"))
    process.kill()
    process.wait()
    server.cuts.clear()
    assert fetched("hf://org/m/a.onnx").path.read_bytes() == CONTENT
    assert server.downloads()[-1][1] == "bytes=60000-"


# ---- links ----------------------------------------------------------------------------------------


def test_a_link_brings_the_weights_and_the_card_beside(web: Web) -> None:
    for name in ("best.xml", "best.bin", "segray.json"):
        web.put(f"/m/{name}", name.encode())
    copy = fetched(f"{web.root}/m/best.xml")
    assert files_of(copy.folder) == {name: name.encode() for name in ("best.bin", "best.xml", "segray.json")}
    assert copy.revision is None


def test_a_changed_link_is_refused(web: Web) -> None:
    url = web.put("/a.onnx", CONTENT)
    fetched(url)
    web.put("/a.onnx", CONTENT, tag='"two"')
    with pytest.raises(ModelError, match=r"a\.onnx: tag one -> tag two"):
        fetched(url)


def test_a_link_that_changes_while_it_is_fetched_is_no_copy(web: Web) -> None:
    url = web.put("/a.onnx", CONTENT, later=(CONTENT[::-1], '"two"'))
    with pytest.raises(InfrastructureError, match="changed while the model was fetched"):
        fetched(url)
    copy = fetched(url)
    assert copy.path.read_bytes() == CONTENT[::-1]
    assert fetched(url) == copy


def test_another_host_gets_no_headers_of_the_link(web: Web) -> None:
    other = web.put("/elsewhere.onnx", CONTENT).replace("127.0.0.1", "localhost")
    url = web.put("/a.onnx", b"", moved=other)
    options = StorageOptions(timeout_s=5, http_headers={"Authorization": "Bearer geheim"})
    folder, name = remote_folder.open_folder(url, options)
    assert folder.stat(str(name)).size_bytes == len(CONTENT)
    assert "Authorization" not in web.headers


def test_a_signed_link_is_one_file_and_stays_secret(web: Web) -> None:
    url = web.put("/a.onnx?signature=geheim", CONTENT)
    notes = list[str]()
    copy = fetched(url, notes)
    assert names(copy.folder) == ["a.onnx"]
    assert "geheim" not in "".join(notes) + json.dumps(copy.origin())
    assert not [file for file in model_cache.cache().rglob("*") if file.is_file() and b"geheim" in file.read_bytes()]


@pytest.mark.parametrize(
    ("path", "habits", "what"),
    [
        ("/none.onnx", None, "HTTP 404"),
        ("/page.onnx", {"content_type": "text/html"}, "a web page"),
        ("/shut.onnx", {"statuses": [403]}, "link is refused"),
        ("/busy.onnx", {"statuses": [503]}, "host fails"),
        ("/folder/", None, "cannot be listed"),
    ],
)
def test_a_link_without_a_model_is_told(web: Web, path: str, habits: dict[str, Any] | None, what: str) -> None:
    if habits is not None:
        web.put(path, CONTENT, **habits)
    with pytest.raises((ModelError, AccessError, ConfigError, InfrastructureError), match=what):
        fetched(f"{web.root}{path}")


# ---- stores ---------------------------------------------------------------------------------------


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlainS3]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with plain_s3.serve() as store:
        yield store


def from_s3(store: PlainS3, uri: str, **model: Any) -> Copy:
    return model_cache.fetched(settings(uri, **model), StorageOptions(endpoint_url=store.endpoint_url), lambda _: None)


def test_a_folder_of_a_bucket_is_the_same_model_as_its_files_here(bucket: PlainS3, tmp_path: Path) -> None:
    export = yolo_network.write(tmp_path / "m")
    bucket.objects.update(files_of(export, "b/best_openvino_model/"))
    options = StorageOptions(endpoint_url=bucket.endpoint_url)
    for uri in ("s3://b/best_openvino_model/", "s3://b/best_openvino_model/best.xml"):
        model = model_cache.resolved(settings(uri), options, lambda _: None)
        assert model.fingerprint == resolve.configured(settings(str(export))).fingerprint
    bucket.objects["b/best_openvino_model/best.bin"] = b"new"
    with pytest.raises(ModelError, match=r"best\.bin: tag \w+ -> tag \w+"):
        from_s3(bucket, "s3://b/best_openvino_model/")


def test_an_object_is_resumed_unless_it_changed(bucket: PlainS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_OBJECT_BYTES", 40_000)
    read_range, broken = Store.read_range, [True]

    def read_until_broken(store: Store, uri: str, start: int, size: int) -> bytes:
        if broken[0] and start:
            raise InfrastructureError("broken")
        starts.append(start)
        return read_range(store, uri, start, size)

    monkeypatch.setattr(Store, "read_range", read_until_broken)
    for content, expected in ((CONTENT, [0, 40_000, 80_000]), (CONTENT[::-1], [0, 0, 40_000, 80_000])):
        starts: list[int] = []
        bucket.objects["b/a.onnx"], broken[0] = CONTENT, True
        with pytest.raises(InfrastructureError, match="broken"):
            from_s3(bucket, "s3://b/a.onnx", on_change="take")
        bucket.objects["b/a.onnx"], broken[0] = content, False
        assert from_s3(bucket, "s3://b/a.onnx", on_change="take").path.read_bytes() == content
        assert starts == expected
        model_cache._remove(model_cache.cache())


@pytest.mark.parametrize(("uri", "what"), [("s3://b/none/", "has no model"), ("s3://b/none.onnx", "does not exist")])
def test_a_bucket_without_the_model_is_told(bucket: PlainS3, uri: str, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        from_s3(bucket, uri)


# ---- checksums ------------------------------------------------------------------------------------


def test_a_configured_checksum_must_hold(web: Web, server: HubServer) -> None:
    server.repository("org/m").push({"a.onnx": CONTENT})
    uris = [web.put("/a.onnx", CONTENT), "hf://org/m/a.onnx"]
    for uri in uris:
        with pytest.raises(ModelError, match=rf"`model\.sha256`[\s\S]*a\.onnx: {SHA256}, expected {'0' * 64}"):
            fetched(uri, sha256="0" * 64)
    assert not list(model_cache.cache().glob("*/*/a.onnx"))
    for uri in uris:
        assert fetched(uri, sha256=SHA256.upper()).path.read_bytes() == CONTENT


def test_a_new_checksum_takes_the_new_file(server: HubServer) -> None:
    repository = server.repository("org/m")
    repository.push({"a.onnx": CONTENT})
    fetched("hf://org/m/a.onnx", sha256=SHA256)
    repository.push({"a.onnx": b"new"})
    assert fetched("hf://org/m/a.onnx", sha256=hashlib.sha256(b"new").hexdigest()).path.read_bytes() == b"new"


def test_a_checksum_holds_for_files_of_this_machine_too(tmp_path: Path) -> None:
    export = yolo_network.write(tmp_path / "m")
    right = {name: resolve.sha256(export / name) for name in ("best.bin", "metadata.yaml")}
    model_cache.resolved(settings(str(export), sha256=right), OPTIONS, lambda _: None)
    with pytest.raises(ModelError, match=r"best\.bin: \w+, expected f{64}"):
        model_cache.resolved(settings(str(export), sha256=right | {"best.bin": "f" * 64}), OPTIONS, lambda _: None)
    with pytest.raises(ModelError, match=r"other\.bin: no such file"):
        model_cache.resolved(settings(str(export), sha256={"other.bin": "f" * 64}), OPTIONS, lambda _: None)


@pytest.mark.parametrize("path", ["hf:/org/m/a.onnx", "s3:/bucket/a.onnx", "https:///a.onnx"])
def test_a_mistyped_address_is_told(path: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.path"):
        settings(path)


# ---- commands -------------------------------------------------------------------------------------


def test_the_origin_is_recorded_and_changes_no_identity(server: HubServer, tmp_path: Path) -> None:
    export = yolo_network.write(tmp_path / "m")
    commit = server.repository("org/m").push(files_of(export))
    there, here = (
        run.identity_of(configuration, model_cache.resolved(configuration.model, OPTIONS, lambda _: None))
        for configuration in (configured("hf://org/m", on_change="take"), configured(str(export)))
    )
    assert there.fingerprint == here.fingerprint
    assert "origin" not in here.model
    assert there.as_json()["model"]["origin"] == {
        "uri": "hf://org/m", "revision": commit,
        "sha256": {name: resolve.sha256(export / name) for name in ("best.xml", "best.bin", "metadata.yaml")},
    }  # fmt: skip
    pinned = {"best.bin": resolve.sha256(export / "best.bin")}
    assert run.identity_of(configured(str(export), sha256=pinned), resolve.configured(settings(str(export)))) == here


def test_inspect_prints_the_address_for_the_configuration(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = server.repository("org/m").push(files_of(yolo_network.write(tmp_path / "m")))
    assert main.run(["models", "inspect", "hf://org/m"]) == 0
    shown = capsys.readouterr().out
    assert f"from hf://org/m at {commit}" in shown
    assert yaml.safe_load(shown[shown.index("model:") :]) == {"model": {"path": "hf://org/m"}}
    assert main.run(["models", "inspect", "hf://org/m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["origin"]["revision"] == commit


def test_quantize_compare_and_bench_take_an_address(server: HubServer, tmp_path: Path) -> None:
    server.repository("org/m").push(files_of(yolo_network.write(tmp_path / "m")))
    callbacks = Callbacks(lambda _: None, lambda done, total: None)
    source, _ = models._source_model("hf://org/m", None, None, None, "photos", OPTIONS, callbacks)
    assert (source.name, source.path.name) == ("yolo_seg", "best.xml")
    options = runner.BenchOptions(
        None, (64, 96), 1, "auto", "hf://org/m", None, "auto", 20, 1, "a", (), None
    )  # fmt: skip
    workload = runner.prepare(options, tmp_path / "bench", lambda _: None)
    model, adapter, _, _ = workload.resolve_model()
    assert (adapter.name, model.path) == ("yolo_seg", source.path)


def test_label_and_plan_fetch_before_they_look_at_the_source(server: HubServer, tmp_path: Path) -> None:
    server.repository("org/m").push(files_of(yolo_network.write(tmp_path / "m")))
    configuration = configured("hf://org/m", source=str(tmp_path / "none"), root=str(tmp_path / "labels"))
    for order in (lambda: estimate(configuration, ProgressListener()), lambda: label_nothing(configuration)):
        with pytest.raises(SourceError):
            order()
        (copy,) = model_cache.cache().glob("*/*/best.xml")
        model_cache._remove(model_cache.cache())
        assert not copy.exists()


# ---- the cache ------------------------------------------------------------------------------------


def test_copies_are_kept_a_week_after_they_were_replaced(server: HubServer) -> None:
    repository, uri = server.repository("org/m"), "hf://org/m/a.onnx"
    copies = []
    for content in (b"one", b"two", b"three"):
        repository.push({"a.onnx": content})
        copies.append(fetched(uri, on_change="take"))
        if content == b"one":
            os.utime(copies[0].folder, (0, 0))
    assert [copy.folder.exists() for copy in copies] == [False, True, True]


def test_a_cache_that_cannot_be_written_names_the_variable(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(InfrastructureError, match="SEGRAY_CACHE"):
        fetched("hf://org/m/a.onnx")


def test_paths_of_this_machine_are_no_addresses() -> None:
    for path in (None, "models/a.xml", "/models/a.xml", "file:///models/a.xml"):
        assert not remote_folder.is_remote(path)
