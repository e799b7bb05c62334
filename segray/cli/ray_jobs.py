"""`segray label` as a job on a remote Ray cluster, through the job API of its dashboard.

Knows addresses, tokens, job ids, entrypoints and how a job ends. Knows nothing of what a run does. Faults of the
cluster and of the request are found before a job exists. A job that no node can hold would wait for ever, and could not
even be stopped. One label set has one job at a time: the job's id comes from the root, and Ray refuses a second job of
the same id.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import segray
from segray._compat import RAY_JOB_CLIENT_LOGGERS
from segray.cli.options import LogFormat
from segray.errors import AccessError, ConfigError, ConflictError, InfrastructureError, SegrayError, UserError
from segray.execution.ray_token import read_token, token_file
from segray.models import decoders
from segray.monitoring import json_log
from segray.storage import uris

if TYPE_CHECKING:
    from segray.config import Config

# An environment variable of the driver: the version of segray that submitted it.
VERSION_ENV = "SEGRAY_SUBMITTED_WITH"
_ANSWER_S, _POLL_S, _SILENT_S, _ENDING_S = 40.0, 1.0, 60.0, 60.0
_STOP_S = 30
_TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
_RUN_EXIT_CODES = (1, 2, 3, 4, 130)
_LOST_CONTACT = 5
_HEAD_PORT = 6379


@dataclass(frozen=True)
class Request:
    """A request to label.

    path: the configuration file; None if the overrides say everything.
    config: the configuration in that file, with the overrides.
    overrides: texts of the form KEY=VALUE.
    arguments: further arguments of `segray label`.
    python: interpreter on the cluster that has segray.
    cpus: CPUs of the driver.
    resources: further Ray resources of the driver.
    metadata: values that Ray's dashboard shows with the job.
    log_format: format of the driver's progress.
    """

    path: Path | None
    config: Config
    overrides: Sequence[str] = ()
    arguments: Sequence[str] = ()
    python: str = "python"
    cpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    log_format: LogFormat = LogFormat.TEXT

    @property
    def entrypoint(self) -> str:
        """Return the driver's command line. The driver's folder holds the configuration, and a decoder of one's own."""
        command = [self.python, "-m", "segray", "label"]
        file = [] if self.path is None else ["--config", self.path.name]
        overrides = [word for override in self.overrides for word in ("--set", override)]
        # The date, since "today" may be another day on the cluster.
        day = ["--as-of", self.config.as_of.isoformat()] if self.config.as_of else []
        log_format = ["--log-format", self.log_format.value]
        return shlex.join([*command, *file, *overrides, *day, *log_format, *self.arguments])

    @property
    def stem(self) -> str:
        """Return the common beginning of the ids of all jobs of the label set."""
        root, endpoint = self.config.output.root.rstrip("/"), self.config.storage.endpoint_url or ""
        name = re.sub(r"[^a-z0-9]+", "-", uris.name(root).lower()).strip("-")[:40] or "root"
        digest = hashlib.sha256(json.dumps([endpoint, root]).encode()).hexdigest()
        return f"segray-{name}-{digest[:10]}"


@dataclass(frozen=True)
class JobOutcome:
    """The end of a job.

    job: id of the job.
    status: Ray's status of the job.
    exit_code: exit code of the run.
    result: the result as `segray label --json` prints it; None without one.
    message: a line for the user; may be empty.
    """

    job: str
    status: str
    exit_code: int
    result: Mapping[str, Any] | None = None
    message: str = ""


def check_version() -> None:
    """Raise ConfigError in a submitted driver unless both sides have the same segray."""
    submitted_with = os.environ.get(VERSION_ENV, segray.__version__)
    if submitted_with != segray.__version__:
        raise ConfigError(
            "the cluster has another version of segray than the client",
            where=f"the driver, {os.uname().nodename}",
            found=f"{segray.__version__} on the cluster, {submitted_with} on the client",
            hint="install the same version on both sides",
        )


# ---- the dashboard --------------------------------------------------------------------------------


