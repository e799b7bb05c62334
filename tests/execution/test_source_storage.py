"""A source in one object store and its label set in another: `source.storage` over `storage`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import swift_server
from swift_server import Swift
from watchers import Notes

import segray
import segray.synthetic.dataset as scenes
from segray import config
from segray.analytics.export.export import export
from segray.analytics.reports.report import report
from segray.errors import AccessError
from segray.execution import estimate, run
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import WorkerSpec, build, prepared_process
from segray.label_set.run_records import latest_run
from segray.storage.options import StorageOptions
from segray.storage.store import Store
from segray.storage.uris import join

MINIMAL = {"source": {"uri": "a"}, "output": {"root": "b"}, "model": {"name": "stickers"}}


def options(storage: dict[str, object], source: dict[str, object] | None) -> tuple[StorageOptions, StorageOptions]:
    """The options of the label set and of the images."""
    loaded = config.validate({**MINIMAL, "storage": storage, "source": {"uri": "a", "storage": source}}, "")
    again = config.validate(loaded.model_dump(mode="json"), "")
    assert again.source_storage_options() == loaded.source_storage_options()
    return loaded.storage_options(), loaded.source_storage_options()


def test_keys_that_the_source_does_not_set_come_from_storage() -> None:
    own = {"endpoint_url": "http://own:9000", "retries": 2}
    assert options(own, None)[1] == StorageOptions("http://own:9000", retries=2)
    public = {"endpoint_url": None, "anonymous": True, "region": "us-west-2"}
    label_set, source = options(own, public)
    assert label_set == StorageOptions("http://own:9000", retries=2)
    assert source == StorageOptions(None, "us-west-2", anonymous=True, retries=2)


def test_the_source_may_be_set_by_overrides() -> None:
    loaded = config.validate(MINIMAL, "", ["source.storage.anonymous=true", "source.storage.endpoint_url=http://h:1"])
    assert loaded.source_storage_options() == StorageOptions("http://h:1", anonymous=True)
    assert loaded.storage_options() == StorageOptions()


@pytest.fixture(scope="module")
def other_swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    with swift_server.in_memory(tmp_path_factory.mktemp("other")) as folder, swift_server.serve(folder) as server:
        yield server


@pytest.mark.integration
def test_images_and_label_set_may_lie_in_two_stores(swift_env: Swift, other_swift: Swift, tmp_path: Path) -> None:
    """The bucket of the images exists in one store alone, and that of the label set in the other."""
    source_store = Store(StorageOptions(endpoint_url=other_swift.endpoint_url))
    source, root = f"s3://{other_swift.bucket()}/photos", f"s3://{swift_env.bucket()}/labels"
    scenes.write(tmp_path / "scenes", 4, seed=1)
    for image in sorted((tmp_path / "scenes" / "images").iterdir()):
        source_store.put(join(source, image.name), image.read_bytes())
    values = {
        "source": {"uri": source, "storage": {"endpoint_url": other_swift.endpoint_url}},
        "output": {"root": root},
        "model": {"name": "stickers"},
        "storage": {"endpoint_url": swift_env.endpoint_url, "retries": 0},
    }
    chosen = config.validate({**values, "plan": {"sample_images": 2, "sample_s": 0}}, "test")
    with ExitStack() as stack:
        stack.enter_context(prepared_process())

        def start(spec: WorkerSpec, _: config.Config) -> InProcess:
            labeller, facts = build(spec, "CPU", 2)
            stack.callback(labeller.close)
            return InProcess(labeller, facts)

        assert estimate.estimate(chosen, Notes()).listed.images == 4
        assert run.label(chosen, Notes(), start).images == {"ok": 4}
    label_set_store = Store(chosen.storage_options())
    latest = latest_run(label_set_store, root)
    assert latest is not None
    assert latest.record(label_set_store)["source_storage"]["endpoint_url"] == other_swift.endpoint_url
    storage = {"endpoint_url": swift_env.endpoint_url, "retries": 0}
    assert "cannot be read" not in report(root, **storage)
    assert report(root, **storage).count("data:image/jpeg") >= 4
    export(root, "yolo", tmp_path / "yolo", copy_images=True, **storage)
    assert len([path for path in (tmp_path / "yolo").rglob("*") if path.suffix in (".jpg", ".png", ".webp")]) == 4
    assert segray.images(root, **storage).count_rows() == 4
    without = chosen.model_copy(update={"source": chosen.source.model_copy(update={"storage": None})})
    with pytest.raises(AccessError, match="No such bucket"):
        run.label(without, Notes(), start)
    assert json.loads(json.dumps(chosen.model_dump(mode="json")))["source"]["storage"] == values["source"]["storage"]
