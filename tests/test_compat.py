"""_compat.py: what each private name does in the installed library. A docstring names the version it was seen in."""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import fsspec
import pytest
import s3fs
import typer
from aiobotocore.client import AioBaseClient
from botocore.exceptions import EndpointConnectionError
from botocore.session import Session
from fsspec.asyn import sync

from segray import _compat

NOBODY = "http://127.0.0.1:9"  # the port of the discard service, which no machine offers


@contextmanager
def seen_in(library: str, seen: str) -> Iterator[None]:
    """Fail with the installed version, and the one that kept the contract, when the block raises anything."""
    try:
        yield
    except Exception as error:
        here = platform.python_version() if library == "CPython" else version(library)
        told = f"{library} {here} differs from {library} {seen} in what segray/_compat.py takes from it: {error!r}"
        pytest.fail(f"{told}\nSee what has come in its place, and correct that function.")


def answered(program: str, *arguments: object) -> list[str]:
    """Return the lines that a Python program writes in a process of its own; raise if it fails."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_broken_contract_is_told_with_both_versions() -> None:
    told = rf"ray {version('ray')} differs from ray 0\.1 in what segray/_compat.py takes from it: AttributeError"
    with pytest.raises(pytest.fail.Exception, match=told), seen_in("ray", "0.1"):
        _ = _compat.ray  # type: ignore[attr-defined]


def test_importing_the_module_loads_no_library() -> None:
    program = "import sys, segray._compat; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(answered(program)[0].split())
    assert not loaded & {"ray", "s3fs", "fsspec", "botocore", "deltalake", "pyarrow", "typer", "tarfile"}


# ---- CPython --------------------------------------------------------------------------------------


@seen_in("CPython", "3.11.7")
def test_a_function_is_called_before_thread_pools_are_shut_down() -> None:
    """Seen in CPython 3.11.7: threading._register_atexit."""
    program = """
import atexit
from concurrent.futures import ThreadPoolExecutor
from segray import _compat

pool = ThreadPoolExecutor(1)

def submit(name):
    try:
        print(name, pool.submit(int).result())
    except RuntimeError:
        print(name, "refused")

atexit.register(submit, "atexit")
_compat.call_before_threads_end(lambda: submit("before"))
"""
    assert answered(program) == ["before 0", "atexit refused"]


def archive_of(names: list[str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(bytes(700)))
    return file.getvalue()


@seen_in("CPython", "3.11.7")
def test_an_archive_whose_members_are_forgotten_is_read_to_its_end() -> None:
    """Seen in CPython 3.11.7: tarfile.TarFile.members may be emptied between calls of next()."""
    names = [f"{number}.jpg" for number in range(5)]
    found = []
    with tarfile.open(fileobj=io.BytesIO(archive_of(names)), mode="r:") as archive:
        while (member := archive.next()) is not None:
            assert archive.members == [member]  # type: ignore[attr-defined]
            _compat.forget_members(archive)
            found.append(member.name)
    assert found == names


@seen_in("CPython", "3.11.7")
def test_an_archive_tells_where_tarfile_stopped() -> None:
    """Seen in CPython 3.11.7: tarfile.TarFile.offset is the start of the header that next() could not read."""
    member_bytes = 512 + 1024  # a header, and 700 bytes in whole blocks
    data = bytearray(archive_of(["a", "b", "c"]))
    data[2 * member_bytes : 2 * member_bytes + 512] = b"x" * 512
    with tarfile.open(fileobj=io.BytesIO(bytes(data)), mode="r:") as archive:
        assert archive.next() is not None
        assert _compat.next_header_offset(archive) == member_bytes
        assert archive.next() is not None
        assert archive.next() is None
        assert _compat.next_header_offset(archive) == 2 * member_bytes


# ---- Ray ------------------------------------------------------------------------------------------


def ray_program(name: str) -> bytes:
    """Return the compiled program of Ray's installation, without importing Ray."""
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    return (Path(found.origin).parent / "core" / "src" / "ray" / name).read_bytes()


