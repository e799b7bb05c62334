"""S3 as a backend, and deltalake's options for the same buckets. The only home of s3fs and botocore.

Key and secret come from the usual AWS environment variables or a profile, never from the configuration. The
configuration may name the profile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

import s3fs
from botocore.exceptions import ClientError, ProfileNotFound
from botocore.session import Session
from fsspec.asyn import sync

from segray._compat import load_session, s3_client
from segray.errors import AccessError
from segray.storage.backend import Attempt, ListedObject, Walk
from segray.storage.errors import status_of
from segray.storage.options import StorageOptions
from segray.storage.time_limits import limits_of, within
from segray.storage.uris import bucket_and_folder, bucket_and_object, parent, scheme


class S3Backend:
    """S3 and compatible stores, through the botocore client that s3fs keeps on its event loop.

    The backend avoids s3fs' file methods, which retry on their own and ask for the size before each read. The file
    methods also rewrite some keys and hold whole listings in memory. A missing bucket looks like a missing file.
    """

    def __init__(self, options: StorageOptions) -> None:
        limits = limits_of(options.timeout_s)
        config: dict[str, Any] = {
            "connect_timeout": limits.connect_s,
            "read_timeout": limits.silence_s,
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "max_pool_connections": 64,
        }
        if endpoint := _endpoint(options):
            if scheme(endpoint) not in ("http", "https") or "@" in endpoint or "?" in endpoint:
                # The message leaves out user, password and query, which may be secret.
                endpoint_shown = repr(endpoint.rpartition("@")[2].partition("?")[0])
                hint = "write storage.endpoint_url as http://host:port"
                raise AccessError("Not an endpoint", found=endpoint_shown, hint=hint)
            # Some S3-compatible servers refuse chunked checksums.
            config |= dict.fromkeys(("request_checksum_calculation", "response_checksum_validation"), "when_required")
        if _uses_paths(options):
            config["s3"] = {"addressing_style": "path"}
        elif options.addressing == "virtual":
            config["s3"] = {"addressing_style": "virtual"}
        profile = _profile(options)
        self._limits = limits
        self._reading = {"RequestPayer": "requester"} if options.requester_pays else {}
        self._writing = self._reading | _encryption(options)
        self._fs = s3fs.S3FileSystem(
            anon=options.anonymous,
            profile=profile,
            endpoint_url=endpoint,
            client_kwargs={"region_name": options.region} if options.region else {},
            config_kwargs=config,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        total_s = self._limits.for_upload(len(parameters.get("Body", b"")))
        return cast(dict[str, Any], sync(self._fs.loop, within, total_s, self._request, method, parameters))

    async def _request(self, method: str, parameters: Mapping[str, Any]) -> Any:
        client = await s3_client(self._fs)
        reply = await getattr(client, method)(**parameters)
        if method == "get_object":
            async with reply["Body"] as body:
                return {"Body": await body.read()}
        return reply

    def _pages(self, uri: str, prefix: str, delimiter: str, attempt: Attempt) -> Iterator[dict[str, Any]]:
        bucket, folder = bucket_and_folder(uri)
        parameters: dict[str, Any] = {"Bucket": bucket, "Prefix": folder + prefix, "Delimiter": delimiter}
        parameters |= self._reading
        while True:
            page = attempt(lambda backend: backend._call("list_objects_v2", **parameters))
            yield page
            if not page.get("IsTruncated"):
                return
            parameters["ContinuationToken"] = page["NextContinuationToken"]

    def entries(self, uri: str, prefix: str, attempt: Attempt, walk: Walk) -> Iterator[ListedObject]:
        bucket, folder = bucket_and_folder(uri)
        for page in self._pages(uri, prefix, "", attempt):
            for listed in page.get("Contents", ()):
                if not listed["Key"].endswith("/"):  # consoles mark empty folders by such objects
                    yield _object_entry(bucket, listed["Key"], folder, listed)

    def names(self, uri: str) -> list[str]:
        _, folder = bucket_and_folder(uri)
        keys: list[str] = []
        for page in self._pages(uri, "", "/", lambda call: call(self)):
            keys += [listed["Key"] for listed in page.get("Contents", ())]
            keys += [listed["Prefix"] for listed in page.get("CommonPrefixes", ())]
        return [key.removeprefix(folder) for key in keys if key != folder]

    def stat(self, uri: str) -> ListedObject:
        bucket, key = bucket_and_object(uri)
        reply = self._call("head_object", Bucket=bucket, Key=key, **self._reading)
        return _object_entry(bucket, key, parent(key) + "/" if "/" in key else "", reply)

    def read(self, uri: str, start: int, size: int | None) -> bytes:
        bucket, key = bucket_and_object(uri)
        part = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        try:
            return cast(bytes, self._call("get_object", Bucket=bucket, Key=key, **part, **self._reading)["Body"])
        except ClientError as error:
            if status_of(error) == 416:  # no such range: an empty object
                return b""
            raise

    def put(self, uri: str, data: bytes) -> None:
        bucket, key = bucket_and_object(uri)
        self._call("put_object", Bucket=bucket, Key=key, Body=data, **self._writing)

    def create(self, uri: str, data: bytes) -> None:
        bucket, key = bucket_and_object(uri)
        try:
            self._call("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", **self._writing)
        except ClientError as error:
            if status_of(error) != 412:
                raise

    def delete(self, uri: str) -> None:
        bucket, key = bucket_and_object(uri)
        self._call("delete_object", Bucket=bucket, Key=key, **self._reading)


def _object_entry(bucket: str, key: str, folder: str, reply: Mapping[str, Any]) -> ListedObject:
    size = reply["Size"] if "Size" in reply else reply["ContentLength"]
    return ListedObject(f"s3://{bucket}/{key}", key.removeprefix(folder), reply.get("ETag", "").strip('"'), size)


def _uses_paths(options: StorageOptions) -> bool:
    """Return whether requests name the bucket in the path. S3-compatible servers seldom have a host for each bucket."""
    return options.addressing == "path" or (options.addressing == "auto" and bool(_endpoint(options)))


def _encryption(options: StorageOptions) -> dict[str, str]:
    """Return the parameters that ask S3 to encrypt a written object."""
    parameters = {"ServerSideEncryption": options.sse, "SSEKMSKeyId": options.sse_kms_key_id}
    return {name: value for name, value in parameters.items() if value}


def _endpoint(options: StorageOptions) -> str | None:
    return options.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _profile(options: StorageOptions) -> str | None:
    """Return the AWS profile that the options name. Raise AccessError if no file has a profile in use."""
    if options.anonymous:
        return None
    if options.profile or os.environ.get("AWS_PROFILE"):
        try:
            Session(profile=options.profile).get_scoped_config()
        except ProfileNotFound as error:
            files = "AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE, by default ~/.aws/config and ~/.aws/credentials"
            named_by = "storage.profile or source.storage.profile" if options.profile else "AWS_PROFILE"
            hint = f"correct {named_by}, or add the profile to the files of {files}, on every node"
            raise AccessError("No such AWS profile", found=str(error), hint=hint) from error
    return options.profile


@lru_cache(8)
def _session(process: int, environment: frozenset[tuple[str, str]], profile: str | None) -> Session:
    """Return the botocore session of this process for these AWS environment variables and a profile.

    To make a session takes milliseconds, or a request for a role's credentials. botocore renews a role's credentials.
    """
    session = Session(profile=profile)
    load_session(session)
    return session


def forget_credentials() -> None:
    """Let the next session read the credentials again."""
    _session.cache_clear()


def delta_options(options: StorageOptions) -> dict[str, str]:
    """Return deltalake's storage_options for S3. The options contain the secret key: never log or store them."""
    variables = frozenset(item for item in os.environ.items() if item[0].startswith("AWS_"))
    session = _session(os.getpid(), variables, _profile(options))
    region = options.region or session.get_config_variable("region") or "us-east-1"
    # The store retries. deltalake's own ten attempts last about three seconds, and do not cover truncated bodies.
    storage_options = {"AWS_REGION": region, "max_retries": "0", "timeout": f"{options.timeout_s:g}s"}
    if endpoint := _endpoint(options):
        allow_http = str(endpoint.lower().startswith("http://")).lower()
        storage_options |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": allow_http}
    if _endpoint(options) or options.addressing != "auto":
        is_virtual = str(options.addressing == "virtual").lower()
        storage_options |= {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": is_virtual}
    if options.requester_pays:
        storage_options["AWS_REQUEST_PAYER"] = "true"
    if options.sse:
        storage_options["AWS_SERVER_SIDE_ENCRYPTION"] = options.sse
    if options.sse_kms_key_id:
        storage_options["AWS_SSE_KMS_KEY_ID"] = options.sse_kms_key_id
    if options.anonymous:
        return storage_options | {"AWS_SKIP_SIGNATURE": "true"}
    credentials = session.get_credentials()
    if credentials is None:
        return storage_options
    frozen = credentials.get_frozen_credentials()
    storage_options |= {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key}
    return storage_options | ({"AWS_SESSION_TOKEN": frozen.token} if frozen.token else {})
