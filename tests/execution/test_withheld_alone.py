"""Images that storage withholds alone are failed rows of the same run. A store that refuses everything makes none."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import fault_proxy
import pytest
import trouble_server
from command import in_both_ways, write_config
from command import segray as command
from fault_proxy import FaultPlan, Reply
from swift_server import Swift
from trouble_server import TroubleServer

import segray
from segray.synthetic import dataset

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("photos")
    dataset.write(folder, 12, seed=5)
    return [path.read_bytes() for path in sorted((folder / "images").iterdir())]


@pytest.fixture
def web() -> Iterator[TroubleServer]:
    with trouble_server.serve() as server:
        yield server


def rows(root: object, **options: str) -> dict[str, dict[str, object]]:
    return {row["image_key"]: row for row in segray.images(str(root), **options).to_table().to_pylist()}


def manifest(path: Path, uris: list[str]) -> Path:
    path.write_text("".join(f"{uri}\n" for uri in uris))
    return path


@pytest.mark.usefixtures("shared_ray")
@in_both_ways
def test_a_silent_link_among_others_is_a_failed_row_within_40_s(
    command: Callable[..., CompletedProcess[str]], tmp_path: Path, web: TroubleServer, photos: list[bytes]
) -> None:
    links = [web.put(f"{number}.jpg", data) for number, data in enumerate(photos)]
    source = manifest(tmp_path / "links.txt", [*links[:6], f"{web.root}/silent/x.jpg", *links[6:]])
    config = write_config(tmp_path / "run.yaml", source, tmp_path / "labels", storage={"timeout_s": 2}, unit_images=4)
    begin_s = time.monotonic()
    done = command("label", "--config", config)
    assert time.monotonic() - begin_s < 60
    found = rows(tmp_path / "labels")
    failed = [row for row in found.values() if row["status"] == "failed"]
    assert len(found) == 13, done.stderr
    assert [(row["stage"], row["error"]) for row in failed] == [("read", "Unreachable")]
    assert "silent" in str(failed[0]["uri"])


@pytest.mark.thorough
@pytest.mark.usefixtures("shared_ray")
@in_both_ways
def test_a_refused_object_is_a_failed_row_and_a_bucket_that_refuses_all_is_none(
    command: Callable[..., CompletedProcess[str]], tmp_path: Path, swift_env: Swift, photos: list[bytes]
) -> None:
    bucket, client = swift_env.bucket(), swift_env.client()
    for number, data in enumerate(photos):
        client.put_object(Bucket=bucket, Key=f"raw/{number:02d}.jpg", Body=data)
    source = manifest(tmp_path / "keys.txt", [f"s3://{bucket}/raw/{number:02d}.jpg" for number in range(len(photos))])
    with fault_proxy.serve(swift_env.endpoint_url) as proxy:
        storage = {"endpoint_url": proxy.endpoint_url}
        proxy.change(FaultPlan(Reply(403, "AccessDenied"), "raw/"))
        config = write_config(tmp_path / "all.yaml", source, tmp_path / "none", storage=storage, unit_images=4)
        begin_s = time.monotonic()
        refused = command("label", "--config", config)
        assert time.monotonic() - begin_s < 60
        assert refused.returncode == 2, refused.stderr
        assert "Storage refuses access" in refused.stderr
        assert "Traceback" not in refused.stderr

        proxy.change(FaultPlan(Reply(403, "AccessDenied"), r"raw/05\.jpg"))
        config = write_config(tmp_path / "one.yaml", source, tmp_path / "labels", storage=storage, unit_images=4)
        done = command("label", "--config", config, "--json")
        found = rows(tmp_path / "labels")
        assert len(found) == len(photos), done.stderr
        (failed,) = [row for row in found.values() if row["status"] == "failed"]
        assert str(failed["image_key"]).endswith("raw/05.jpg")
        assert (failed["stage"], failed["error"]) == ("read", "AccessDenied")

        # The refused bucket gives all rows as soon as it answers.
        proxy.change()
        config = write_config(tmp_path / "all.yaml", source, tmp_path / "none", storage=storage, unit_images=4)
        assert command("label", "--config", config).returncode == 0
        assert {row["status"] for row in rows(tmp_path / "none").values()} <= {"ok", "empty"}


@pytest.mark.chaos
def test_a_list_of_200_links_with_44_bad_ones_ends_within_3_minutes(
    tmp_path: Path, web: TroubleServer, photos: list[bytes]
) -> None:
    good = [web.put(f"{number:03d}.jpg", photos[number % len(photos)]) for number in range(156)]
    troubles = ["silent", "stops", "slow", "cut", "reset", "loop", "garbage", "status/503"]
    dead = [f"{web.root}/{trouble}/{number}.jpg" for trouble in troubles for number in range(2)]
    gone = [f"{web.root}/ok/gone-{number}.jpg" for number in range(14)]
    pages = [f"{web.root}/html/{number}.jpg" for number in range(14)]
    links = [link for group in zip(*[iter(good)] * 3, strict=True) for link in group]
    for position, link in enumerate([*dead, *gone, *pages]):
        links.insert(position * 4, link)
    source = manifest(tmp_path / "links.txt", links)
    config = write_config(tmp_path / "run.yaml", source, tmp_path / "labels", max_failed_fraction=0.5)
    begin_s = time.monotonic()
    done = command("label", "--config", config, timeout_s=400)
    assert time.monotonic() - begin_s < 180, done.stderr
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "labels")
    assert len(found) == 200
    errors = Counter((row["stage"], row["error"]) for row in found.values() if row["status"] == "failed")
    assert errors == {("read", "Unreachable"): 16, ("read", "NotFound"): 14, ("decode", "ImageError"): 14}
    again = command("label", "--config", config, "--json")
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["of_runs"], summary["failed_before"]) == ({}, {"read": 30, "decode": 14})
