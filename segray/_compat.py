"""Everything private that segray takes from its libraries and from CPython, in one place.

Knows names that a library promises to nobody, and nothing of why they are needed. Each function does one thing, and
its docstring says what has no public way. tests/test_compat.py tries each on the installed library. A module that calls
a function here has loaded the library already; importing this one loads none.
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
    """Call a function when the interpreter ends, before it shuts down thread pools.

    atexit calls its functions after that. CPython offers no public way to come earlier.
    """
    threading._register_atexit(function)  # type: ignore[attr-defined]


def forget_members(archive: TarFile) -> None:
    """Let an open archive forget the members that it has read.

    tarfile keeps all of them, with no public way to prevent that: a large archive would fill the memory.
    """
    archive.members = []  # type: ignore[attr-defined]


def next_header(archive: TarFile) -> int:
    """Return the byte at which tarfile looks for the next header.

    tarfile takes a header that it cannot read for the end of the archive, and no public name tells where that was.
    """
    return archive.offset


# ---- Ray ------------------------------------------------------------------------------------------

# In the command line of the process that is a cluster's head. Ray names its processes in no public place.
RAY_HEAD = "gcs_server"
# Loggers of Ray's job client. Ray documents one logger, "ray", which would silence errors too.
RAY_JOB_CLIENT_LOGGERS = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)


def leave_ray_processes() -> None:
    """Let ray.shutdown() end none of the processes that ray.init() has started here.

    ray.shutdown() waits for each of them to obey SIGTERM, and has no option against that.
    """
    import ray._private.worker

    node = ray._private.worker._global_node
    if node is not None:
        node.all_processes.clear()


def ray_draining_nodes() -> dict[str, int]:
    """Return the ids of the nodes that are being drained, with their deadlines in ms since 1970, 0 for none.

    ray.nodes() does not tell it, and the state API needs the dashboard.
    """
    import ray._private.state

    return ray._private.state.state.get_draining_nodes()


def start_no_spare_ray_workers() -> None:
    """Let the node that ray.init() starts end at once each process that it started ahead and nobody needs.

    No argument of ray.init() does it: `_system_config` is private too. A value that is in the environment stays.
    """
    os.environ.setdefault("RAY_num_workers_soft_limit", "0")


def is_node_death(error: Exception) -> bool:
    """Return whether an ActorDiedError says that the actor died with its node.

    ActorDiedError is Ray's class for all deaths. Its attributes tell a failed constructor and a preempted node, and the
    text alone tells a node that died otherwise.
    """
    return "its node has died" in str(error)


def missing_modules(error: Exception) -> list[str]:
    """Return the modules that a node lacks, of an ActorDiedError whose actor_init_failed is true.

    Ray carries the ModuleNotFoundError of the node as text.
    """
    return re.findall(r"No module named '([\w.]+)'", str(error))


# ---- storage --------------------------------------------------------------------------------------


async def s3_client(filesystem: Any) -> Any:
    """Return the aiobotocore client of an s3fs file system, connected, to be used on the file system's loop.

    s3fs documents `set_session` for what is to be closed later. That it is the client, which can send every request,
    and that it is made anew when it has been closed, is said nowhere.
    """
    return await filesystem.set_session()


def path_in(filesystem: Any, uri: str) -> str:
    """Return what an fsspec file system calls the object at this URI.

    fsspec's public functions that tell it (url_to_fs, get_fs_token_paths) also make or find a file system.
    """
    return str(filesystem._strip_protocol(uri))


def load_session(session: Any) -> None:
    """Make those parts of a botocore session that it makes when they are first asked for.

    Threads may not ask first at the same time. botocore publishes neither the names of the parts nor a way to make all.
    """
    for name in ("config_store", "credential_provider"):
        session.get_component(name)


def leave_arrow_s3_at_exit(arrow_fs: ModuleType) -> None:
    """Let the module pyarrow.fs not wait for the threads of its S3 client when the interpreter ends.

    pyarrow registers the wait with atexit when it is imported, and has no setting against it.
    """
    atexit.unregister(arrow_fs.ensure_s3_finalized)


# ---- deltalake ------------------------------------------------------------------------------------


def is_panic(error: BaseException) -> bool:
    """Return whether an error is a panic of native code, such as deltalake's.

    pyo3 makes the class of such errors in each library anew; none of them can be imported.
    """
    return type(error).__name__ == "PanicException"


# ---- Typer ----------------------------------------------------------------------------------------


def usage_message(error: BaseException) -> str | None:
    """Return what Typer would print of wrong usage, None for any other error.

    Typer exports no base class of these errors: it is click's, of which newer versions carry a copy of their own.
    """
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return str(error.format_message())
    return None
