"""Every private name that segray uses of its libraries and of CPython.

Knows names that no library documents. Knows nothing of the purpose for which segray needs them. Each docstring says
what the library's public names cannot do. tests/test_compat.py tests each function on the installed library. A module
that calls a function here has loaded the library already. Importing this module loads no library.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tarfile import TarFile
    from types import ModuleType

# ---- CPython --------------------------------------------------------------------------------------


def call_before_threads_end(function: Callable[[], None]) -> None:
    """Call a function when the interpreter ends, before CPython shuts down thread pools.

    atexit calls its functions after the shutdown. No public function of CPython calls them earlier.
    """
    threading._register_atexit(function)  # type: ignore[attr-defined]


def forget_members(archive: TarFile) -> None:
    """Remove the members that an open archive has read from its list.

    tarfile keeps all members, and no public name prevents that. A large archive would fill the memory.
    """
    archive.members = []  # type: ignore[attr-defined]


def next_header_offset(archive: TarFile) -> int:
    """Return the byte offset at which tarfile expects the next header.

    tarfile ends at an unreadable header as at the end of the archive. No public name gives the header's offset.
    """
    return archive.offset


# ---- Ray ------------------------------------------------------------------------------------------

# A part of the command line of a cluster's head process. Ray does not document the names of its processes.
RAY_HEAD = "gcs_server"
# Loggers of Ray's job client. Ray documents only the logger "ray", and silencing "ray" hides errors too.
RAY_JOB_CLIENT_LOGGERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)


def forget_ray_processes() -> None:
    """Keep ray.shutdown() from ending the processes that ray.init() has started here.

    ray.shutdown() waits until SIGTERM has ended each process, and has no option against the wait.
    """
    import ray._private.worker

    node = ray._private.worker._global_node
    if node is not None:
        node.all_processes.clear()


def ray_draining_nodes() -> dict[str, int]:
    """Return the ids of nodes that are being drained, with their deadlines in ms since 1970, 0 for none.

    ray.nodes() does not say which nodes are drained. The state API needs the dashboard.
    """
    import ray._private.state

    return ray._private.state.state.get_draining_nodes()


def ray_refuses_token(address: str, token: str, timeout_s: float) -> bool:
    """Return whether the head of a cluster answers that it does not take a token, or that it needs one.

    ray.init() retries a refused call without end, and raises nothing. The call asks for the cluster's id, and an empty
    request is valid.

    address: HOST:PORT of the head. token: "" for none.
    """
    import grpc

    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            call(b"", timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False


def ray_node_resources(address: str, token: str, timeout_s: float) -> list[dict[str, float]] | None:
    """Return the resources of each living node of a cluster that this process has not joined; None without an answer.

    Ray's own calls need a connection of the process, or the dashboard.

    address: HOST:PORT of the head. token: "" for none.
    """
    import grpc
    from ray.core.generated import gcs_service_pb2

    messages: Any = gcs_service_pb2
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        try:
            answer: bytes = call(b"", timeout=timeout_s, metadata=metadata)
        except grpc.RpcError:
            return None
    nodes = messages.GetAllNodeInfoReply.FromString(answer).node_info_list
    alive = 0  # GcsNodeInfo.GcsNodeState
    return [dict(node.resources_total) for node in nodes if node.state == alive]


def ray_session_folder() -> str:
    """Return the folder on this machine in which the connected Ray keeps logs and sockets.

    No public name of a running Ray has the folder.
    """
    import ray._private.worker

    node: Any = ray._private.worker._global_node
    return str(node.get_session_dir_path())


def ray_node_of_actor(actor: Any) -> str | None:
    """Return the id of the node that an actor ran on last; None if the actor ran on no node.

    An ActorDiedError names no node. The state API needs the dashboard.
    """
    import ray._private.state

    node = ray._private.state.actors(actor._actor_id.hex()).get("Address", {}).get("NodeID")
    return node if node and set(node) != {"f"} else None


def ray_addresses_here() -> list[str]:
    """Return the addresses of the clusters with a process on this machine, that of the last `ray start` first.

    ray.init(address="auto") joins one of them, and has no public way to leave some out.
    """
    import ray._private.services

    services: Any = ray._private.services
    services.find_gcs_addresses.cache_clear()
    running = sorted(services.find_gcs_addresses())
    last = services.find_bootstrap_address(None)
    return sorted(running, key=lambda address: address != last)


def start_no_spare_ray_workers() -> None:
    """Let the node that ray.init() starts end each spare worker process at once.

    Ray starts worker processes before they are needed. No public argument of ray.init() limits their number. A value
    that is in the environment stays.
    """
    os.environ.setdefault("RAY_num_workers_soft_limit", "0")


def is_node_death(error: Exception) -> bool:
    """Return whether an ActorDiedError says that the actor died with its node.

    ActorDiedError is Ray's class for all deaths. Its attributes name only a failed constructor and a preempted node.
    For every other death of a node, only the text names the node as the cause.
    """
    return "its node has died" in str(error)


def missing_modules(error: Exception) -> list[str]:
    """Return the names of modules that a node lacks, from an ActorDiedError whose actor_init_failed is true.

    Ray carries the ModuleNotFoundError of the node as text.
    """
    return re.findall(r"No module named '([\w.]+)'", str(error))


# ---- storage --------------------------------------------------------------------------------------


async def s3_client(filesystem: Any) -> Any:
    """Return the connected aiobotocore client of an s3fs file system, for use on the file system's loop.

    s3fs documents `set_session` only for closing the session later. s3fs does not document that the result is the
    client, which can send every request. s3fs does not document either that a closed client is created again.
    """
    return await filesystem.set_session()


def path_in(filesystem: Any, uri: str) -> str:
    """Return the path by which an fsspec file system names the object at a URI.

    fsspec's public functions for paths (url_to_fs, get_fs_token_paths) also create or find a file system.
    """
    return str(filesystem._strip_protocol(uri))


def coroutine_method(filesystem: Any, name: str) -> Any:
    """Return the coroutine function behind a method of an asynchronous fsspec file system.

    The public method cannot be given a time limit. fsspec documents the coroutines under private names.
    """
    return getattr(filesystem, f"_{name}")


def load_session(session: Any) -> None:
    """Create the components of a botocore session that botocore creates on first use.

    The first use of a component is not safe in two threads at the same time. botocore documents neither the names of
    the components nor a function that creates all of them.
    """
    for name in ("config_store", "credential_provider"):
        session.get_component(name)


def skip_arrow_s3_wait_at_exit(arrow_fs: ModuleType) -> None:
    """Keep pyarrow.fs from waiting for the threads of its S3 client when the interpreter ends.

    pyarrow registers the wait with atexit on import, and has no setting against the wait.
    """
    atexit.unregister(arrow_fs.ensure_s3_finalized)


# ---- deltalake ------------------------------------------------------------------------------------


def is_panic(error: BaseException) -> bool:
    """Return whether an error is a panic of native code, such as deltalake's.

    pyo3 makes one class of these errors for each library. No such class can be imported.
    """
    return type(error).__name__ == "PanicException"


# ---- Typer ----------------------------------------------------------------------------------------


def usage_message(error: BaseException) -> str | None:
    """Return Typer's message for a usage error, None for any other error.

    Typer exports no base class of its usage errors. The base class is click's, and newer versions carry their own copy.
    """
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return str(error.format_message())
    return None


def usage_command(error: BaseException) -> str:
    """Return the command of a usage error of Typer without the program's name, such as "models pull"; "" for none."""
    context = getattr(error, "ctx", None)
    if context is None:
        return ""
    return str(context.command_path).removeprefix(context.find_root().command_path).strip()


def is_request_for_help(error: BaseException) -> bool:
    """Return whether a usage error of Typer is the help of a group that was called without a command."""
    return type(error).__name__ == "NoArgsIsHelpError"
