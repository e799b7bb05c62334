"""One tick of a Kubernetes schedule: `python jobs/rayjob.py TEMPLATE NAME`.

Starts the RayJob NAME from the suspended RayJob TEMPLATE, unless NAME still runs. Waits until the job has ended. Exits
with 0 if the job is complete, 3 if not.

Knows the API of Kubernetes as a pod sees it. Knows nothing of the work of the job. Two processes may run at a time: the
name is the lock, so both wait for one job. The job goes on if this process ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from ssl import create_default_context
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
POLL_S = 15.0
ENDED = ("Complete", "Failed", "ValidationFailed")
_SILENT_S = 600.0

Ask = Callable[[str, str, Mapping[str, Any] | None], Any]


def api(environ: Mapping[str, str] = os.environ, account: Path = ACCOUNT) -> Ask:
    """Return a function that asks the cluster's API about RayJobs in this pod's namespace.

    The function takes method, name and body, and returns the answer, None for a 404.
    """
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ["KUBERNETES_SERVICE_PORT"]
    scheme = environ.get("KUBERNETES_SERVICE_SCHEME", "https")
    namespace = (account / "namespace").read_text().strip()
    base = f"{scheme}://{host}:{port}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    tls = create_default_context(cafile=str(account / "ca.crt")) if scheme == "https" else None

    def ask(method: str, name: str, body: Mapping[str, Any] | None) -> Any:
        request = urllib.request.Request(f"{base}/{name}".rstrip("/"), method=method)
        # The token is read for each request, since Kubernetes renews it.
        request.add_header("Authorization", f"Bearer {(account / 'token').read_text().strip()}")
        request.add_header("Content-Type", "application/json")
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=30, context=tls) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as exc:
            if exc.code == 404:
                return None
            raise

    return ask


def start(ask: Ask, template: str, name: str, poll_s: float = POLL_S) -> bool:
    """Make the job unless a job of its name still runs; return whether the job was made.

    A job of the same name that has ended is removed first.

    Args:
        ask: asks the API; see api().
        template: name of the suspended RayJob whose spec is used.
        name: name of the job.
        poll_s: seconds between two looks at a job that is being removed.
    """
    old_job = ask("GET", name, None)
    if old_job is not None and _state(old_job) not in ENDED:
        return False
    if old_job is not None:
        # The uid protects another job that was made under the same name meanwhile.
        uid = old_job["metadata"]["uid"]
        ask("DELETE", name, {"preconditions": {"uid": uid}, "propagationPolicy": "Foreground"})
        while (present_job := ask("GET", name, None)) is not None and present_job["metadata"]["uid"] == uid:
            time.sleep(poll_s)
        if present_job is not None:
            return False
    template_job = ask("GET", template, None)
    if template_job is None:
        raise SystemExit(f"error: there is no RayJob {template} to copy\n  do:    kubectl apply -k infra/kubernetes")
    spec = {**template_job["spec"], "suspend": False}
    labels = template_job["metadata"].get("labels", {})
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name, "labels": labels}, "spec": spec}
    try:
        ask("POST", "", job)
    except urllib.error.HTTPError as exc:
        if exc.code != 409:
            raise
        return False
    return True


def wait(ask: Ask, name: str, poll_s: float = POLL_S, silent_s: float = _SILENT_S) -> int:
    """Wait until the job has ended, and return its exit code: 0 if it succeeded, else 3.

    Args:
        ask: asks the API; see api().
        name: name of the job.
        poll_s: seconds between two looks.
        silent_s: longest time in seconds without an answer of the API.
    """
    printed, last_answer_s = "", time.monotonic()
    while True:
        try:
            job = ask("GET", name, None)
            last_answer_s = time.monotonic()
        except (urllib.error.URLError, TimeoutError) as exc:
            if time.monotonic() - last_answer_s > silent_s:
                raise
            print(f"the API does not answer: {exc}", flush=True)
            time.sleep(poll_s)
            continue
        if job is None:
            print(f"{name} was deleted", flush=True)
            return 3
        status = job.get("status", {})
        line = f"{name}: {_state(job) or 'new'} {status.get('jobStatus', '')} {status.get('message', '')}".strip()
        if line != printed:
            print(line, flush=True)
        printed = line
        if _state(job) in ENDED:
            return 0 if (_state(job), status.get("jobStatus")) == ("Complete", "SUCCEEDED") else 3
        time.sleep(poll_s)


def _state(job: Mapping[str, Any]) -> str:
    return str(job.get("status", {}).get("jobDeploymentStatus", ""))


def main() -> int:
    """Start the job and wait for its end; return the exit code."""
    template, name = sys.argv[1:]
    ask = api()
    started = start(ask, template, name)
    print(f"{name} is started" if started else f"{name} still runs: waiting for its end", flush=True)
    return wait(ask, name)


if __name__ == "__main__":
    sys.exit(main())
