"""Decoders of one's own: classes of a user for models that segray does not know.

Knows where the class of a decoder comes from, which files are its code, and how the class is imported. Knows nothing of
what the class returns. The code travels to the workers as bytes, so each worker has the code of the driver.

A class comes from the entry points of an installed package, or from a module in the working directory.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from segray.errors import ConfigError

GROUP = "segray.adapters"
METHODS = ("describe", "prepare", "decode")

_MAX_BYTES = 4 * 2**20
_MAX_FILES = 1000
_KEY = "model.adapter"
_PACKAGE = "__init__.py"

_lock = threading.RLock()
# First name of an imported module -> digest of the code that it was imported from.
_imported: dict[str, str] = {}


@dataclass(frozen=True)
class Code:
    """The code of a decoder.

    name: name of the decoder, as `model.name` has it.
    reference: MODULE:CLASS.
    source: the place that names the decoder, for errors.
    files: path below the folder of the code -> content.
    """

    name: str
    reference: str
    source: str
    files: Mapping[str, bytes]

    @property
    def module(self) -> str:
        """Return the dotted name of the module."""
        return self.reference.partition(":")[0]

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the files, as 64 hex digits."""
        lines = [f"{name} {hashlib.sha256(content).hexdigest()}" for name, content in sorted(self.files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Decoder:
    """A decoder whose class is imported."""

    code: Code
    kind: type[Any]

    @property
    def name(self) -> str:
        """Return the name of the decoder, which is the family of its models."""
        return self.code.name

    @property
    def identity(self) -> Mapping[str, str]:
        """Return what tells one decoder from another: the class, and its `version` or the digest of its code."""
        version = getattr(self.kind, "version", None)
        if version is None:
            return {"class": self.code.reference, "sha256": self.code.digest}
        return {"class": self.code.reference, "version": str(version)}

    def new(self) -> Any:
        """Return an instance of the class; raise ConfigError if the class makes none."""
        with faults_named(self.code, f"{self.kind.__name__}()"):
            return self.kind()


# ---- search ---------------------------------------------------------------------------------------


def registered_names() -> tuple[str, ...]:
    """Return the names of the decoders that installed packages register."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def registered(names: Iterable[str] | None = None) -> tuple[Decoder, ...]:
    """Return the decoders that installed packages register, by name; None for all of them.

    Raises:
        ConfigError: A decoder cannot be imported, or two packages register one name.
    """
    points = [point for point in entry_points(group=GROUP) if names is None or point.name in names]
    return tuple(_of_entry_point(point, points) for point in sorted(points, key=lambda point: point.name))


def _of_entry_point(point: EntryPoint, points: Iterable[EntryPoint]) -> Decoder:
    source = f"entry point {point.name!r} of {GROUP}, {_distribution(point)}"
    same = sorted({_distribution(other) for other in points if other.name == point.name})
    if len(same) > 1 or sum(other.name == point.name for other in points) > 1:
        hint = "Uninstall one of the packages, or register another name."
        what = f"The name {point.name!r} is registered twice."
        raise ConfigError(what, where=GROUP, found=", ".join(same), hint=hint)
    folder, is_installed = _folder_of(point.module.partition(".")[0], None, source)
    code = Code(point.name, f"{point.module}:{point.attr}", source, _files(point.module, folder, is_installed))
    return imported(code, folder)


def _distribution(point: EntryPoint) -> str:
    return "a package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def by_reference(reference: str, folder: Path | None = None) -> Decoder:
    """Return the decoder that MODULE:CLASS names, from the working directory or an installed package.

    Args:
        reference: MODULE:CLASS.
        folder: The working directory; None for that of this process.

    Raises:
        ConfigError: There is no such module or class, or the module cannot be imported.
    """
    code, home = located(reference, folder)
    return imported(code, home)


def located(reference: str, folder: Path | None = None) -> tuple[Code, Path]:
    """Return the code that MODULE:CLASS names, and its folder. Import nothing; see `by_reference`."""
    module, _, kind = reference.partition(":")
    home, is_installed = _folder_of(module.partition(".")[0], Path.cwd() if folder is None else folder, _KEY)
    return Code(kind.rpartition(".")[2], reference, _KEY, _files(module, home, is_installed)), home


def _folder_of(top: str, working: Path | None, source: str) -> tuple[Path, bool]:
    """Return the folder that holds the module, and whether the module is an installed one.

    A module of the working directory comes before an installed one, and a folder without __init__.py after both.

    top: first name of the module. working: folder to look in; None to take an installed module.
    """
    has_module = working is not None and ((working / f"{top}.py").is_file() or (working / top / _PACKAGE).is_file())
    if has_module and (top in sys.stdlib_module_names or top == "segray"):
        what = f"Python or segray has a module {top!r} already."
        raise ConfigError(what, where=source, found=f"{top} in {working}", hint="Give your module another name.")
    installed = None if has_module else _installed_folder(top)
    if installed is not None:
        return installed, True
    if working is not None and (has_module or any((working / top).glob("*.py"))):
        return working.resolve(), False
    near = sorted(file.name for file in working.glob("*.py"))[:8] if working is not None else []
    raise ConfigError(
        f"There is no module {top!r} for the decoder.",
        where=source,
        found="no such installed module" if working is None else f"in {working}: {', '.join(near) or 'no .py file'}",
        hint=f"Put {top}.py into the folder in which you run segray, or install the package that has the module.",
    )


def _installed_folder(top: str) -> Path | None:
    """Return the folder that holds an installed module; None if there is none, or none with files."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or not spec.has_location or not str(spec.origin).endswith(".py"):
        return None
    origin = Path(str(spec.origin)).resolve()
    return origin.parent.parent if origin.name == _PACKAGE else origin.parent


def _files(module: str, folder: Path, is_installed: bool) -> dict[str, bytes]:
    """Return the files of a module: its package or its file. In the working directory also the modules it imports."""
    files: dict[str, bytes] = {}
    waiting = [module.partition(".")[0]]
    while waiting:
        top = waiting.pop()
        own = [folder / f"{top}.py"] if not (folder / top).is_dir() else _files_below(folder / top)
        for file in own:
            files[file.relative_to(folder).as_posix()] = _content(file, sum(map(len, files.values())), len(files))
        if not is_installed:
            names = {name for file in own if file.suffix == ".py" for name in _imported_names(file)}
            known = {name.partition("/")[0].removesuffix(".py") for name in files}
            waiting += [
                name
                for name in sorted(names - known - {*waiting, "segray"} - sys.stdlib_module_names)
                if (folder / f"{name}.py").is_file() or (folder / name / _PACKAGE).is_file()
            ]
    return files


def _files_below(folder: Path) -> list[Path]:
    """Return the files of a package, without hidden ones and what Python compiled."""
    files: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        files += [Path(parent) / name for name in sorted(names) if not name.startswith(".")]
        if len(files) > _MAX_FILES:
            break
    return [file for file in files if file.is_file() and file.suffix != ".pyc"]


def _content(file: Path, size_bytes: int, count: int) -> bytes:
    try:
        size_bytes += file.stat().st_size
        if size_bytes <= _MAX_BYTES and count < _MAX_FILES:
            return file.read_bytes()
    except OSError as error:
        hint = "Make the file readable for this user."
        what = "A file of the decoder cannot be read."
        raise ConfigError(what, where=str(file), found=str(error), hint=hint) from error
    raise ConfigError(
        "The package of the decoder is too large to send to the workers.",
        where=str(file.parent),
        found=f"more than {_MAX_FILES:,} files or {_MAX_BYTES:,} bytes",
        hint="Put the decoder into a module or package of its own.",
    )


def _imported_names(file: Path) -> set[str]:
    """Return the first names of the modules that a file imports; none if the file is not Python."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()  # The import names the fault.
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    froms = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.partition(".")[0] for name in (*plain, *froms)}


# ---- import ---------------------------------------------------------------------------------------


def on_this_machine(code: Code, received: Callable[[Code], Path]) -> Decoder:
    """Return the driver's decoder in a worker. received: writes the files of the code, and returns their folder.

    An installed package that has the same files is imported where it is.
    """
    folder = _installed_folder(code.module.partition(".")[0])
    return imported(code, folder if folder is not None and _has_files(folder, code) else received(code))


def _has_files(folder: Path, code: Code) -> bool:
    try:
        return all((folder / name).read_bytes() == content for name, content in code.files.items())
    except OSError:
        return False


def imported(code: Code, folder: Path) -> Decoder:
    """Return the decoder with its class imported from a folder that holds the files of its code.

    Other code that this function imported before under the same names is forgotten.

    Raises:
        ConfigError: The module cannot be imported, or has no such class.
    """
    with _lock:
        tops = {name.partition("/")[0].removesuffix(".py") for name in code.files}
        _forget_other_code(tops, code)
        with faults_named(code, "import"), _importing_from(folder):
            value: Any = importlib.import_module(code.module)
        _imported.update(dict.fromkeys(tops, code.digest))
    for name in code.reference.partition(":")[2].split("."):
        if not hasattr(value, name):
            names = [name for name, part in vars(value).items() if isinstance(part, type) and not name.startswith("_")]
            raise ConfigError(
                f"The module of the decoder has no class {name!r}.",
                where=f"{code.source}: {code.reference}",
                found=f"classes {', '.join(names[:8]) or 'none'}",
                hint="Correct the name behind the colon.",
            )
        value = getattr(value, name)
    absent = [method for method in METHODS if not callable(getattr(value, method, None))]
    if not isinstance(value, type) or absent:
        raise ConfigError(
            "The decoder is no class with describe, prepare and decode.",
            where=f"{code.source}: {code.reference}",
            found=f"no {', '.join(absent)}" if absent else repr(value)[:80],
            hint="Write the class as docs/models/your-own-decoder.md shows.",
        )
    version = getattr(value, "version", "")
    if not isinstance(version, str | int | float):
        raise ConfigError(
            "The version of the decoder is neither a text nor a number.",
            where=f"{code.source}: {code.reference}",
            found=f"version is a {type(version).__name__}",
            hint='Set the attribute of the class to a text, such as version = "1", or remove it.',
        )
    return Decoder(code, value)


def _forget_other_code(tops: Iterable[str], code: Code) -> None:
    """Remove modules of these names that came from other code; raise ConfigError for those of other programs."""
    for top in tops:
        if top not in sys.modules or _imported.get(top) == code.digest:
            continue
        if top not in _imported:
            if not _is_own_file(sys.modules[top], code):
                raise ConfigError(
                    f"Another module {top!r} is in use already.",
                    where=f"{code.source}: {code.reference}",
                    found=str(getattr(sys.modules[top], "__file__", None)),
                    hint="Give the module of the decoder another name.",
                )
            continue
        for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
            del sys.modules[name]


def _is_own_file(module: Any, code: Code) -> bool:
    """Return whether a module that someone else imported has the content of the code's file."""
    file = getattr(module, "__file__", None)
    try:
        return file is not None and Path(file).read_bytes() in code.files.values()
    except OSError:
        return False


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let imports look in this folder first, and leave no compiled files in it."""
    writes_nothing, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # The module may have changed the path itself.
            sys.path.remove(str(folder))
        sys.dont_write_bytecode = writes_nothing


@contextmanager
def faults_named(code: Code, step: str) -> Iterator[None]:
    """Raise ConfigError with the decoder's name for whatever the decoder raises in the block, but for Ctrl-C.

    What the decoder prints goes to standard error: standard output has the results of the command.

    step: what the decoder does: import, describe.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ConfigError(
            f"The decoder {code.reference} failed in {step}.",
            where=place(error, code) or code.source,
            found=text_of(error),
            hint="Correct the decoder, or install what it imports on every node.",
        ) from error


def text_of(error: BaseException) -> str:
    """Return the kind and the text of an error, on one line."""
    try:
        text = " ".join(str(error).split())[:500]
    except Exception:  # A text that cannot be made must not hide the error.
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place(error: BaseException, code: Code) -> str:
    """Return the last line of the decoder's code that an error passed, as FILE, line N; "" if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        frames = [(error.filename, error.lineno)]
    else:
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    for filename, line in reversed(frames):
        for name in code.files:
            if filename == name or filename.endswith(f"/{name}"):
                return f"{name}, line {line}"
    return ""
