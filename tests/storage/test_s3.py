"""From bucket to bucket on a real S3 server, read back by the engines that analysts use."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import fault_proxy
import polars as pl
import pyarrow.dataset as ds
import pytest
from command import here, in_both_ways, write_config
from command import segray as command
from swift_server import Swift

import segray
from segray.label_set.class_names import partition_value
from segray.models.coco_labels import COCO_NAMES
from segray.storage.store import StorageOptions, Store
from segray.synthetic import dataset

Command = Callable[..., CompletedProcess[str]]

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("shared_ray")]


@pytest.fixture(scope="module")
def labelled(
    ray_address: str, swift: Swift, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, dict[str, str]]:
    """A bucket of scenes and a bucket of their labels: source, root, environment."""
    folder = tmp_path_factory.mktemp("s3")
    env = {"AWS_ACCESS_KEY_ID": swift.key, "AWS_SECRET_ACCESS_KEY": swift.secret, "AWS_REGION": "us-east-1"}
    env["RAY_ADDRESS"] = ray_address
    dataset.write(folder / "scenes", 8, seed=6)
    source, root = f"s3://{swift.bucket()}/raw/", f"s3://{swift.bucket()}/labels"
    client = swift.client()
    for path in sorted((folder / "scenes" / "images").iterdir()):
        client.put_object(Bucket=source.split("/")[2], Key=f"raw/{path.name}", Body=path.read_bytes())
    config = write_config(
        folder / "run.yaml", source, root, unit_images=4, storage={"endpoint_url": swift.endpoint_url}
    )
    done = command("label", "--config", config, env=env)
    assert done.returncode == 0, done.stderr
    again = here("label", "--config", config, env=env)
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    return source, root, env


@in_both_ways
def test_each_image_is_one_request(command: Command, swift_env: Swift, tmp_path: Path) -> None:
    bucket = swift_env.bucket()
    client, scenes = swift_env.client(), tmp_path / "scenes"
    dataset.write(scenes, 12, seed=7)
    keys = [f"raw/{path.name}" for path in sorted((scenes / "images").iterdir())]
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=(scenes / "images" / Path(key).name).read_bytes())
    with fault_proxy.serve(swift_env.endpoint_url) as between:
        storage = {"endpoint_url": between.endpoint_url}
        config = write_config(tmp_path / "run.yaml", f"s3://{bucket}/raw/", tmp_path / "labels", storage=storage)
        done = command("label", "--config", config)
        assert done.returncode == 0, done.stderr
        asked = [request.split("?")[0] for request in between.asked]
    assert sorted(request for request in asked if "/raw/" in request) == [f"GET /{bucket}/{key}" for key in keys]
    assert len(asked) <= len(keys) + 4, asked  # and a listing, whose sentinel and continuation are few


def test_arrow_polars_and_duckdb_read_the_same_rows(
    labelled: tuple[str, str, dict[str, str]], swift_env: Swift
) -> None:
    duckdb = pytest.importorskip("duckdb")
    _, root, env = labelled
    images = segray.images(root, endpoint_url=swift_env.endpoint_url).to_table()
    assert images.num_rows == 8
    assert set(images.column("status").to_pylist()) <= {"ok", "empty"}
    instances = segray.scan(root, endpoint_url=swift_env.endpoint_url).to_table()
    assert instances.num_rows == sum(images.column("n_instances").to_pylist()) > 0
    options = {
        "aws_endpoint_url": swift_env.endpoint_url,
        "aws_allow_http": "true",
        "aws_access_key_id": env["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"],
        "aws_region": "us-east-1",
    }
    glob = f"{root}/instances/class=*/*.parquet"
    assert pl.scan_delta(f"{root}/instances", storage_options=options).collect().height == instances.num_rows
    found = pl.scan_parquet(glob, hive_partitioning=True, storage_options=options).collect()
    assert found.height == instances.num_rows
    connection = duckdb.connect()
    connection.register("instances", instances)
    by_class = connection.sql("select class, count(*) from instances group by all order by all").fetchall()
    assert by_class == sorted(found.group_by("class").len().rows())


@in_both_ways
def test_wrong_credentials_are_refused_at_once(
    command: Command, labelled: tuple[str, str, dict[str, str]], swift: Swift, tmp_path: Path
) -> None:
    source, root, env = labelled
    config = write_config(tmp_path / "run.yaml", source, root + "-new", storage={"endpoint_url": swift.endpoint_url})
    began = time.monotonic()
    done = command("label", "--config", config, env={**env, "AWS_SECRET_ACCESS_KEY": "not-the-secret"})
    assert done.returncode == 2, done.stderr
    assert time.monotonic() - began < 60
    assert source.split("/")[2] in done.stderr or root.split("/")[2] in done.stderr
    assert "not-the-secret" not in done.stderr


def test_nothing_is_written_where_credentials_are_wrong(
    labelled: tuple[str, str, dict[str, str]], swift_env: Swift
) -> None:
    _, root, _ = labelled
    store = Store(StorageOptions(endpoint_url=swift_env.endpoint_url))
    assert store.names(root + "-new") == []


@pytest.mark.chaos
def test_classes_of_every_script_have_folders_in_a_bucket(swift_env: Swift, tmp_path: Path) -> None:
    odd = {13: "болт 1", 28: "007", 38: "null", 44: "гайка 1", 52: "a/b", 60: "true", 72: "*?#", 85: "café",
           88: "100%", 90: "="}  # fmt: skip
    root, store = f"s3://{swift_env.bucket()}/labels", {"endpoint_url": swift_env.endpoint_url}
    dataset.write(tmp_path / "scenes", 24, seed=6)
    model = {"name": "stickers", "labels": {**COCO_NAMES, **odd}}
    for limit in ("--limit=12", "--limit=12", "--limit=12"):
        config = write_config(tmp_path / "run.yaml", tmp_path / "scenes/images", root, model=model, storage=store)
        done = command("label", limit, "--config", config)
        assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
    rows = segray.scan(root, **store).to_table(columns=["class_id", "class_name", "class"]).to_pylist()
    assert {row["class_id"]: row["class_name"] for row in rows} == odd
    values = {row["class_name"]: row["class"] for row in rows}
    assert values == {name: partition_value(name) for name in odd.values()}
    options = {
        "aws_endpoint_url": swift_env.endpoint_url, "aws_allow_http": "true", "aws_region": "us-east-1",
        "aws_access_key_id": swift_env.key, "aws_secret_access_key": swift_env.secret,
    }  # fmt: skip
    files = pl.scan_parquet(
        f"{root}/instances/class=*/*.parquet",
        hive_partitioning=True,
        hive_schema={"class": pl.String},
        storage_options=options,
    )
    for frame in (pl.scan_delta(f"{root}/instances", storage_options=options), files):
        read = frame.select("class_name", "class").collect()
        assert (read.height, dict(read.rows())) == (len(rows), values)
    assert segray.scan(root, **store).to_table(filter=ds.field("class") == "болт_1").num_rows > 0
    for arguments in (("maintain", "--grace-hours", 0), ("verify",)):
        done = command(*arguments, root, "--endpoint-url", swift_env.endpoint_url)
        assert done.returncode == 0, done.stderr + done.stdout