@pytest.mark.thorough
@pytest.mark.integration
@seen_in("ray", "2.60.0")
def test_a_ray_node_is_drained_and_its_processes_outlive_shutdown() -> None:
    """Seen in Ray 2.60.0.

    ray._private.state.state.get_draining_nodes, ray._private.worker._global_node.all_processes, and "gcs_server" in the
    command line of the head.
    """
    program = """
import json, os, secrets, subprocess, sys, time
from pathlib import Path
from segray import _compat
from segray._system import child_processes

mark = secrets.token_hex(16)
os.environ |= {"SEGRAY_CONTRACT": mark, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
import ray

def head_runs():
    return child_processes.marked_program_runs("SEGRAY_CONTRACT", mark, _compat.RAY_HEAD)

class Busy:
    def ready(self):
        return True

try:
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=40)
    busy = ray.remote(num_cpus=1)(Busy).remote()  # A node without work ends as soon as it is drained.
    ray.get(busy.ready.remote())
    context = ray.get_runtime_context()
    node, before = context.get_node_id(), _compat.ray_draining_nodes()
    drain = [Path(sys.executable).with_name("ray"), "drain-node", "--address", context.gcs_address, "--node-id", node,
             "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test",
             "--deadline-remaining-seconds", "600"]
    subprocess.run(drain, check=True, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while not (after := _compat.ray_draining_nodes()) and time.monotonic() < until:
        time.sleep(0.1)
    told = {"node": node, "before": before, "after": after, "head": head_runs()}
    _compat.forget_ray_processes()
    ray.shutdown()
    print(json.dumps(told | {"head_after": head_runs()}))
finally:
    child_processes.kill_marked("SEGRAY_CONTRACT", mark)
"""
    told = json.loads(answered(program)[-1])
    assert told["before"] == {}
    assert list(told["after"]) == [told["node"]]
    assert told["after"][told["node"]] > 1.7e12, "a deadline in ms since 1970"
    assert told["head"], "no process of the cluster is called as the head is"
    assert told["head_after"], "ray.shutdown() has ended the head"


@seen_in("ray", "2.60.0")
def test_ray_reads_how_many_spare_processes_it_may_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in Ray 2.60.0: RAY_num_workers_soft_limit, of which the raylet knows the part behind RAY_."""
    monkeypatch.delenv("RAY_num_workers_soft_limit", raising=False)
    before = set(os.environ)
    _compat.start_no_spare_ray_workers()
    (name,) = set(os.environ) - before
    assert os.environ[name] == "0"
    assert name.removeprefix("RAY_").encode() in ray_program("raylet/raylet")
    monkeypatch.setenv(name, "3")
    _compat.start_no_spare_ray_workers()
    assert os.environ[name] == "3"


@pytest.mark.thorough
@pytest.mark.integration
@seen_in("ray", "2.60.0")
def test_ray_tells_in_text_alone_that_an_actor_died_with_its_node_or_lacks_a_module() -> None:
    """Seen in Ray 2.60.0.

    "The actor died because its node has died." and "No module named 'NAME'" in the text of an ActorDiedError, of which
    actor_init_failed is true where the module is missing, for the actor's class or for an argument.
    """
    program = """
import json, os, secrets, signal, sys, time, types
from segray import _compat
from segray._system import child_processes

mark = secrets.token_hex(16)
os.environ |= {"SEGRAY_CONTRACT": mark, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import ActorDiedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

class Process:
    def __init__(self, argument=None):
        pass
    def pid(self):
        return os.getpid()

def absent(name):  # pickled by the name of a module that only this process has
    made = type(name, (Process,), {"__module__": "absent_here.part"})
    setattr(sys.modules["absent_here.part"], name, made)
    return made

def error_of(actor):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            ray.get(actor.pid.remote())
        except ActorDiedError as error:
            return [_compat.is_node_death(error), error.actor_init_failed, sorted(set(_compat.missing_modules(error)))]
        time.sleep(0.1)

sys.modules["absent_here"] = types.ModuleType("absent_here")
sys.modules["absent_here.part"] = types.ModuleType("absent_here.part")
quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 500,
         "health_check_failure_threshold": 2}
node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
try:
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": quick})
    other = cluster.add_node(**node)
    ray.init(address=cluster.address, logging_level=40, log_to_driver=False)
    there = NodeAffinitySchedulingStrategy(other.node_id, soft=False)
    actor = ray.remote(num_cpus=0)(Process)
    killed, leaving = actor.remote(), actor.options(scheduling_strategy=there).remote()
    failed = ray.remote(num_cpus=0)(absent("Class")).options(scheduling_strategy=there).remote()
    told = {"class": error_of(failed),
            "argument": error_of(actor.remote(absent("Argument")()))}
    os.kill(ray.get(killed.pid.remote()), signal.SIGKILL)
    told["process"] = error_of(killed)
    ray.get(leaving.pid.remote())
    cluster.remove_node(other, allow_graceful=False)
    told["node"] = error_of(leaving)
    told["nodes"] = [_compat.ray_node_of_actor(each) == other.node_id for each in (failed, leaving)]
    print(json.dumps(told), flush=True)
