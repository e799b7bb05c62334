"""The wheel and the source archive: what they hold, and that the wheel labels with what it carries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest
from command import ENV
from packaging.requirements import Requirement
from versions import minimums

import segray
from segray.synthetic import dataset

REPO = Path(__file__).parents[1]

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Distribution:
    """What `python -m build` makes."""

    wheel: Path
    archive: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(REPO)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return Distribution(wheel, archive)


def in_wheel(built: Distribution) -> dict[str, bytes]:
    with zipfile.ZipFile(built.wheel) as files:
        return {name: files.read(name) for name in files.namelist()}


def sources(folder: str, pattern: str) -> set[str]:
    """The files of the repository below a folder, without what Python and tools leave there."""
    found = {str(path.relative_to(REPO)) for path in (REPO / folder).rglob(pattern) if path.is_file()}
    return {name for name in found if "__pycache__" not in name and not Path(name).name.startswith(".")}


def test_the_wheel_holds_the_package_and_its_configurations(built: Distribution) -> None:
    files = in_wheel(built)
    assert {name for name in files if name.startswith("segray/") and name.endswith(".py")} == sources("segray", "*.py")
    assert {"segray/py.typed", "segray/synthetic/model/stickers.xml", "segray/synthetic/model/stickers.bin"} <= set(
        files
    )
    assert sources("segray/analytics/reports/templates", "*") <= set(files)
    assert sources("segray/view/static", "*") <= set(files)
    for name in sources("configs", "*.yaml"):
        assert files[f"segray/{name}"] == (REPO / name).read_bytes()
    assert {name.split("/")[0] for name in files} == {"segray", f"segray-{segray.__version__}.dist-info"}


def test_the_metadata_says_version_types_and_true_minimums(built: Distribution) -> None:
    metadata = Parser().parsestr(in_wheel(built)[f"segray-{segray.__version__}.dist-info/METADATA"].decode())
    assert metadata["Version"] == segray.__version__
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    core = {requirement.name for requirement in required if requirement.marker is None}
    assert core <= {line.partition("==")[0] for line in minimums()}, "a dependency without a minimum is not tried"


def test_the_source_archive_holds_the_tests_and_what_they_read(built: Distribution) -> None:
    with tarfile.open(built.archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    for folder in ("segray", "tests", "jobs", "infra", "configs", "docs"):
        assert sources(folder, "*") <= names
    assert {"pyproject.toml", "constraints.txt", "README.md", ".dockerignore", ".ci/run"} <= names
    assert not {name for name in names if "__pycache__" in name}


@dataclass(frozen=True)
class Installed:
    """The files of the wheel, a folder to work in, and words that configure a run over a few scenes.

    The installed files alone are imported; the libraries are those of this environment.
    """

    site: Path
    folder: Path
    run: tuple[str, ...]

    def segray(self, *words: str) -> subprocess.CompletedProcess[str]:
        return called(["-m", "segray", *words], self.site, self.folder)


@pytest.fixture
def installed(built: Distribution, tmp_path: Path) -> Installed:
    site, folder = tmp_path / "site", tmp_path / "empty"
    folder.mkdir()
    dataset.write(tmp_path / "scenes", 4, 0)
    with zipfile.ZipFile(built.wheel) as files:
        files.extractall(site)
    where = called(["-c", "import segray; print(segray.__file__)"], site, folder)
    assert where.stdout.strip() == str(site / "segray" / "__init__.py")
    images, root = f"source.uri={tmp_path / 'scenes' / 'images'}", "output.root=labels"
    return Installed(site, folder, ("--config", "run.yaml", "--set", images, "--set", root))


def test_the_wheel_in_an_empty_folder_plans_with_the_configuration_that_it_writes(installed: Installed) -> None:
    """A plan reads, decodes and infers, in one process."""
    assert installed.segray("init", "--all", "run.yaml").returncode == 0
    planned = installed.segray("plan", *installed.run, "--set", "plan.sample_s=0", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["listed"]["images"] == 4


@pytest.mark.thorough
def test_the_wheel_in_an_empty_folder_labels_images_with_the_configuration_that_it_writes(installed: Installed) -> None:
    assert installed.segray("init", "--all", "run.yaml").returncode == 0
    labelled = installed.segray("label", *installed.run)
    assert labelled.returncode == 0, labelled.stderr
    assert "the label set holds 4 images" in labelled.stdout
    assert (installed.folder / "labels" / "images").is_dir()
    (page,) = (installed.folder / "labels").glob("_segray/runs/*/report.html")
    assert "Time of 4 images of the latest run, by stage" in page.read_text()


def called(arguments: Sequence[str], site: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **ENV, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=200
    )