class Dashboard:
    """Ray's HTTP interface at one address, with timeouts, and errors that have hints."""

    def __init__(self, address: str, environ: Mapping[str, str] = os.environ) -> None:
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ConfigError(
                "the address is not the URL of a Ray dashboard",
                where="--address",
                found=uris.redact(address),
                hint="give http://HEAD:8265",
            )
        # An ingress may serve the dashboard below a path.
        self.address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._token = _token(environ)
        self._headers = _headers(environ)

    @property
    def auth_mode(self) -> str:
        """Return Ray's mode of authentication: token or disabled."""
        return "token" if self._token else "disabled"

    def check(self) -> None:
        """Raise ConfigError unless a Ray of this version answers, AccessError unless it takes the token."""
        cluster_version, own_version = self.get("/api/version").get("ray_version"), version("ray")
        if not cluster_version:
            raise self._not_a_dashboard("no Ray version in the answer")
        if cluster_version.split(".")[:2] != own_version.split(".")[:2]:
            raise ConfigError(
                "the cluster has another version of Ray",
                where=self.address,
                found=f"{cluster_version} there, {own_version} here",
                hint=f"install ray=={cluster_version} here, or ray=={own_version} on the cluster",
            )
        self.nodes()  # the first call that needs a token

    def nodes(self) -> list[dict[str, float]]:
        """Return the total resources of each living node."""
        answer = self.get("/api/v0/nodes?limit=10000&detail=1")
        nodes = answer.get("data", {}).get("result", {}).get("result", [])
        return [dict(node.get("resources_total") or {}) for node in nodes if node.get("state") == "ALIVE"]

    def jobs(self) -> list[dict[str, Any]]:
        """Return Ray's records of the submitted jobs."""
        jobs: Any = self.get("/api/jobs/")
        return [job for job in jobs if job.get("submission_id")]

    def job(self, job: str) -> dict[str, Any]:
        """Return Ray's record of a job that exists.

        Raises InfrastructureError when the dashboard is silent for a minute.
        """
        deadline = time.monotonic() + _SILENT_S
        while True:
            try:
                return dict(self.get(f"/api/jobs/{job}"))
            except UserError as exc:
                if time.monotonic() > deadline:
                    raise InfrastructureError(
                        "the cluster does not answer any more",
                        where=self.address,
                        found=f"{exc.what} ({exc.found})",
                        hint=f"follow a living cluster with `{self.command('logs -f', job)}`; else repeat the command",
                    ) from exc
            time.sleep(_POLL_S)

    def command(self, verb: str, job: str) -> str:
        """Return Ray's command that does something with a job of this cluster, such as `logs -f`, for a shell."""
        return f"ray job {verb} --address {shlex.quote(self.address)} {job}"

    def stop(self, job: str) -> None:
        """Ask Ray to stop a job. job() shows whether the job stops."""
        self.get(f"/api/jobs/{job}/stop", b"{}")

    def get(self, path: str, data: bytes | None = None) -> Any:
        """Return the JSON at a path.

        data: body of a POST; None for a GET.
        """
        headers = {"Content-Type": "application/json", **self._headers}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as exc:
            if exc.code in (401, 403):
                raise self._refused(exc.code) from exc
            raise self._not_a_dashboard(f"{exc.code} {exc.reason} for {path}") from exc
        except HTTPException as exc:  # An answer that is not HTTP may be binary, and is not shown.
            raise self._not_a_dashboard("an answer that is not HTTP") from exc
        except OSError as exc:
            reason = getattr(exc, "reason", exc)
            raise ConfigError(
                "no Ray dashboard answers at this address",
                where=self.address,
                found=str(reason) or type(exc).__name__,
                hint="check host, port (by default 8265) and network; start a head on another machine with "
                "`ray start --dashboard-host`",
            ) from exc
        except ValueError as exc:
            raise self._not_a_dashboard("an answer that is not JSON") from exc

    def _refused(self, code: int) -> AccessError:
        if self._token:
            what, hint = (
                "the cluster refuses the token",
                "set RAY_AUTH_TOKEN to the token of the cluster's head",
            )
        else:
            what = "the cluster asks for a token"
            hint = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        return AccessError(what, where=self.address, found=f"{code}", hint=hint)

    def _not_a_dashboard(self, found: str) -> ConfigError:
        hint = "give the address of the cluster's dashboard, http://HEAD:8265"
        if urllib.parse.urlsplit(self.address).port == _HEAD_PORT:
            hint += f"; {_HEAD_PORT} is the port at which nodes join"
        return ConfigError(
            "the server at this address is not a Ray dashboard", where=self.address, found=found, hint=hint
        )

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Yield Ray's own client of this address.

        Ray's client prefers its environment to the address, so the environment is changed meanwhile.
        """
        settings = {"RAY_API_SERVER_ADDRESS": None, "RAY_ADDRESS": None, "RAY_AUTH_MODE": self.auth_mode}
        if self._token:
            settings["RAY_AUTH_TOKEN"] = self._token
        before = {name: os.environ.get(name) for name in settings}
        _set_environment(settings)
        try:
            jobs = importlib.import_module("ray.job_submission")
            # Messages of Ray's client on uploads and sockets do not help the user.
            for name in RAY_JOB_CLIENT_LOGGERS:
                logging.getLogger(name).setLevel(logging.WARNING)
            yield jobs.JobSubmissionClient(self.address, headers=self._headers or None)
        finally:
            _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _headers(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of RAY_JOB_HEADERS, as `ray job submit` sends them."""
    text = environ.get("RAY_JOB_HEADERS", "")
    try:
        headers = json.loads(text or "{}")
    except ValueError:
        headers = None
    if not isinstance(headers, dict) or not all(isinstance(value, str) for value in headers.values()):
        raise ConfigError(  # Without the value, which may be a secret.
            "RAY_JOB_HEADERS is not a JSON object of texts",
            where="RAY_JOB_HEADERS",
            hint="""set RAY_JOB_HEADERS='{"NAME": "VALUE"}', or remove it""",
        )
    return headers