finally:
    child_processes.kill_marked("SEGRAY_CONTRACT", mark)
"""
    told = json.loads(next(line for line in answered(program) if line.startswith("{")))  # Ray writes there too.
    assert told["node"] == [True, False, []]
    assert told["nodes"] == [True, True], "ray._private.state.actors() keeps the node of a dead actor"
    assert told["process"] == [False, False, []]
    assert told["class"] == [False, True, ["absent_here"]]
    assert told["argument"] == [False, True, ["absent_here"]]


@pytest.mark.integration
@seen_in("ray", "2.60.0")
def test_the_clusters_of_this_machine_have_their_address_on_a_command_line() -> None:
    """Seen in Ray 2.60.0: find_gcs_addresses() caches what it finds; a raylet has --gcs-address=HOST:PORT.

    ray._private.worker._global_node is set in a driver and in a worker. A head without a token answers GetAllNodeInfo
    to anyone, with the living nodes in state 0.
    """
    program = """
import os
os.environ |= {"SEGRAY_CONTRACT": "here", "RAY_AUTH_MODE": "disabled"}
import ray
from segray import _compat
from segray._system import child_processes
before = _compat.ray_addresses_here()
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=40)
address = ray.get_runtime_context().gcs_address
print(address not in before, address in _compat.ray_addresses_here())
folder = _compat.ray_session_folder()
print(folder == ray.get(ray.remote(_compat.ray_session_folder).remote()), os.path.isdir(folder + "/logs"))
print(any(f"--gcs-address={address}" in words for words in child_processes.commands_with_variable("SEGRAY_CONTRACT")))
(resources,) = _compat.ray_node_resources(address, "", 10.0)
print(resources == ray.nodes()[0]["Resources"], _compat.ray_node_resources("127.0.0.1:9", "", 10.0))
"""
    assert answered(program) == ["True True", "True True", "True", "True None"]


@seen_in("ray", "2.60.0")
def test_the_loggers_of_rays_job_client_are_those_of_its_modules() -> None:
    """Seen in Ray 2.60.0: ray.dashboard.modules.job.sdk, ray.dashboard.modules.dashboard_sdk, and its packaging."""
    program = """
import importlib, logging
import ray.job_submission
from segray import _compat
for name in _compat.RAY_JOB_CLIENT_LOGGERS:
    values = vars(importlib.import_module(name)).values()
    print(name in {each.name for each in values if isinstance(each, logging.Logger)})
"""
    assert answered(program) == ["True"] * len(_compat.RAY_JOB_CLIENT_LOGGERS)


# ---- storage --------------------------------------------------------------------------------------


@seen_in("s3fs", "2026.9.0")
def test_s3fs_gives_its_connected_client() -> None:
    """Seen in s3fs 2026.9.0: set_session returns the client, the same for each call."""
    files = s3fs.S3FileSystem(
        anon=True,
        endpoint_url=NOBODY,
        config_kwargs={"retries": {"total_max_attempts": 1}},
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    client = sync(files.loop, _compat.s3_client, files)
    assert isinstance(client, AioBaseClient)
    assert client.meta.endpoint_url == NOBODY
    assert sync(files.loop, _compat.s3_client, files) is client
    for method in ("list_objects_v2", "get_object", "put_object", "head_object", "delete_object"):
        assert callable(getattr(client, method))
    with pytest.raises(EndpointConnectionError):
        sync(files.loop, client.head_object, Bucket="bucket", Key="key")


@seen_in("fsspec", "2026.9.0")
@pytest.mark.parametrize(
    ("uri", "path"),
    [("memory://root/a b%20.jpg", "/root/a b%20.jpg"), ("memory://root/", "/root"), ("file:///tmp/a", "/tmp/a"),
     ("https://host/a.jpg?b=c", "https://host/a.jpg?b=c")],
)  # fmt: skip
def test_fsspec_names_an_object_within_its_file_system(uri: str, path: str) -> None:
    """Seen in fsspec 2026.9.0: AbstractFileSystem._strip_protocol."""
    files = fsspec.filesystem(uri.partition("://")[0], skip_instance_cache=True)
    assert _compat.path_in(files, uri) == path


@seen_in("fsspec", "2026.9.0")
def test_an_asynchronous_file_system_has_coroutines_under_private_names() -> None:
    """Seen in fsspec 2026.9.0: AsyncFileSystem._cat_file and the others that public methods call."""
    files = fsspec.filesystem("http", skip_instance_cache=True)
    assert files.async_impl
    for name in ("ls", "info", "cat_file", "pipe_file", "makedirs", "rm_file"):
        assert inspect.iscoroutinefunction(_compat.coroutine_method(files, name))


@seen_in("botocore", "1.43.117")
def test_a_botocore_session_makes_its_parts() -> None:
    """Seen in botocore 1.43.117: the component credential_provider is made when it is asked for."""
    session = Session()
    deferred = session._components._deferred
    assert "credential_provider" in deferred
    _compat.load_session(session)
    assert not {"config_store", "credential_provider"} & set(deferred)


@seen_in("pyarrow", "26.0.1")
@pytest.mark.parametrize(
    ("call", "at_the_end"), [("", "finalised"), ("_compat.skip_arrow_s3_wait_at_exit(fs)", "open")]
)
def test_arrows_s3_is_not_finalised_at_exit(call: str, at_the_end: str) -> None:
    """Seen in pyarrow 26.0.1: importing pyarrow.fs registers ensure_s3_finalized with atexit."""
    program = f"""
