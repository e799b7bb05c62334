"""The documents as a site: every link leads somewhere, and the generated pages are those of today's code."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).parents[1]
PAGES = sorted(
    ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(REPO)) for path in (REPO / "docs").rglob("*.md"))]
)
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#[^)]*)?\)")


def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", REPO / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_of_configuration_keys_is_generated_from_todays_code() -> None:
    generate = generator()
    page = (REPO / "docs" / "reference" / "configuration.md").read_text("utf-8")
    assert page == generate.configuration_page(), "run `python docs/generate.py`"
    assert "### `source.uri`\n\ntext; required\n" in page
    assert "default `0.1`" in page


def test_the_page_of_commands_is_generated_from_todays_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help is printed in this process; the generator starts one for each command."""
    from segray.cli import main

    def help_of(name: str) -> str:
        assert main.run([*name.split(), "--help"]) == 0
        return capsys.readouterr().out.strip()

    generate = generator()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(generate, "help_of", help_of)
    page = (REPO / "docs" / "reference" / "cli.md").read_text("utf-8")
    assert page == generate.cli_page(), "run `python docs/generate.py`"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_to_one(page: str) -> None:
    text = (REPO / page).read_text("utf-8")
    targets = [target for target in _LINK.findall(text) if target]
    missing = [target for target in targets if not (REPO / page).parent.joinpath(target).exists()]
    assert missing == []


def test_every_page_of_the_site_stands_in_its_contents() -> None:
    contents = (REPO / "mkdocs.yml").read_text("utf-8")
    pages = [str(path.relative_to(REPO / "docs")) for path in (REPO / "docs").rglob("*.md")]
    absent = [page for page in pages if page not in contents and not page.startswith("decisions/2")]
    assert absent == []


def test_every_decision_stands_in_the_list() -> None:
    folder = REPO / "docs" / "decisions"
    listed = (folder / "README.md").read_text("utf-8")
    for page in folder.glob("2*.md"):
        assert f"]({page.name})" in listed
        title = page.read_text("utf-8").splitlines()[0].removeprefix("# ")
        assert re.match(r"\d{4}-\d\d-\d\d: \S", title)


@pytest.mark.thorough
@pytest.mark.integration
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    from mkdocs import config
    from mkdocs.commands.build import build

    configuration = config.load_config(str(REPO / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    configuration.plugins.on_startup(command="build", dirty=False)
    build(configuration)
    reference = (tmp_path / "reference" / "python" / "index.html").read_text("utf-8")
    assert "segray.api.model.load_model" in reference
    assert "Raises" in reference
