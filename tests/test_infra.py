"""What infra/ declares, checked without any cluster: schemas, what schemas miss, and that all it names is there."""

from __future__ import annotations

import ast
import copy
import fnmatch
import gzip
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Iterator, Mapping
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

import segray
from segray import config
from segray.cli import main

REPO = Path(__file__).parents[1]
INFRA = REPO / "infra"
OVERLAYS = ("base", "overlays/aws-spot", "overlays/s3-compatible", "overlays/intel-gpu")
SUBMIT = "segray submit --config /etc/segray/nightly.yaml"
LABEL = "segray label --config /etc/segray/nightly.yaml"

sys.path.insert(0, str(REPO / "jobs"))
rayjob = importlib.import_module("rayjob")


def constraint(package: str) -> str:
    found = re.search(rf"(?m)^{package}==(\S+)$", (REPO / "constraints.txt").read_text())
    assert found, package
    return found[1]


# ---- commands -------------------------------------------------------------------------------------


@cache
def commands() -> Any:
    return typer.main.get_command(main.app)


def check_segray(words: list[str]) -> None:
    """Raises what the command line would say: no such command, no such option, an argument too few."""
    command, rest = commands(), words[1:]
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, f"there is no {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(command.name, rest)


def check_ray(words: list[str]) -> None:
    from ray.scripts import scripts

    command: Any = scripts.cli
    rest = words[1:]
    while hasattr(command, "commands"):
        assert rest[0] in command.commands, f"there is no {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        assert not word.startswith("-") or word.partition("=")[0] in known, f"ray {command.name} has no {word}"


def called(text: str) -> Iterator[list[str]]:
    """Calls of segray and ray in a text of shell commands."""
    for call in re.findall(
        r"(?<![\w@./-])(?<!-[ng] )(?<!namespace )(?:/opt/segray/bin/)?((?:segray|ray) [a-z][^;&|\n]*)", text
    ):
        words = shlex.split(call.replace("\\", " "), comments=True)
        yield [words[0].rpartition("/")[2], *words[1:]]


def scripts() -> dict[str, str]:
    """By file: everything in infra/ that some shell will run."""
    cron = re.sub(r"(?m)^(\S+ ){5}segray ", "", (INFRA / "cron/segray").read_text())
    found = {str(INFRA / "leave.sh"): (INFRA / "leave.sh").read_text(), str(INFRA / "cron/segray"): cron}
    for path in (INFRA / "systemd").glob("*.service"):
        lines = [line.partition("=")[2] for line in path.read_text().splitlines() if line.startswith("Exec")]
        inner = [shlex.split(line)[2].replace("$$", "$") if " -c " in line else line for line in lines]
        found[str(path)] = "\n".join(inner)
    for path in (INFRA / "airflow").glob("*.py"):
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        found[str(path)] = "\n".join(text for text in texts if isinstance(text, str) and "/etc/segray" in text)
    launcher = yaml.safe_load((INFRA / "aws/cluster.yaml").read_text())
    found["aws"] = "\n".join(launcher["head_start_ray_commands"] + launcher["worker_start_ray_commands"])
    found["rayjob"] = yaml.safe_load((INFRA / "kubernetes/base/rayjob.yaml").read_text())["spec"]["entrypoint"]
    return {name: without_comments(text).replace("\\\n", " ") for name, text in found.items()}


def without_comments(text: str) -> str:
    return re.sub(r"(?m)^\s*#.*$", "", text)


@pytest.mark.parametrize("name", scripts(), ids=lambda name: Path(name).name)
def test_every_command_and_option_exists(name: str) -> None:
    calls = list(called(scripts()[name]))
    assert calls
    for words in calls:
        (check_segray if words[0] == "segray" else check_ray)(words)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("segray lable a.yaml", "AssertionError", "there is no segray lable a.yaml"),
        ("segray models lst", "AssertionError", "there is no segray models lst"),
        ("segray submit a.yaml", "MissingParameter", "Missing option '--address'"),
        ("segray models inspect", "MissingParameter", "Missing argument 'NAME|FILE'"),
        ("segray label --no-such a.yaml", "NoSuchOption", "No such option"),
        ("segray label --limit many a.yaml", "BadParameter", "Invalid value for '--limit'"),
        ("ray strat --head", "AssertionError", "there is no ray strat --head"),
        ("ray start --hed", "AssertionError", "ray start has no --hed"),
    ],
)
def test_a_command_that_does_not_exist_would_be_noticed(text: str, kind: str, message: str) -> None:
    (words,) = called(text)
    with pytest.raises(Exception, match=r".") as caught:
        (check_segray if words[0] == "segray" else check_ray)(words)
    assert type(caught.value).__name__ == kind  # Typer's own come from click, or from its copy of click.
    assert message in getattr(caught.value, "format_message", lambda: str(caught.value))()


