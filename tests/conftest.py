"""Fixtures that more than one test module uses."""

from __future__ import annotations

import gc
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import azurite as azurite_server
import gcs_emulator
import heads
import hub_server
import properties
import pytest
import swift_server
import web as web_server
from azurite import Azurite
from clusters import marked
from gcs_emulator import Emulator
from heads import Head
from hub_server import HubServer
from hypothesis import settings
from ports import free_port
from swift_server import Swift
from web import Web

CHAOS = "chaos"
# A test that bears none of them is of the unit tier.
TIERS = ("integration", "thorough", CHAOS)

# The files that take longest first: who begins last decides when all have ended.
LONGEST = ("crash_model", "kills", "host_process", "session", "job", "ray_connection", "s3", "end_to_end", "signals",
           "streams", "infrastructure_faults", "object_stores", "secrets", "notebooks", "quantize", "archives_labelled",
           "tensorflow", "wrapped", "packaging", "compat", "label", "lease", "concurrent_use", "forks", "short_scripts",
           "store", "retry_failed", "validation", "model_cache", "run", "crashing_images", "partition", "nodes",
           "bench", "accuracy", "autoscaling")  # fmt: skip
# Modules that label, commit and compile in this process: too slow for the unit tier, for which a minute is enough.
IN_PROCESS = ("absent_source", "class_names", "crash_model", "decoders", "describe", "engine", "export", "format",
              "golden_tables", "hugging_face", "known_pixels", "label_set", "maintenance", "model", "model_cache",
              "models", "parity", "query_models", "report", "retry_failed", "review", "run", "sql", "torchvision",
              "validation")  # fmt: skip
# Their tests share one head with a token, so that one process of pytest has them all.
OF_TOKEN_HEAD = ("test_job.py", "test_ray_connection.py", "test_session.py")


# Commands and the rewritten tests load their bytecode: each process of pytest saves 3 s of CPU, and a run 0.2 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What collection makes stays to the end. The garbage collector takes half of its time to see so.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    # One seed for all processes of a session; SEGRAY_SEED repeats it.
    os.environ.setdefault("SEGRAY_SEED", str(time.time_ns() % 10**6))
    if config.option.markexpr != CHAOS:
        settings.load_profile(properties.FAST)


def pytest_report_header() -> str:
    return f"SEGRAY_SEED={os.environ['SEGRAY_SEED']}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # Chaos tries all examples of a property, and every other tier a few.
        if config.option.markexpr == CHAOS and getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(CHAOS)
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            if item.path.stem.removeprefix("test_") in IN_PROCESS:
                item.add_marker("in_process")
                item.add_marker("integration")
            else:
                item.add_marker("unit")
        if item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.timeout(3600))
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole files, and all files of one head to the same process."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "token head" if Path(file).name in OF_TOKEN_HEAD else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swift]:
    """A real S3 server for the whole session: `endpoint_url`, `key`, `secret` and `bucket()`."""
    pytest.importorskip("swift", reason="the S3 server of the tests is the package `swift`")
    folder = tmp_path_factory.mktemp("swift")
    with swift_server.in_memory(folder) as folder, swift_server.serve(folder) as server:
        yield server


@pytest.fixture
def swift_env(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> Swift:
    """The same server, with its key and secret where segray looks for them: the AWS environment variables."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", swift.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", swift.secret)
    return swift


@pytest.fixture(scope="module")
def _web() -> Iterator[Web]:
    with web_server.serve() as server:
        yield server


@pytest.fixture
def web(_web: Web) -> Web:
    """A local HTTP server without pages; what it was asked is in `asked`."""
    _web.pages.clear()
    _web.asked.clear()
    return _web


@pytest.fixture(scope="module")
def _hub() -> Iterator[HubServer]:
    with hub_server.serve() as server:
        yield server


@pytest.fixture
def hub_site(_hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A hub without repositories, which HF_ENDPOINT names; an empty cache of models, and no token."""
    _hub.clear()
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", _hub.root)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("SEGRAY_CACHE", str(tmp_path / "cache"))
    return _hub


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A cluster for the whole session, for commands that kill nothing: those that are given RAY_ADDRESS join it."""
    with heads.shared() as address:
        yield address


@pytest.fixture(scope="session")
def token_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head that asks for a token, as `ray start --head` makes it, for all tests that submit jobs to one."""
    with heads.head(tmp_path_factory.mktemp("home"), auth_mode="token") as head:
        yield head


@pytest.fixture
def shared_ray(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test's commands join the session's cluster, in place of a private one for each."""
    monkeypatch.setenv("RAY_ADDRESS", ray_address)


@pytest.fixture
def own_ray(shared_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private cluster for each command of a test, in a module that shares one."""
    monkeypatch.delenv("RAY_ADDRESS")


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """A real Azure Blob Storage server for the whole session."""
    pytest.importorskip("azure.storage.blob", reason="Azure's client is in the extra azure")
    with azurite_server.serve(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def azure_env(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Azurite:
    """The same server, named by AZURE_STORAGE_CONNECTION_STRING alone."""
    for name in [name for name in os.environ if name.startswith(("AZURE_", "AZURITE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string())
    return azurite


@pytest.fixture(scope="session")
def gcs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """An emulator of Google Cloud Storage for the whole session."""
    pytest.importorskip("gcsfs", reason="gcsfs is in the extra gcs")
    pytest.importorskip(
        gcs_emulator.PACKAGE, reason="the emulator of Google Cloud Storage is a package of the extra dev"
    )
    taken: set[int] = set()
    ports = free_port(taken), free_port(taken)
    with gcs_emulator.serve(tmp_path_factory.mktemp("gcs"), ports) as emulator:
        yield emulator


@pytest.fixture
def gcs_env(gcs: Emulator, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """The same emulator, named by STORAGE_EMULATOR_HOST alone."""
    for name in [name for name in os.environ if name.startswith("GOOGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.endpoint_url)
    return gcs


@pytest.fixture
def mark() -> Iterator[dict[str, str]]:
    """An environment variable by which all processes of a test can be found; none of them outlives it."""
    variable = {"SEGRAY_TEST_MARK": secrets.token_hex(8)}
    yield variable
    for pid in marked(variable):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
