"""moto as a second S3 server: objects, a label set, conditional writes, and keys and objects that are refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import moto_server
import pytest
import yolo_network
from command import here, write_config
from moto_server import ANY_KEY, ANY_SECRET, Moto
from test_labeller import labeller

import segray
from segray.errors import AccessError
from segray.instances import ImageRef
from segray.label_set.conditional_put import has_conditional_put
from segray.storage.store import StorageOptions, Store
from segray.synthetic import dataset
from segray.tasks import Task

pytestmark = pytest.mark.integration
IMAGES = 6


@pytest.fixture(scope="module")
def moto() -> Iterator[Moto]:
    pytest.importorskip("moto.server", reason="moto is a package of the extra dev")
    with moto_server.serve() as server:
        yield server


@pytest.fixture
def bucket(moto: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with images below raw/; the environment has a key."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ANY_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ANY_SECRET)
    name, client = moto.bucket(), moto.client()
    dataset.write(tmp_path / "scenes", IMAGES, seed=8)
    for number, path in enumerate(sorted((tmp_path / "scenes" / "images").iterdir())):
        client.put_object(Bucket=name, Key=f"raw/{number}.jpg", Body=path.read_bytes())
    return f"s3://{name}"


def test_a_model_lies_on_moto(moto: Moto, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "cache"))
    export, client = yolo_network.write(tmp_path / "m"), moto.client()
    for file in export.iterdir():
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=f"models/m/{file.name}", Body=file.read_bytes())
    arguments = ("models", "inspect", f"{bucket}/models/m/", "--endpoint-url", moto.endpoint_url, "--json")
    done = here(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["description"]["family"] == "yolo_seg"
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key="models/m/best.bin", Body=b"other")
    changed = here(*arguments)
    assert changed.returncode == 2
    assert "best.bin: tag" in changed.stderr


def test_a_label_set_lies_on_moto(moto: Moto, bucket: str, tmp_path: Path) -> None:
    storage = {"endpoint_url": moto.endpoint_url}
    store = Store(StorageOptions(endpoint_url=moto.endpoint_url))
    assert has_conditional_put(store, f"{bucket}/labels")
    assert [entry.key for entry in store.list(f"{bucket}/raw")] == [f"{number}.jpg" for number in range(IMAGES)]
    config = write_config(tmp_path / "run.yaml", f"{bucket}/raw", f"{bucket}/labels", storage=storage)
    done = here("label", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "conditional PUT" not in done.stderr
    images = segray.images(f"{bucket}/labels", **storage).to_table().to_pylist()
    assert len(images) == IMAGES
    instances = segray.scan(f"{bucket}/labels", **storage).count_rows()
    assert instances == sum(row["n_instances"] for row in images) > 0


@pytest.mark.parametrize(("denied", "error"), [("2.jpg", "AccessDenied"), ("*", "")])
def test_an_object_that_a_policy_denies_gets_a_row_and_a_bucket_that_refuses_all_gets_none(
    moto: Moto, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str, error: str
) -> None:
    key, secret = moto.user([f"{bucket}/raw/{denied}"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    worker = labeller(tmp_path / "staged", store=Store(StorageOptions(endpoint_url=moto.endpoint_url)))
    refs = [ImageRef(f"{number}.jpg", f"{bucket}/raw/{number}.jpg") for number in range(IMAGES)]
    with moto.check_access():
        report = worker.label(Task(0, 0, IMAGES), refs)
    worker.close()
    withheld = [image.index for image in report.withheld]
    assert withheld == ([2] if error else list(range(IMAGES)))
    assert {(image.refused, image.row_error) for image in report.withheld} == {(True, error)}
    assert sum(part.images for part in report.staged) == IMAGES - len(withheld)


@pytest.mark.parametrize(("wrong", "says"), [("key", "correct AWS_ACCESS_KEY_ID"), ("secret", "AWS_SECRET_ACCESS_KEY")])
def test_a_wrong_key_and_a_wrong_secret_are_refused_at_once(
    moto: Moto, bucket: str, monkeypatch: pytest.MonkeyPatch, wrong: str, says: str
) -> None:
    key, secret = moto.user()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong" if wrong == "key" else key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" if wrong == "secret" else secret)
    store, begin_s = Store(StorageOptions(endpoint_url=moto.endpoint_url)), time.monotonic()
    with moto.check_access(), pytest.raises(AccessError, match=rf"refused the request[\s\S]*{says}"):
        store.read(f"{bucket}/raw/2.jpg")
    assert time.monotonic() - begin_s < 10
