"""What can be wrong with a cluster is said before there is a job; how a job ended is said in the run's own words."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from command import write_config
from web import Web

import segray
from segray import config
from segray.cli import main, ray_jobs
from segray.errors import AccessError, ConfigError, ConflictError, InfrastructureError, SegrayError, UserError

JOB = "segray-photos-1"


def request(tmp_path: Path, **more: Any) -> ray_jobs.Request:
    path = write_config(tmp_path / "run.yaml", "s3://raw/photos", more.pop("root", "s3://labels/Photos 2026/"))
    return ray_jobs.Request(path, config.load(path), **more)


def cluster(web: Web, *, ray: str = version("ray"), jobs: Any = ()) -> ray_jobs.Dashboard:
    """A dashboard as Ray answers: one node with two CPUs."""
    nodes = [{"state": "ALIVE", "resources_total": {"CPU": 2.0}}, {"state": "DEAD", "resources_total": {"CPU": 64.0}}]
    web.put("/api/version", json.dumps({"ray_version": ray}).encode())
    web.put("/api/v0/nodes?limit=10000&detail=1", json.dumps({"data": {"result": {"result": nodes}}}).encode())
    web.put("/api/jobs/", json.dumps(list(jobs)).encode())
    return ray_jobs.Dashboard(web.root, {})


def test_the_id_is_that_of_the_label_set_however_it_is_written(tmp_path: Path) -> None:
    stems = {request(tmp_path, root=root).stem for root in ("s3://labels/Photos 2026/", "s3://labels/Photos 2026")}
    assert len(stems) == 1
    assert stems.pop().startswith("segray-photos-2026-")
    assert request(tmp_path, root="s3://other/Photos 2026").stem not in stems


def test_the_driver_gets_what_the_shell_would_break(tmp_path: Path) -> None:
    asked = request(
        tmp_path, overrides=["source.uri=s3://a/it's $HOME"], arguments=["--limit", "3", "--retry-failed=read"]
    )
    assert asked.entrypoint == (
        """python -m segray label --config run.yaml --set 'source.uri=s3://a/it'"'"'s $HOME' --log-format text """
        "--limit 3 --retry-failed=read"
    )


def test_the_day_is_that_of_the_submission_and_each_days_root_a_label_set_of_its_own(tmp_path: Path) -> None:
    path = write_config(tmp_path / "run.yaml", "s3://raw/dt={yesterday}", "s3://labels/dt={today}")
    asked = [ray_jobs.Request(path, config.load(path, [f"as_of={day}"])) for day in ("2026-11-20", "2026-11-21")]
    assert "--as-of 2026-11-20 --log-format" in asked[0].entrypoint
    assert asked[0].stem != asked[1].stem


def test_each_attempt_has_the_next_id_and_none_begins_beside_another(tmp_path: Path, web: Web) -> None:
    asked = request(tmp_path)
    others = [{"submission_id": "segray-else-9", "status": "RUNNING"}, {"submission_id": None, "status": "RUNNING"}]
    assert ray_jobs.check(asked, cluster(web, jobs=others)) == f"{asked.stem}-1"
    ended = [{"submission_id": f"{asked.stem}-{n}", "status": s} for n, s in ((2, "FAILED"), (10, "SUCCEEDED"))]
    assert ray_jobs.check(asked, cluster(web, jobs=[*others, *ended])) == f"{asked.stem}-11"
    with pytest.raises(ConflictError, match=r"(?s)label set runs.*-12.*pending.*ray job stop"):
        ray_jobs.check(asked, cluster(web, jobs=[*ended, {"submission_id": f"{asked.stem}-12", "status": "PENDING"}]))


def test_a_driver_that_fits_no_living_node_is_refused(tmp_path: Path, web: Web) -> None:
    assert ray_jobs.check(request(tmp_path, cpus=2.0), cluster(web)).endswith("-1")
    for more in ({"cpus": 3.0}, {"resources": {"intel_gpu": 1.0}}):
        with pytest.raises(ConfigError, match="no node of the cluster can hold the driver"):
            ray_jobs.check(request(tmp_path, **more), cluster(web))


def test_a_head_that_does_not_know_of_itself_yet_is_waited_for(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "_POLL_S", 0.0)
    answers = iter([[], [{}], [{"CPU": 2.0}]])
    monkeypatch.setattr(ray_jobs.Dashboard, "nodes", lambda dashboard: next(answers))
    assert ray_jobs.check(request(tmp_path, cpus=2.0), cluster(web)).endswith("-1")
    assert list(answers) == []


def test_paths_that_mean_nothing_on_the_cluster_are_refused(tmp_path: Path, web: Web) -> None:
    with pytest.raises(ConfigError, match=r"output\.root is a relative path"):
        ray_jobs.check(request(tmp_path, root="labels"), cluster(web))
    assert web.asked == []


def test_another_version_of_ray_is_named(tmp_path: Path, web: Web) -> None:
    with pytest.raises(ConfigError, match=r"(?s)another version of Ray.*1\.13\.0 there.*install ray==1\.13\.0"):
        ray_jobs.check(request(tmp_path), cluster(web, ray="1.13.0"))


@pytest.mark.parametrize("address", ["ray://head:10001", "head:6379", "auto", "http://", "http://user:pw@head:8265"])
def test_what_is_no_dashboards_address_is_refused_unasked(address: str) -> None:
    with pytest.raises(ConfigError, match="http://HEAD:8265") as refused:
        ray_jobs.Dashboard(address, {})
    assert "pw@" not in str(refused.value)


@pytest.mark.parametrize(
    ("page", "said", "kind"),
    [
        ({"content": b"<html>", "statuses": []}, "not a Ray dashboard", ConfigError),
        ({"content": b"{}", "statuses": []}, "not a Ray dashboard", ConfigError),
        ({"content": b"", "statuses": [404]}, "not a Ray dashboard", ConfigError),
        ({"content": b"", "statuses": [401]}, "asks for a token", AccessError),
    ],
)
def test_whoever_else_answers_is_told_from_ray(web: Web, page: Any, said: str, kind: type[SegrayError]) -> None:
    web.put("/api/version", **page)
    with pytest.raises(kind, match=said):
        ray_jobs.Dashboard(web.root, {}).check()


def test_nobody_there() -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"(?s)no Ray dashboard answers.*refused.*8265"):
            ray_jobs.Dashboard(address, {}).check()


def test_a_port_that_answers_in_binary_is_named_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(
                    b"\x00\x00\x18\x04\x00\x00\x00\x00\x00\x00\x04\x00\x40\x00\x00\n"
                )  # HTTP/2, as Ray's head

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConfigError) as refused:
            ray_jobs.Dashboard(f"http://127.0.0.1:{server.getsockname()[1]}", {}).check()
        thread.join(60)
    assert "not a Ray dashboard" in str(refused.value)
    assert "an answer that is not HTTP" in str(refused.value)
    assert "\\x00" not in str(refused.value)


def test_the_port_of_rays_head_is_said_to_be_the_wrong_one() -> None:
    hint = ray_jobs.Dashboard("http://head:6379", {})._not_a_dashboard("").hint
    assert "6379 is the port at which nodes join" in hint
    assert "6379" not in ray_jobs.Dashboard("http://head:8265", {})._not_a_dashboard("").hint


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_dashboard_below_a_path_is_asked_there_with_the_headers_of_the_environment(ending: str) -> None:
    requests: list[tuple[str, str | None]] = []

    class Ingress(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, self.headers.get("X-Team")))
            body = json.dumps({"ray_version": version("ray")}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Ingress) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/ray{ending}"
        dashboard = ray_jobs.Dashboard(address, {"RAY_JOB_HEADERS": '{"X-Team": "vision"}'})
        dashboard.check()
        with dashboard.client() as client:
            client.get_version()
        server.shutdown()
    assert requests[0] == ("/ray/api/version", "vision")
    assert requests[-1] == ("/ray/api/version", "vision")  # Ray's own client
    assert {team for _, team in requests} == {"vision"}
    assert all(path.startswith("/ray/api/") for path, _ in requests)


@pytest.mark.parametrize("headers", ["X-Team: vision", '["a"]', '{"a": 1}'])
def test_headers_that_are_no_object_of_texts_are_refused(headers: str) -> None:
    with pytest.raises(ConfigError, match="RAY_JOB_HEADERS is not a JSON object"):
        ray_jobs.Dashboard("http://head:8265", {"RAY_JOB_HEADERS": headers})


def test_the_token_is_taken_from_where_ray_takes_it(tmp_path: Path, web: Web) -> None:
    (tmp_path / "token").write_text("from-file\n")
    file = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    modes = [
        ({}, None),
        ({"RAY_AUTH_TOKEN": "t"}, "t"),
        (file, "from-file"),
        ({**file, "RAY_AUTH_TOKEN": "t"}, "t"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}, None),
    ]
    for environ, token in modes:
        dashboard = ray_jobs.Dashboard(web.root, environ)
        assert dashboard.auth_mode == ("token" if token else "disabled")
        assert dashboard._token == token
    with pytest.raises(ConfigError, match="there is no token"):
        ray_jobs.Dashboard(web.root, {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)})
    web.put("/api/version", b"", statuses=[403])
    with pytest.raises(AccessError, match="refuses the token") as refused:
        ray_jobs.Dashboard(web.root, {"RAY_AUTH_TOKEN": "sEcReT"}).check()
    assert "sEcReT" not in str(refused.value)


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "STOPPED", "driver_exit_code": 0}, 130),
        ({"status": "FAILED", "driver_exit_code": 2}, 2),
        ({"status": "FAILED", "driver_exit_code": 3}, 3),
        ({"status": "FAILED", "driver_exit_code": 130}, 130),
    ],
)
def test_the_runs_own_exit_code_is_the_commands(told: dict[str, Any], code: int) -> None:
    assert ray_jobs._outcome(told, JOB, None, segray_missing=False).exit_code == code


@pytest.mark.parametrize(
    ("told", "missing", "kind", "said"),
    [
        (
            {"status": "FAILED", "driver_exit_code": 137},
            False,
            InfrastructureError,
            "exit code 137.*run the same command again",
        ),
        ({"status": "FAILED", "message": "x\nruntime_env failed"}, False, InfrastructureError, "runtime_env failed"),
        ({"status": "FAILED", "driver_exit_code": 127}, False, UserError, "no segray.*--python"),
        ({"status": "FAILED", "driver_exit_code": 1}, True, UserError, "No module named segray"),
    ],
)
def test_ends_that_are_not_the_runs_say_whose_they_are(
    told: dict[str, Any], missing: bool, kind: type[SegrayError], said: str
) -> None:
    with pytest.raises(kind, match=f"(?s){said}"):
        ray_jobs._outcome(told, JOB, None, segray_missing=missing)


def test_a_driver_of_another_version_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ray_jobs.VERSION_ENV, "0.0.1")
    assert main.run(["label", "--config", "any.yaml"]) == 2
    assert f"{segray.__version__} on the cluster, 0.0.1 on the client" in capsys.readouterr().err


def test_a_job_that_stays_pending_is_called_off(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(ray_jobs.Dashboard, "stop", lambda self, job: stopped.append(job))
    monkeypatch.setattr(ray_jobs, "_POLL_S", 0.01)
    web.put(f"/api/jobs/{JOB}", json.dumps({"status": "PENDING", "message": "waiting for resources"}).encode())
    with pytest.raises(InfrastructureError, match=r"(?s)did not start within 0 s.*waiting for resources"):
        ray_jobs.follow(ray_jobs.Dashboard(web.root, {}), JOB, 0.05, print)
    assert stopped == [JOB]


def test_a_head_that_has_no_agent_yet_is_waited_for_and_any_other_refusal_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_jobs, "_POLL_S", 0.0)
    answers = iter(
        [RuntimeError("500: No available agent to submit job"), None, RuntimeError("the id is already taken")]
    )

    def submit_job() -> None:
        if (answer := next(answers)) is not None:
            raise answer

    ray_jobs._submit_until_agent(submit_job)
    with pytest.raises(RuntimeError, match="already taken"):
        ray_jobs._submit_until_agent(submit_job)
    monkeypatch.setattr(ray_jobs, "_SILENT_S", -1.0)
    with pytest.raises(RuntimeError, match="No available agent"):
        ray_jobs._submit_until_agent(lambda: (_ for _ in ()).throw(RuntimeError("No available agent")))


def test_a_broken_connection_to_the_log_goes_on_where_it_was(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_POLL_S", 0.0)
    whole = ["first\n", "second\nthi", "rd\nfourth\n"]
    refused = [ConnectionError("refused"), RuntimeError("502"), aiohttp.ServerDisconnectedError()]
    breaks: list[Exception | int] = [*refused, 1, aiohttp.ClientError(), 2, 3]

    class Log:
        def __init__(self, chunks: int) -> None:
            self._chunks = chunks

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            for chunk in whole[: self._chunks]:
                yield chunk
            if self._chunks < len(whole):
                raise aiohttp.ServerDisconnectedError

    @contextmanager
    def client(dashboard: ray_jobs.Dashboard) -> Iterator[Log]:
        found = breaks.pop(0)
        if isinstance(found, Exception):
            raise found
        yield Log(found)

    monkeypatch.setattr(ray_jobs, "_LOST_CONTACT", 4)
    monkeypatch.setattr(ray_jobs.Dashboard, "client", client)
    web.put(f"/api/jobs/{JOB}", json.dumps({"status": "SUCCEEDED", "driver_exit_code": 0}).encode())
    lines: list[str] = []
    assert ray_jobs.follow(ray_jobs.Dashboard(web.root, {}), JOB, 60, lines.append).exit_code == 0
    assert lines == ["first", "second", "third", "fourth"]
    assert breaks == []


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("error: interrupted; everything finished so far is kept\n  do:    run the same command again to resume\n", ""),
        ("3 of 8 images\n", "stopped; run the same command again to resume"),
    ],
)
def test_a_stopped_job_is_reported_once(web: Web, monkeypatch: pytest.MonkeyPatch, log: str, message: str) -> None:
    class Log:
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield log

    @contextmanager
    def client(dashboard: ray_jobs.Dashboard) -> Iterator[Log]:
        yield Log()

    monkeypatch.setattr(ray_jobs.Dashboard, "client", client)
    web.put(f"/api/jobs/{JOB}", json.dumps({"status": "STOPPED"}).encode())
    outcome = ray_jobs.follow(ray_jobs.Dashboard(web.root, {}), JOB, 60, print)
    assert (outcome.exit_code, outcome.message) == (130, message)
