"""One tick of a Kubernetes schedule: `python jobs/rayjob.py TEMPLATE NAME`.

Starts the RayJob NAME from the suspended RayJob TEMPLATE, unless NAME still runs. Waits until the job has ended. Exits
with 0 if the job is complete, 3 if not.

Knows Kubernetes' API as a pod sees it. Knows nothing of what the job does. Two processes may run at a time: the name is
the lock, so both wait for one job. The job goes on whatever happens to this process.
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
        # Read for each request, since Kubernetes renews the token.
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
    found = ask("GET", name, None)
    if found is not None and _state(found) not in ENDED:
        return False
    if found is not None:
        # The uid: another job may have been made under the name meanwhile.
        ask("DELETE", name, {"preconditions": {"uid": found["metadata"]["uid"]}, "propagationPolicy": "Foreground"})
        while (left := ask("GET", name, None)) is not None and left["metadata"]["uid"] == found["metadata"]["uid"]:
            time.sleep(poll_s)
        if left is not None:
            return False
    pattern = ask("GET", template, None)
    if pattern is None:
        raise SystemExit(
            f"error: there is no RayJob {template} to start from\n  do:    kubectl apply -k infra/kubernetes"
        )
    spec = {**pattern["spec"], "suspend": False}
    labels = pattern["metadata"].get("labels", {})
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
    told, heard_s = "", time.monotonic()
    while True:
        try:
            found = ask("GET", name, None)
            heard_s = time.monotonic()
        except (urllib.error.URLError, TimeoutError) as exc:
            if time.monotonic() - heard_s > silent_s:
                raise
            print(f"no answer: {exc}", flush=True)
            time.sleep(poll_s)
            continue
        if found is None:
            print(f"{name} was deleted", flush=True)
            return 3
        status = found.get("status", {})
        line = f"{name}: {_state(found) or 'new'} {status.get('jobStatus', '')} {status.get('message', '')}".strip()
        if line != told:
            print(line, flush=True)
        told = line
        if _state(found) in ENDED:
            return 0 if (_state(found), status.get("jobStatus")) == ("Complete", "SUCCEEDED") else 3
        time.sleep(poll_s)


def _state(job: Mapping[str, Any]) -> str:
    return str(job.get("status", {}).get("jobDeploymentStatus", ""))


def main() -> int:
    """Start the job and wait for its end; return the exit code."""
    template, name = sys.argv[1:]
    ask = api()
    print(f"{name} is started" if start(ask, template, name) else f"{name} still runs: waiting for it", flush=True)
    return wait(ask, name)


if __name__ == "__main__":
    sys.exit(main())