def test_commands_that_exist_are_not_noticed() -> None:
    for words in called("segray label --limit 5 a.yaml && segray submit a.yaml --address http://head:8265"):
        check_segray(words)
    for words in called("ray start --head --port=6379; ray job submit --address http://head:8265"):
        check_ray(words)


def test_every_schedule_runs_the_same_command_at_the_same_time() -> None:
    texts = scripts()
    for name, text in texts.items():
        if Path(name).name in ("segray", "segray-nightly.service", "segray_nightly.py"):
            assert SUBMIT in text, name
        elif "nightly" in name:
            assert LABEL in text, name
    assert texts["rayjob"].startswith(LABEL)
    assert "\n0 2 * * * segray " in (INFRA / "cron/segray").read_text()
    assert "OnCalendar=*-*-* 02:00:00 UTC" in (INFRA / "systemd/segray-nightly.timer").read_text()
    cron = yaml.safe_load((INFRA / "kubernetes/base/cronjob.yaml").read_text())["spec"]
    assert (cron["schedule"], cron["timeZone"]) == ("0 2 * * *", "Etc/UTC")
    for path in (INFRA / "airflow").glob("*.py"):
        assert 'schedule="0 2 * * *"' in path.read_text()


def test_no_schedule_can_overlap_itself_and_missed_ticks_are_not_piled_up() -> None:
    cron = yaml.safe_load((INFRA / "kubernetes/base/cronjob.yaml").read_text())["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert cron["startingDeadlineSeconds"] >= 600  # below ten seconds the controller may never start one
    for path in (INFRA / "airflow").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        given = {word.arg: word.value for call in calls for word in call.keywords}
        assert ast.literal_eval(given["max_active_runs"]) == 1
        assert ast.literal_eval(given["catchup"]) is False
    service = (INFRA / "systemd/segray-nightly.service").read_text()
    assert "Type=oneshot" in service  # systemd starts no second one while it goes on
    assert "Persistent=yes" in (INFRA / "systemd/segray-nightly.timer").read_text()
    assert "flock -n" in (INFRA / "cron/segray").read_text()


# ---- configurations and files ---------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(INFRA.rglob("nightly.yaml")), ids=lambda path: str(path.parent.name))
def test_every_configuration_loads(path: Path) -> None:
    assert config.load(path).output.root


def test_every_yaml_file_loads() -> None:
    paths = [path for pattern in ("*.yaml", "*.yml") for path in INFRA.rglob(pattern)]
    assert paths
    for path in paths:
        assert all(each is not None for each in yaml.safe_load_all(path.read_text())), path


def test_kustomizations_name_files_that_are_there_and_no_file_is_left_out() -> None:
    folder = INFRA / "kubernetes"
    named = set()
    for path in folder.rglob("kustomization.yaml"):
        read = yaml.safe_load(path.read_text())
        files = [*read.get("resources", []), *read.get("components", [])]
        files += [name for each in read.get("configMapGenerator", []) for name in each["files"]]
        files += [each["path"] for each in read.get("patches", []) if "path" in each]
        for name in files:
            target = (path.parent / name).resolve()
            assert target.exists(), f"{path}: {name}"
            named.add(target / "kustomization.yaml" if target.is_dir() else target)
    tops = {(folder / name / "kustomization.yaml").resolve() for name in OVERLAYS}
    spare = {path.resolve() for path in folder.rglob("*.yaml")} - named - tops
    assert spare == {(folder / "components/models/kustomization.yaml").resolve()}


# ---- Kubernetes -----------------------------------------------------------------------------------


@cache
def rendered(overlay: str) -> tuple[dict[str, Any], ...]:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl renders kustomizations, without a cluster; it is not here")
    done = subprocess.run(
        ["kubectl", "kustomize", INFRA / "kubernetes" / overlay], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(kind: str, overlay: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [each for each in rendered(overlay) if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return copy.deepcopy(found)


@cache
def crd(kind: str) -> jsonschema.Draft202012Validator:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("set KUBERAY_CRDS to the folder of KubeRay's ray.io_*.yaml.gz")
    path = Path(folder) / f"ray.io_{kind}.yaml.gz"
    definition = yaml.load(gzip.decompress(path.read_bytes()), yaml.CSafeLoader)
    (schema,) = [each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"] if each["name"] == "v1"]
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(strict(schema))


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """As the API server reads it, but unknown fields are errors instead of dropped in silence."""
    if schema.pop("x-kubernetes-int-or-string", False):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for value in schema.get("properties", {}).values():
        strict(value)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            strict(schema[name])
    return schema


def problems(job: dict[str, Any]) -> list[str]:
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in crd("rayjobs").iter_errors(job)]


@pytest.mark.integration
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rayjob_is_what_kuberay_takes(overlay: str) -> None:
    assert problems(of_kind("RayJob", overlay)) == []


@pytest.mark.integration
def test_a_wrong_rayjob_would_be_noticed() -> None:
    job = of_kind("RayJob", "base")
    job["spec"]["ttlSecondsAfterFinish"] = 1
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] = "20"
    assert len(problems(job)) == 2


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_the_schema_does_not_say_of_a_rayjob_holds_too(overlay: str) -> None:
    """From KubeRay's validation.go, Ray and Kubernetes: refused by the operator, or worse, taken and not done."""
    job = of_kind("RayJob", overlay)
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])
    assert len("segray-nightly") <= 47
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    assert spec["suspend"]
    assert spec["shutdownAfterJobFinishes"], "a job that may be suspended, or has a TTL, must end its cluster"
    assert not spec.get("clusterSelector"), "backoffLimit needs clusters of its own"
    assert not spec.get("deletionStrategy"), "excludes shutdownAfterJobFinishes"
    assert spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
    assert cluster["rayVersion"] == constraint("ray")
    assert tuple(map(int, cluster["rayVersion"].split(".")[:2])) >= (2, 52), "token mode"
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = cluster["workerGroupSpecs"]
    assert len({group["groupName"] for group in groups}) == len(groups)
    for group in [cluster["headGroupSpec"], *groups]:
        pod = group["template"]["spec"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert pod["restartPolicy"] == "Never", "autoscaler v2"
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["serviceAccountName"] == "segray"
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {"name": "metrics", "containerPort": 8080} in container["ports"]
    for group in groups:
        pod = group["template"]["spec"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert (hook[0], int(hook[1]) < pod["terminationGracePeriodSeconds"] <= 120) == ("segray-leave", True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pools_fit_their_groups_and_leave_one_cpu_to_ray(overlay: str) -> None:
    data = of_kind("ConfigMap", overlay)["data"]["nightly.yaml"]
    chosen = config.validate(yaml.safe_load(data), overlay)
    assert chosen.cluster.autoscaling
    groups = of_kind("RayJob", overlay)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert len(groups) == len(chosen.workers)
    for pool, group in zip(chosen.workers, groups, strict=True):
        has = {"CPU": float(group["rayStartParams"]["num-cpus"])}
        has |= json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
        assert {"CPU": pool.num_cpus, **pool.resources} == has
        assert pool.count == group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert float(limits["cpu"]) == (pool.num_cpus or 0) + 1
        assert 1.5 * (pool.max_rss_mb or 10**6) <= 1024 * float(limits["memory"].removesuffix("Gi"))
    smallest = min(pool.num_cpus or 0 for pool in chosen.workers if not pool.resources)
    for group in groups:
        if "resources" in group["rayStartParams"]:
            assert float(group["rayStartParams"]["num-cpus"]) < smallest, "a CPU worker would take a GPU's place"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_cronjob_starts_that_rayjob_and_may_do_nothing_else(overlay: str) -> None:
    pod = of_kind("CronJob", overlay)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    interpreter, script, template, name = container["command"]
    assert (interpreter, template, name) == ("python", of_kind("RayJob", overlay)["metadata"]["name"], "segray-nightly")
    assert f"jobs/{Path(script).name}" in copied()
    role = of_kind("Role", overlay)
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "create", "delete"]}]
    assert pod["serviceAccountName"] == of_kind("RoleBinding", overlay)["subjects"][0]["name"] == "segray-starter"
    accounts = {each["metadata"]["name"] for each in rendered(overlay) if each["kind"] == "ServiceAccount"}
    assert accounts == {"segray", "segray-starter"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_one_image_of_this_version_everywhere(overlay: str) -> None:
    images = set(re.findall(r"'image': '([^']+)'", str(rendered(overlay))))
    assert images == {f"registry.example.com/segray:{segray.__version__}"}
    launcher = yaml.safe_load((INFRA / "aws/cluster.yaml").read_text())
    assert {launcher["docker"]["image"]} == images


def test_the_models_component_mounts_the_claim_in_head_and_workers() -> None:
    patches = yaml.safe_load((INFRA / "kubernetes/components/models/mount.yaml").read_text())
    claim = yaml.safe_load((INFRA / "kubernetes/components/models/claim.yaml").read_text())
    assert str(patches).count(f"'claimName': '{claim['metadata']['name']}', 'readOnly': True") == 2
    assert str(patches).count("'mountPath': '/models', 'readOnly': True") == 2


# ---- the starter ----------------------------------------------------------------------------------


class Kubernetes:
    """RayJobs in memory. ends: how each made one has ended by the second look."""

    def __init__(self, *ends: tuple[str, str]) -> None:
        spec = {"suspend": True, "entrypoint": "segray label"}
        self.jobs = {"segray": {"metadata": {"name": "segray", "labels": {"a": "b"}, "uid": "0"}, "spec": spec}}
        self.made, self._ends = 0, list(ends)

    def ask(self, method: str, name: str, body: Mapping[str, Any] | None) -> Any:
        if method == "GET":
            found = copy.deepcopy(self.jobs.get(name))
            if name in self.jobs and name != "segray" and "status" not in self.jobs[name]:
                state, status = self._ends.pop(0)
                self.jobs[name]["status"] = {"jobDeploymentStatus": state, "jobStatus": status}
            return found
        if method == "DELETE":
            assert (body or {})["preconditions"]["uid"] == self.jobs[name]["metadata"]["uid"]
            return self.jobs.pop(name)
        assert body
        if body["metadata"]["name"] in self.jobs:
            raise urllib.error.HTTPError("", 409, "AlreadyExists", {}, None)  # type: ignore[arg-type]
        self.made += 1
        self.jobs[body["metadata"]["name"]] = {**body, "metadata": {**body["metadata"], "uid": str(self.made)}}
        return body


def test_a_tick_starts_the_job_waits_for_it_and_tells_how_it_went() -> None:
    cluster = Kubernetes(("Complete", "SUCCEEDED"), ("Failed", "FAILED"))
    for made, code in ((1, 0), (2, 3)):
        assert rayjob.start(cluster.ask, "segray", "nightly", 0)
        assert rayjob.wait(cluster.ask, "nightly", 0) == code
        assert cluster.made == made  # the ended one gave way
    job = cluster.jobs["nightly"]
    assert job["spec"] == {"suspend": False, "entrypoint": "segray label"}
    assert job["metadata"]["labels"] == {"a": "b"}


def test_a_second_tick_meanwhile_starts_nothing_and_waits_for_the_first() -> None:
    cluster = Kubernetes(("Running", "RUNNING"))
    assert rayjob.start(cluster.ask, "segray", "nightly", 0)
    assert not rayjob.start(cluster.ask, "segray", "nightly", 0)  # not seen by the operator yet
    assert not rayjob.start(cluster.ask, "segray", "nightly", 0)
    assert cluster.made == 1
    cluster.jobs["nightly"]["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    assert rayjob.wait(cluster.ask, "nightly", 0) == 0


def test_of_two_ticks_at_the_same_moment_one_makes_the_job() -> None:
    cluster = Kubernetes(("Complete", "SUCCEEDED"))

    def late(method: str, name: str, body: Mapping[str, Any] | None) -> Any:
        return None if (method, name) == ("GET", "nightly") else cluster.ask(method, name, body)

    assert rayjob.start(cluster.ask, "segray", "nightly", 0)
    assert not rayjob.start(late, "segray", "nightly", 0)
    assert cluster.made == 1


def test_an_api_that_is_away_is_waited_for_and_a_deleted_job_is_no_success() -> None:
    cluster = Kubernetes(("Complete", "SUCCEEDED"))
    rayjob.start(cluster.ask, "segray", "nightly", 0)
    answers = iter([urllib.error.URLError("refused"), TimeoutError()])

    def shaky(method: str, name: str, body: Mapping[str, Any] | None) -> Any:
        if (failure := next(answers, None)) is not None:
            raise failure
        return cluster.ask(method, name, body)

    assert rayjob.wait(shaky, "nightly", 0) == 0
    with pytest.raises(urllib.error.URLError):
        rayjob.wait(lambda *_: (_ for _ in ()).throw(urllib.error.URLError("gone")), "nightly", 0, silent_s=0)
    assert rayjob.wait(cluster.ask, "another", 0) == 3
    with pytest.raises(SystemExit, match="there is no RayJob absent"):
        rayjob.start(cluster.ask, "absent", "another", 0)


def test_the_starter_speaks_to_the_api_as_a_pod_does(tmp_path: Path) -> None:
    asked = []

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(404 if self.path.endswith("absent") else 200)
            self.end_headers()
            self.wfile.write(b'{"kind": "RayJob"}')

        def log_message(self, *_: object) -> None: ...

    for name, text in (("token", "secret\n"), ("namespace", "labels")):
        (tmp_path / name).write_text(text)
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        port = str(server.server_address[1])
        environ = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": port}
        ask = rayjob.api({**environ, "KUBERNETES_SERVICE_SCHEME": "http"}, tmp_path)
        assert ask("GET", "nightly", None) == {"kind": "RayJob"}
        assert ask("GET", "absent", None) is None
        server.shutdown()
    assert asked[0] == ("/apis/ray.io/v1/namespaces/labels/rayjobs/nightly", "Bearer secret")


# ---- the image ------------------------------------------------------------------------------------


def dockerfile() -> list[tuple[str, str]]:
    """Instructions with their arguments, continuation lines joined."""
    text = without_comments((INFRA / "docker/Dockerfile").read_text()).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def copied() -> list[str]:
    """What is copied from the repository into the image."""
    found = []
    for name, arguments in dockerfile():
        if name == "COPY" and "--from" not in arguments:
            found += arguments.split()[:-1]
    return found


def test_the_image_is_pinned_small_and_not_root() -> None:
    lines = dockerfile()
    bases = [arguments.split()[0] for name, arguments in lines if name == "FROM"]
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])
    runs = [arguments for name, arguments in lines if name == "RUN"]
    for run in runs:
        assert ("pip install" in run) <= ("--no-cache-dir" in run and "-c constraints.txt" in run)
        assert ("apt-get install" in run) <= ("--no-install-recommends" in run and "rm -rf /var/lib/apt/lists" in run)
        assert "sudo" not in run
        assert "curl" not in run
    names = [name for name, _ in lines]
    assert "ADD" not in names
    users = [arguments for name, arguments in lines if name == "USER"]
    assert users == ["1000:1000"], "a number, which runAsNonRoot can check"
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    for name, arguments in lines:
        if name in ("CMD", "ENTRYPOINT"):
            assert isinstance(json.loads(arguments), list)
        if name == "HEALTHCHECK":
            assert isinstance(json.loads(arguments.partition("CMD ")[2]), list)
    assert "HEALTHCHECK" in names
    secret = re.compile(r"KEY|SECRET|TOKEN=", re.IGNORECASE)
    assert not any(secret.search(arguments) for name, arguments in lines if name in ("ENV", "ARG"))


def test_what_is_copied_into_the_image_is_there_and_not_ignored() -> None:
    rules = [line for line in (REPO / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    for name in copied():
        name = name.removeprefix("./")
        assert (REPO / name).exists(), name
        last = ""
        for rule in rules:
            pattern = rule.lstrip("!")
            if fnmatch.fnmatch(name, pattern) or name == pattern or name.startswith(f"{pattern}/"):
                last = rule
        assert last.startswith("!"), f"{name} is ignored by {last}"


def test_everything_that_infra_calls_is_in_the_image() -> None:
    assert "infra/leave.sh" in copied()
    entries = str(dockerfile())
    assert "/usr/local/bin/segray-leave" in entries
    assert "/opt/segray/jobs/" in entries


def test_the_shell_script_is_one() -> None:
    done = subprocess.run(["sh", "-n", INFRA / "leave.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (INFRA / "leave.sh").stat().st_mode & 0o111


# ---- machines -------------------------------------------------------------------------------------


def test_the_launchers_file_is_what_ray_takes() -> None:
    from ray import autoscaler

    schema = json.loads((Path(autoscaler.__file__).with_name("ray-schema.json")).read_text())
    values = yaml.safe_load((INFRA / "aws/cluster.yaml").read_text())
    jsonschema.validate(values, schema)
    wrong = {**values, "max_worker": 3}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)
    kinds = values["available_node_types"]
    assert values["head_node_type"] in kinds
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) <= values["max_workers"]
    assert f"--num-cpus={kinds['cpu']['resources']['CPU']}" in values["worker_start_ray_commands"][-1]
    assert "--num-cpus=0" in values["head_start_ray_commands"][-1]
    for command in (values["head_start_ray_commands"][-1], values["worker_start_ray_commands"][-1]):
        assert "RAY_AUTH_MODE=token" in command


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    """With /opt/segray's programs played by one that exists."""
    names = []
    for path in (INFRA / "systemd").glob("segray-*"):
        text = re.sub(r"=/opt/segray/bin/\w+", "=/bin/true", path.read_text())
        (tmp_path / path.name).write_text(text)
        names.append(tmp_path / path.name)
    done = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, text=True, timeout=60)
    told = [line for line in done.stderr.splitlines() if "segray" in line]
    assert (done.returncode, told) == (0, []), done.stderr


def test_units_name_what_the_environment_file_has_and_the_mode_is_always_said() -> None:
    given = set(re.findall(r"(?m)^(\w+)=", (INFRA / "systemd/segray.env").read_text()))
    assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= given
    for path in [*(INFRA / "systemd").glob("*.service"), INFRA / "cron/segray"]:
        used = set(re.findall(r"\$+\{?([A-Z][A-Z_]+)\}?", without_comments(path.read_text())))
        assert used <= given, path
        assert "/etc/segray/segray.env" in path.read_text()
    timer = (INFRA / "systemd/segray-nightly.timer").read_text()
    assert "Unit=" not in timer  # so it is the service of its name, which is there:
    assert (INFRA / "systemd/segray-nightly.service").exists()


# ---- the pages ------------------------------------------------------------------------------------


def blocks(page: str) -> list[tuple[str, str]]:
    """Shell blocks of a page, each with the text since the block before."""
    parts = re.split(r"```(?:sh)?\n", (REPO / "docs" / page).read_text())
    return list(zip(parts[::2], parts[1::2], strict=False))


def test_every_command_of_the_tutorial_exists_and_says_how_far_it_was_tried() -> None:
    found = blocks("cluster.md")
    for before, block in found:
        assert re.search(r"\b(Run|Checked)\b", before), block
        for words in called(block.replace("\\\n", " ")):
            (check_segray if words[0] == "segray" else check_ray)(words)
        for name in re.findall(r"(?<![\w.@-])(?:/opt/segray/src/)?((?:infra|configs|jobs)/[\w./-]+)", block):
            assert (REPO / name).exists(), name
    assert {Path(name).name for name in re.findall(r"segray-\w+\.(?:service|timer)", str(found))} == {
        path.name for path in (INFRA / "systemd").glob("segray-*.*")
    }


@pytest.mark.parametrize("page", ["cluster.md", "sizing.md"])
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (REPO / "docs" / page).read_text()
    for name in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (REPO / "docs" / name).exists(), name
    for name in re.findall(r"`((?:infra|configs|jobs|docs)/[\w./-]+)`", text):
        assert (REPO / name).exists(), name


def test_the_sizing_page_computes_what_it_says() -> None:
    lines = (REPO / "docs/sizing.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rows = [list(map(float, row[1:])) for row in cells if len(row) == 8 and row[1].isdigit()]
    assert len(rows) == 3
    for cpu_ms, *found in rows:
        kb = 4000 if cpu_ms > 700 else 100
        node_hours = cpu_ms * 1e6 / 3.6e6 / 0.85 / 7
        images_per_s = 7 * 0.85 / (cpu_ms / 1000)
        expected = [7 * node_hours, node_hours, images_per_s, images_per_s * kb * 8 / 1000]
        assert found[:4] == pytest.approx(expected, rel=0.01, abs=0.5)
        assert found[4:] == pytest.approx([node_hours * 0.36, node_hours * 0.15], abs=0.01)
