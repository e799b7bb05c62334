"""Secrets that are planted in every place where people keep them, and looked for in every byte that comes out.

A signed link in a manifest is the user's own text: it is the image's key and uri, so it is in the rows and the
plan as written; it is in no log, message or record.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from command import segray as command
from command import write_config
from swift_server import Swift

import segray
from segray import config
from segray.errors import AccessError, ConfigError
from segray.storage.store import StorageOptions, Store
from segray.synthetic import dataset

PACKAGE = Path(__file__).parents[1] / "segray"
PASSWORD, TOKEN, SIGNATURE = "pAsSwOrD-4711", "tOkEn-4712", "sIgNaTuRe-4713"


def dotted(function: ast.expr) -> str:
    """`a.b` as it is written; of anything else, what is asked of it last."""
    if isinstance(function, ast.Attribute):
        return f"{dotted(function.value)}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def test_nothing_that_is_read_can_run() -> None:
    """No pickle, no eval, no YAML that builds objects; weights are read as weights only."""
    options = ("Loader", "weights_only", "allow_pickle", "shell")
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                unsafe = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
                if path.name != "delta_log.py":  # between a process and one that it has started itself
                    assert not {name.split(".")[0] for name in names} & unsafe, path
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if "_SAFE_LOADER" in map(dotted, targets):
                    assert node.value is not None, path
                    assert ast.unparse(node.value) == "getattr(yaml, 'CSafeLoader', yaml.SafeLoader)", path
            elif isinstance(node, ast.Call):
                chosen = [word for word in node.keywords if word.arg in options]
                name, given = dotted(node.func), {word.arg: ast.unparse(word.value) for word in chosen}
                if name == "eval" and path.name == "arguments.py":  # annotations of segray's own functions
                    continue
                assert name not in {"eval", "exec", "compile", "yaml.unsafe_load", "os.system"}, path
                if name == "yaml.load":
                    assert given.get("Loader") in {"yaml.BaseLoader", "yaml.SafeLoader", "_SAFE_LOADER"}, path
                if name == "torch.load":
                    assert given.get("weights_only") == "True", path
                if name in {"np.load", "numpy.load"}:
                    assert given.get("allow_pickle", "False") == "False", path
                assert given.get("shell", "False") == "False", path


@pytest.mark.parametrize("url", [f"http://user:{PASSWORD}@host:9000", f"http://host/?X-Amz-Signature={PASSWORD}"])
def test_an_endpoint_with_a_secret_is_refused_without_repeating_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"source": {"uri": "s3://b/x"}, "output": {"root": "y"}, "model": {"name": "stickers"}}
    with pytest.raises(ConfigError, match="AWS_SECRET_ACCESS_KEY") as refused:
        config.validate({**values, "storage": {"endpoint_url": url}}, "run.yaml")
    assert PASSWORD not in str(refused.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(AccessError, match="Not an endpoint") as unusable:
        Store(StorageOptions()).read("s3://b/x")
    assert PASSWORD not in str(unusable.value)


def test_what_goes_wrong_with_a_signed_link_is_told_without_its_signature() -> None:
    store = Store(StorageOptions(retries=0))
    link = f"http://user:{PASSWORD}@127.0.0.1:9/a.jpg?X-Amz-Signature={SIGNATURE}"
    with pytest.raises(Exception, match=r"http://127\.0\.0\.1:9/a\.jpg\?\.\.\.") as failed:
        store.read(link)
    assert SIGNATURE not in str(failed.value)
    assert PASSWORD not in str(failed.value)


# ---- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Authorization", "cookie"])
def test_a_header_with_a_secret_is_refused_without_repeating_it(name: str) -> None:
    values = {"source": {"uri": "/p"}, "output": {"root": "/l"}, "model": {"name": "stickers"}}
    headers = {name: "hush", "User-Agent": "ours"}
    with pytest.raises(ConfigError, match=f"{name} may hold a secret") as caught:
        config.validate({**values, "storage": {"http_headers": headers}}, "run.yaml")
    assert "hush" not in str(caught.value)
    kept = config.validate({**values, "storage": {"http_headers": {"User-Agent": "ours"}}}, "run.yaml")
    assert kept.storage.http_headers == {"User-Agent": "ours"}


def holders(folder: Path, secrets: tuple[str, ...]) -> list[str]:
    """Files below the folder that hold one of the secrets."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            found += [f"{path}: {secret}" for secret in secrets if secret.encode() in data]
    return found


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where Ray keeps the logs of its private cluster; short, because sockets lie there."""
    folder = Path(
        subprocess.run(["mktemp", "-d", "/tmp/r.XXXX"], check=True, capture_output=True, text=True).stdout[:-1]
    )
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def download(swift: Swift, bucket: str, folder: Path) -> None:
    client, ask = swift.client(), {"Bucket": bucket}
    for number, found in enumerate(client.list_objects_v2(**ask).get("Contents", [])):
        (folder / str(number)).write_bytes(client.get_object(**ask, Key=found["Key"])["Body"].read())


def environment(swift: Swift, ray_folder: Path, **more: str) -> Mapping[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": swift.key, "AWS_SECRET_ACCESS_KEY": swift.secret, "AWS_REGION": "us-east-1"}
    return {**keys, "RAY_TMPDIR": str(ray_folder), **more}


@pytest.mark.integration
def test_a_run_leaves_the_secret_nowhere(swift: Swift, tmp_path: Path, ray_folder: Path) -> None:
    dataset.write(tmp_path / "scenes", 6, seed=9)
    source, root = swift.bucket(), swift.bucket()
    for path in (tmp_path / "scenes" / "images").iterdir():
        swift.client().put_object(Bucket=source, Key=path.name, Body=path.read_bytes())
    link = f"http://127.0.0.1:9/gone.jpg?X-Amz-Signature={SIGNATURE}"
    uris = [f"s3://{source}/{path.name}" for path in (tmp_path / "scenes" / "images").iterdir()]
    manifest = tmp_path / "list.txt"
    manifest.write_text("\n".join([*uris, f"{link.replace('127.0.0.1:9', swift.endpoint_url[7:])}"]))
    chosen = write_config(
        tmp_path / "run.yaml",
        manifest,
        f"s3://{root}/labels",
        storage={"endpoint_url": swift.endpoint_url, "retries": 0},
        max_failed_fraction=0.5,
    )
    env = environment(swift, ray_folder)
    done = command("label", "--config", chosen, env=env)
    assert done.returncode == 0, done.stderr
    for secret in (SIGNATURE, swift.secret):
        assert secret not in done.stdout + done.stderr
    logs = list(ray_folder.rglob("*.log"))
    assert logs, "Ray's logs are where they were asked for"
    assert holders(ray_folder, (SIGNATURE, swift.secret)) == []
    labels = tmp_path / "labels"
    labels.mkdir()
    download(swift, root, labels)
    assert holders(labels, (swift.secret,)) == []
    records = [path for path in labels.iterdir() if path.read_bytes()[:1] == b"{"]
    assert len(records) > 3
    written = segray.images(f"s3://{root}/labels", endpoint_url=swift.endpoint_url, **keys_of(env)).to_table()
    failed = [row for row in written.to_pylist() if row["status"] == "failed"]
    assert [SIGNATURE in row["uri"] for row in failed] == [True]
    assert SIGNATURE not in failed[0]["message"]


def keys_of(env: Mapping[str, str]) -> dict[str, str]:
    return {name: env[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


@pytest.mark.integration
@pytest.mark.parametrize(
    "local", [pytest.param(True, id="local-to-s3", marks=pytest.mark.thorough), pytest.param(False, id="s3-to-s3")]
)
def test_refused_credentials_are_not_repeated(swift: Swift, tmp_path: Path, ray_folder: Path, local: bool) -> None:
    bucket = swift.bucket()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    source = tmp_path / "photos" if local else f"s3://{bucket}/raw/"
    storage = {"endpoint_url": swift.endpoint_url}
    chosen = write_config(tmp_path / "run.yaml", source, f"s3://{bucket}/labels", storage=storage)
    planted = {"AWS_SECRET_ACCESS_KEY": PASSWORD, "AWS_SESSION_TOKEN": TOKEN}
    refused = command("label", "--config", chosen, env=environment(swift, ray_folder, **planted))
    assert refused.returncode == 2, refused.stderr
    assert "Traceback" not in refused.stderr
    for secret in (PASSWORD, TOKEN):
        assert secret not in refused.stdout + refused.stderr
    assert holders(ray_folder, (PASSWORD, TOKEN)) == []
