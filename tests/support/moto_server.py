"""A second S3 server for the tests: moto, in a process of its own on a free loopback port.

Knows how to start and stop moto, and moto's users and policies. Knows nothing of segray. moto holds everything in
memory, and checks keys and policies only after `check_access`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from botocore.config import Config
from botocore.session import Session
from ports import free_port

ANY_KEY, ANY_SECRET = "any-key", "any-secret"


@dataclass(frozen=True)
class Moto:
    """A running server."""

    endpoint_url: str

    def client(self, service: str = "s3") -> Any:
        """Return a client of AWS's own, for what a test wants to see without segray."""
        return Session().create_client(
            service,
            region_name="us-east-1",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=ANY_KEY,
            aws_secret_access_key=ANY_SECRET,
            config=Config(s3={"addressing_style": "path"}),
        )

    def bucket(self) -> str:
        """Return the name of a new, empty bucket."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def user(self, denied_objects: Sequence[str] = ()) -> tuple[str, str]:
        """Return key and secret of a new user who may do everything on S3, except read these objects."""
        iam, name = self.client("iam"), f"user-{uuid.uuid4().hex[:8]}"
        iam.create_user(UserName=name)
        statements = [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]
        for uri in denied_objects:
            arn = f"arn:aws:s3:::{uri.removeprefix('s3://')}"
            statements.append({"Effect": "Deny", "Action": "s3:GetObject", "Resource": arn})
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=policy)
        made = iam.create_access_key(UserName=name)["AccessKey"]
        return made["AccessKeyId"], made["SecretAccessKey"]

    @contextmanager
    def check_access(self) -> Iterator[None]:
        """Check keys and policies of every request until the block ends."""
        self._set_requests_without_check("0")
        try:
            yield
        finally:
            self._set_requests_without_check("inf")

    def _set_requests_without_check(self, count: str) -> None:
        url = f"{self.endpoint_url}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}  # moto does not see the body of a form
        request = urllib.request.Request(url, data=count.encode(), headers=headers, method="POST")
        urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def serve() -> Iterator[Moto]:
    """Run the server until the block ends."""
    port = free_port(set())
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(f"{url}/moto-api/", process)
        yield Moto(url)
    finally:
        process.kill()
        process.wait()


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "moto has ended"
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"moto does not answer at {url}")
