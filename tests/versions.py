"""Try segray with the lowest or with the newest releases of its dependencies.

    python tests/versions.py lowest
    python tests/versions.py newest

The script builds the source archive and the wheel, and makes a new virtual environment. It installs the wheel alone.
In an empty folder it runs `segray quickstart`, and it labels a folder of images with the shipped configuration. Then it
installs what the tests need and runs those of the unpacked source archive that need neither Ray nor a server.

lowest: each direct dependency has the version that pyproject.toml declares as its minimum.
newest: each package has the newest version that pip finds; no constraints are used.

The extra `train` is left out: torch is large, and only the training of the embedded model needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

REPO = Path(__file__).parents[1]
QUICK = ("-m", "unit or in_process")
EXTRAS = "dev"
SCENES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["lowest", "newest"])
    parser.add_argument("--keep", type=Path, metavar="DIR", help="Work in this new folder and keep it.")
    asked = parser.parse_args()
    if asked.keep:
        asked.keep.mkdir(parents=True)
        check(asked.mode, asked.keep.resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            check(asked.mode, Path(folder))


def check(mode: str, folder: Path) -> None:
    """Build, install and try segray in an empty folder. Raise CalledProcessError at the first step that fails."""
    begun = time.monotonic()
    wheel, archive = build(folder / "dist")
    limits = folder / "constraints.txt"
    limits.write_text("".join(f"{line}\n" for line in minimums()) if mode == "lowest" else "")
    python = environment(folder / "venv")
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", limits]

    step("install the wheel with its declared dependencies")
    run([*install, wheel])
    try_commands(python, folder / "empty")

    step("install what the tests need")
    run([*install, f"{wheel}[{EXTRAS}]"])
    show_versions(python)

    step("run the tests of the source archive that need neither Ray nor a server")
    run([python.with_name("pytest"), *QUICK, "-q"], cwd=unpacked(archive, folder / "source"))
    step(f"done in {time.monotonic() - begun:.0f} s: segray works with the {mode} versions")


def build(folder: Path) -> tuple[Path, Path]:
    """Build the source archive, and the wheel from it. Return the wheel and the archive."""
    step("build the source archive and the wheel")
    run([sys.executable, "-m", "build", "--outdir", folder, REPO])
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


def minimums() -> Iterator[str]:
    """Yield `name==version` for each direct dependency with a minimum, of segray and of the extras that are tried."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *(line for name in extras if name != "train" for line in extras[name])):
        requirement = Requirement(text)
        for bound in requirement.specifier:
            if bound.operator == ">=":
                yield f"{requirement.name}=={bound.version}"


def environment(folder: Path) -> Path:
    """Make a virtual environment with the newest pip. Return its interpreter."""
    step("make a virtual environment")
    run([sys.executable, "-m", "venv", folder])
    python = folder / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"])
    return python


def try_commands(python: Path, folder: Path) -> None:
    """Run `segray quickstart`, then label a folder of images with the reference configuration, in an empty folder."""
    segray = python.with_name("segray")
    folder.mkdir()
    step("segray quickstart, in an empty folder")
    run([segray, "quickstart", "--count", SCENES], cwd=folder)

    step("segray label, with the configuration that `segray init --all` writes")
    shutil.copytree(folder / "segray-quickstart" / "scenes" / "images", folder / "photos")
    run([segray, "init", "--all", "run.yaml"], cwd=folder)
    run(
        [segray, "label", "--config", "run.yaml", "--set", "source.uri=photos", "--set", "output.root=labels"],
        cwd=folder,
    )
    report = json.loads(output([segray, "verify", "labels", "--json"], cwd=folder))
    assert not report["violations"], report
    assert report["counts"]["images"] == SCENES, report


def unpacked(archive: Path, folder: Path) -> Path:
    """Unpack the source archive. Return the folder of the project in it."""
    shutil.unpack_archive(archive, folder)
    (project,) = folder.iterdir()
    return project


def show_versions(python: Path) -> None:
    """Print the installed version of each direct dependency."""
    names = {line.partition("==")[0].lower() for line in minimums()}
    installed = json.loads(output([python, "-m", "pip", "list", "--format", "json"]))
    print(" ".join(f"{each['name']}=={each['version']}" for each in installed if each["name"].lower() in names))


def step(text: str) -> None:
    print(f"== {text}", flush=True)


def run(command: Sequence[object], cwd: Path | None = None) -> None:
    subprocess.run([str(word) for word in command], cwd=cwd, env=clean(), check=True)


def output(command: Sequence[object], cwd: Path | None = None) -> str:
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean(), check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def clean() -> dict[str, str]:
    """Return the environment without what would bring other code or a cluster's token into the trial."""
    left_out = ("PYTHONPATH", "PIP_CONSTRAINT", "VIRTUAL_ENV", "RAY_ADDRESS", "RAY_AUTH_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


if __name__ == "__main__":
    main()
