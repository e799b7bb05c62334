"""The fenced blocks of the documents: extracted as they stand, and run as a reader would run them."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block. page: path below the repository. line: number of its first line in the page."""

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, language: str) -> list[Block]:
    """Return the blocks of one language in a page, in order."""
    text = (REPO / page).read_text("utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2])
        for match in _FENCE.finditer(text)
        if match[1] == language
    ]


def packages(block: Block) -> set[str]:
    """Return the packages that a block of Python imports."""
    names = set()
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def run(code: str, namespace: dict[str, Any]) -> list[Any]:
    """Run Python as a prompt does; return the values of its expressions, which a prompt would show."""
    values = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Expr):
            values.append(eval(compile(ast.Expression(statement.value), "<block>", "eval"), namespace))
        else:
            exec(compile(ast.Module([statement], []), "<block>", "exec"), namespace)
    return values


def commands(block: Block, program: str = "segray") -> list[list[str]]:
    """Return the arguments of each call of a program in a shell block."""
    calls = []
    for line in block.code.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in ("&&", "|", ";"):
                words.append(word)
                continue
            if words[:1] == [program]:
                calls.append(words[1:])
            words = []
    return calls


def check_usage(command: Any, arguments: Sequence[str]) -> Mapping[str, Any]:
    """Parse arguments as segray's command line does, without running the command; return the parameters.

    Raises what Click raises for an unknown command or option, or for a value of a wrong type.
    """
    name, words = "segray", list(arguments)
    while hasattr(command, "commands"):
        name = words.pop(0)
        command = command.commands[name]
    parameters: Mapping[str, Any] = command.make_context(name, words).params
    return parameters
