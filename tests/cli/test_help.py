"""The help: every command, in order, with examples that are right, at any width; completion by the shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from segray.cli import main
from segray.cli.examples import EXAMPLES


def commands() -> Iterator[tuple[str, Any]]:
    """Every command and group below the program, with its name such as "models pull"."""
    waiting: list[tuple[str, Any]] = [("", typer.main.get_command(main.app))]
    while waiting:
        name, command = waiting.pop()
        for child_name, child in getattr(command, "commands", {}).items():
            waiting.append((f"{name} {child_name}".strip(), child))
        if name:
            yield name, command


COMMANDS = dict(commands())


def test_every_command_has_two_examples_and_every_example_a_command() -> None:
    assert COMMANDS.keys() == EXAMPLES.keys()
    assert all(len(set(examples)) == 2 for examples in EXAMPLES.values())


@pytest.mark.parametrize("example", [line for examples in EXAMPLES.values() for line in examples])
def test_an_example_is_a_right_command_line(example: str) -> None:
    program, *words = shlex.split(example.partition(" > ")[0])
    assert program == "segray"
    if words == ["--version"]:
        return
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    COMMANDS[name].make_context(name, words[len(name.split()) :])


@pytest.mark.parametrize("columns", [60, 160])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_the_terminal_and_ends_with_the_examples(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main.run([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    body, _, examples = text.partition("Examples:\n")
    assert [line for line in body.splitlines() if len(line) > columns] == []
    assert tuple(line.strip() for line in examples.splitlines()) == EXAMPLES.get(name, ())


def test_the_help_lists_the_commands_in_the_order_of_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.partition("Commands:\n")[2].splitlines() if line]
    assert listed == [name for name in EXAMPLES if " " not in name]


def test_the_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, completed in (
        ("segray la", ["label"]),
        ("segray models qu", ["quantize"]),
        ("segray sql --vi", ["--views"]),
    ):
        monkeypatch.setenv("_SEGRAY_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert main.run([]) == 0
        assert capsys.readouterr().out.split() == completed