import atexit, os

def last():  # registered first, so called after what pyarrow registers
    try:
        fs.S3FileSystem(anonymous=True, region="us-east-1")
    except Exception as error:
        print("finalised" if "finalized" in str(error) else error, flush=True)
    else:
        print("open", flush=True)
    os._exit(0)

atexit.register(last)
from pyarrow import fs
from segray import _compat
fs.S3FileSystem(anonymous=True, region="us-east-1")
{call}
"""
    assert answered(program) == [at_the_end]


# ---- deltalake ------------------------------------------------------------------------------------


@seen_in("deltalake", "1.6.6")
def test_a_panic_of_deltalake_is_known_by_its_name(tmp_path: Path) -> None:
    """Seen in deltalake 1.6.6: pyo3_runtime.PanicException, which deltalake raises in a forked process."""
    program = """
import os, sys
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from segray import _compat

write_deltalake(sys.argv[1], pa.table({"a": [1]}))
child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1])
try:
    DeltaTable(sys.argv[1])
except BaseException as error:
    print(_compat.is_panic(error), type(error).__mro__[1].__name__, flush=True)
os._exit(0)
"""
    assert answered(program, tmp_path / "table") == ["True BaseException"]
    assert not _compat.is_panic(ValueError("PanicException"))


# ---- Typer ----------------------------------------------------------------------------------------


@seen_in("typer", "0.29.2")
def test_typer_says_what_is_wrong_with_the_usage_of_a_command() -> None:
    """Seen in Typer 0.29.2: errors of usage have format_message() and exit_code, other errors of Typer have not."""
    app = typer.Typer()

    @app.command()
    def command(file: str) -> None:
        raise typer.Exit if file == "leave" else typer.Abort

    said = {}
    for arguments in ([], ["a", "b"], ["--nonsense"], ["abort"]):
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - which class it is, Typer does not say
            app(arguments, standalone_mode=False)
        said[" ".join(arguments)] = _compat.usage_message(caught.value)
    assert said.pop("abort") is None
    assert all(said.values())
    assert "file" in str(said[""]).lower()
    assert "--nonsense" in str(said["--nonsense"])
    assert app(["leave"], standalone_mode=False) == 0
    assert _compat.usage_message(typer.Exit(2)) is None
    assert _compat.usage_message(ValueError("no")) is None
    assert _compat.usage_command(ValueError("no")) == ""


@seen_in("typer", "0.29.2")
def test_typer_tells_the_command_of_a_usage_error_and_a_group_without_a_command() -> None:
    app, group = typer.Typer(no_args_is_help=True), typer.Typer(no_args_is_help=True)
    app.add_typer(group, name="models")

    @group.command()
    def pull(name: str) -> None: ...

    @group.command()
    def other() -> None: ...

    errors = []
    for arguments in (["models", "pull"], ["models"], []):
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - which class it is, Typer does not say
            app(arguments, standalone_mode=False)
        errors.append(caught.value)
    assert [_compat.usage_command(error) for error in errors] == ["models pull", "models", ""]
    assert [_compat.is_request_for_help(error) for error in errors] == [False, True, True]