def _token(environ: Mapping[str, str]) -> str | None:
    """Return the token to send; None without one.

    The order is Ray's. Without RAY_AUTH_MODE a token in the environment is meant to be used.
    """
    mode, token, path = (environ.get(name, "") for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if mode == "disabled" or (not mode and not token and not path):
        return None
    if sent := read_token(environ):
        return sent
    raise ConfigError(
        "RAY_AUTH_MODE is token, but there is no token",
        where="RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH",
        found=f"nothing in {token_file(environ)}",
        hint="set RAY_AUTH_TOKEN to the token of the cluster's head",
    )


# ---- before there is a job ------------------------------------------------------------------------


def check(request: Request, dashboard: Dashboard) -> str:
    """Return the id that the job will have.

    Raises UserError for a request that can never run, ConflictError while another job of the label set runs.
    """
    _check_paths(request.config)
    if request.config.model.adapter is not None:
        decoders.located(request.config.model.adapter)  # A missing module fails before there is a job.
    dashboard.check()
    _check_room(request, dashboard)
    return _next_id(request.stem, dashboard)


def _check_paths(config: Config) -> None:
    """Raise ConfigError for a relative local path.

    On the cluster such a path would lie in the job's own folder.
    """
    for key, uri in (
        ("source.uri", config.source.uri),
        ("output.root", config.output.root),
        ("model.path", config.model.path),
    ):
        if uri and not uris.scheme(uri) and not uri.removeprefix("file://").startswith("/"):
            raise ConfigError(
                f"{key} is a relative path, but the job runs in its own folder",
                where=key,
                found=uri,
                hint="give an absolute path that every node of the cluster has, or a URL",
            )


def _check_room(request: Request, dashboard: Dashboard) -> None:
    demand = {"CPU": request.cpus, **request.resources}
    deadline = time.monotonic() + _SILENT_S
    # A head that has just started answers before it lists its own node.
    while not any(nodes := dashboard.nodes()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    if not any(all(node.get(name, 0.0) >= amount for name, amount in demand.items()) for node in nodes):
        resources = [{name: node[name] for name in sorted(node) if not name.startswith("node:")} for node in nodes]
        raise ConfigError(
            "no node of the cluster can hold the driver",
            where="--driver-cpus, --driver-resource",
            found=f"the driver needs {demand}; the nodes have {resources}",
            hint="lower --driver-cpus (one CPU is enough) or --driver-resource, or add a node",
        )


def _next_id(stem: str, dashboard: Dashboard) -> str:
    number = 0
    for job in dashboard.jobs():
        match = re.fullmatch(rf"{re.escape(stem)}-(\d+)", job["submission_id"])
        if match is None:
            continue
        if job["status"] not in _TERMINAL:
            raise _overlap(dashboard, job["submission_id"], job["status"].lower())
        number = max(number, int(match[1]))
    return f"{stem}-{number + 1}"


def _overlap(dashboard: Dashboard, job: str, found: str) -> ConflictError:
    return ConflictError(
        "another job of this label set runs",
        where=job,
        found=found,
        hint=f"wait for the job (`{dashboard.command('logs -f', job)}`), or end the job with "
        f"`{dashboard.command('stop', job)}`",
    )


# ---- the job --------------------------------------------------------------------------------------


def start(request: Request, dashboard: Dashboard, job: str) -> None:
    """Make the job.

    request: the request of the job.
    job: id of the job, from check().

    Raises ConflictError when another client was faster with the same id, InfrastructureError when the cluster refuses.
    """
    environ = {json_log.SUMMARY_ENV: "1", VERSION_ENV: segray.__version__, "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S)}
    day = {"as_of": request.config.as_of.isoformat()} if request.config.as_of else {}
    metadata = {"segray": segray.__version__, "label_set": request.config.output.root, **day, **request.metadata}
    with tempfile.TemporaryDirectory(prefix="segray-") as folder, dashboard.client() as client:
        if request.path is not None:
            shutil.copyfile(request.path, Path(folder) / request.path.name)
        _write_decoder(request.config.model.adapter, Path(folder))
        try:
            _submit_until_agent(
                partial(
                    client.submit_job,
                    entrypoint=request.entrypoint,
                    submission_id=job,
                    runtime_env={"working_dir": folder, "env_vars": environ},
                    metadata=metadata,
                    entrypoint_num_cpus=request.cpus or None,
                    entrypoint_resources=dict(request.resources) or None,
                )
            )
        except (RuntimeError, OSError, ValueError) as exc:
            if "already" in str(exc) and job in str(exc):
                raise _overlap(dashboard, job, "another client submitted it at the same time") from exc
            raise InfrastructureError(
                "the cluster did not take the job",
                where=dashboard.address,
                found=_last_line(str(exc)),
                hint="see the dashboard's log on the head, then run the same command again",
            ) from exc


def _write_decoder(adapter: str | None, folder: Path) -> None:
    """Write the module of the user's decoder into the job's folder. adapter: MODULE:CLASS; None for no decoder."""
    if adapter is None:
        return
    code, _ = decoders.located(adapter)
    for name, content in code.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _submit_until_agent(submit: Callable[[], object]) -> None:
    """Submit the job; try again while the head has no agent that could run a job.

    A head that has just started answers before it has an agent.
    """
    deadline = time.monotonic() + _SILENT_S
    while True:
        try:
            submit()
            return
        except RuntimeError as exc:
            if "No available agent" not in str(exc) or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_S)


def follow(dashboard: Dashboard, job: str, start_timeout_s: float, show: Callable[[str], None]) -> JobOutcome:
    """Show the job's output until the job ends, and return its end.

    Args:
        dashboard: the cluster's dashboard.
        job: id of the job.
        start_timeout_s: longest wait in seconds for the driver's start.
        show: gets each line of output but the one that holds the result.

    Raises:
        InfrastructureError: the job did not start in time, contact was lost, or the driver ended before the run.
        ConfigError: the head of the cluster has no segray.
    """
    _await_start(dashboard, job, start_timeout_s)
    result: Mapping[str, Any] | None = None
    segray_missing = interruption_reported = False

    def read_line(line: str) -> None:
        nonlocal result, segray_missing, interruption_reported
        line_result = json_log.result_of(line)
        result = line_result or result
        segray_missing = segray_missing or "No module named segray" in line
        interruption_reported = interruption_reported or "interrupted" in line
        if line_result is None:
            show(line)

    _tail(dashboard, job, read_line)
    outcome = _outcome(_await_end(dashboard, job), job, result, segray_missing=segray_missing)
    # The driver's own error has the reason and the hint.
    return replace(outcome, message="") if interruption_reported and outcome.exit_code == 130 else outcome


def _await_start(dashboard: Dashboard, job: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while (record := dashboard.job(job))["status"] == "PENDING":
        if time.monotonic() > deadline:
            with suppress(SegrayError):
                dashboard.stop(job)
            raise InfrastructureError(
                f"the job did not start within {timeout_s:.0f} s and was stopped",
                where=job,
                found=record.get("message") or "pending",
                hint="see in `ray status` which resources the cluster lacks, or raise --start-timeout",
            )
        time.sleep(_POLL_S)


def _tail(dashboard: Dashboard, job: str, read_line: Callable[[str], None]) -> None:
    """Pass on all of the job's output line by line. After a lost connection, go on where the output stopped."""
    from aiohttp import ClientError

    seen_chars, failures, last_line = 0, 0, ""
    while True:
        read_chars = 0

        async def read(client: Any) -> None:
            nonlocal seen_chars, read_chars, last_line, failures
            async for chunk in client.tail_job_logs(job):
                new = chunk[max(0, seen_chars - read_chars) :]
                read_chars += len(chunk)
                if new:
                    seen_chars, failures = seen_chars + len(new), 0
                    *lines, last_line = (last_line + new).split("\n")
                    for line in lines:
                        read_line(line)

        try:
            with dashboard.client() as client:
                asyncio.run(read(client))
        except (TimeoutError, RuntimeError, OSError, ClientError):
            log_ended = False
        else:
            log_ended = True
        if dashboard.job(job)["status"] in _TERMINAL and log_ended:
            break
        failures += 1
        if failures >= _LOST_CONTACT:
            break
        time.sleep(_POLL_S)
    if last_line:
        read_line(last_line)


def _await_end(dashboard: Dashboard, job: str) -> dict[str, Any]:
    """Wait for the job's end, and return Ray's record of the job."""
    deadline = time.monotonic() + _ENDING_S
    while (record := dashboard.job(job))["status"] not in _TERMINAL:
        if time.monotonic() > deadline:
            raise InfrastructureError(
                "the job's output cannot be followed any more",
                where=job,
                found=f"the job is {record['status'].lower()}",
                hint=f"the job goes on; `{dashboard.command('logs -f', job)}` follows it, "
                "`segray status ROOT` shows its progress",
            )
        time.sleep(_POLL_S)
    return record


def _outcome(
    record: Mapping[str, Any], job: str, result: Mapping[str, Any] | None, *, segray_missing: bool
) -> JobOutcome:
    status, code, message = record["status"], record.get("driver_exit_code"), record.get("message") or ""
    if status == "SUCCEEDED":
        return JobOutcome(job, status, 0, result)
    if status == "STOPPED":
        return JobOutcome(job, status, 130, result, "stopped; run the same command again to resume")
    if segray_missing or code == 127:
        raise ConfigError(
            "the head of the cluster has no segray",
            where=job,
            found="No module named segray" if segray_missing else "no such interpreter",
            hint="install segray on every node, and name its interpreter with --python (/path/to/venv/bin/python)",
        )
    if code in _RUN_EXIT_CODES:
        return JobOutcome(job, status, int(code), result, f"exit code {code}: see the log above")
    if code is None:
        raise InfrastructureError(
            "the job failed, and its driver left no exit code",
            where=job,
            found=_last_line(message),
            hint="see the job in the dashboard",
        )
    raise InfrastructureError(
        "the driver ended before the run did",
        where=job,
        found=f"exit code {code}",
        hint="run the same command again to resume; too little memory on the head is the usual cause",
    )


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")[:500]
