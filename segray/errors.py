"""The errors that segray raises, and their exit codes.

    SegrayError
    ├── UserError              usage or configuration; what was committed is kept   exit 2
    │   ├── ConfigError        a key or value in the configuration
    │   ├── ModelError         model files: missing, unreadable, other inputs or outputs
    │   ├── SourceError        the dataset: empty, unreadable listing or manifest
    │   ├── AccessError        credentials, permissions, missing bucket
    │   └── LabelSetError      the output root: of another model, or no label set
    ├── ImageError             a fault of one image: the image becomes a `failed` row
    ├── InfrastructureError    throttling, network, disk, lost nodes: retried       exit 3
    │   ├── LastingError       a full disk, expired credentials: waiting does not help
    │   └── ConflictError      another run committed this batch first: plan again
    ├── TooManyFailedError     more images failed than max_failed_fraction allows   exit 3
    └── Interrupted            a stop request: the same command resumes the run     exit 130

A message has four parts: what went wrong, where, what was found there, and a hint.
"""

from __future__ import annotations


class SegrayError(Exception):
    """An error in four parts. The message shows the parts that are set.

    what: what went wrong.
    where: the location: a key, file, URI or machine.
    found: the value or state at that location.
    hint: an action that helps: a command, a key to set, a file to check.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", found: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.found, self.hint = what, where, found, hint

    def __str__(self) -> str:
        details = (("where", self.where), ("found", self.found), ("do", self.hint))
        return "\n".join([self.what, *(f"  {name + ':':<7}{text}" for name, text in details if text)])

    def short(self) -> str:
        """Return what went wrong and what was found, on one line."""
        return f"{self.what}: {self.found}" if self.found else self.what

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.found, self.hint)


def _rebuild(kind: type[SegrayError], what: str, where: str, found: str, hint: str) -> SegrayError:
    return kind(what, where=where, found=found, hint=hint)


class UserError(SegrayError):
    """A fault of usage or configuration, which no retry repairs."""

    exit_code = 2


class ConfigError(UserError):
    """A wrong configuration key or value."""


class ModelError(UserError):
    """Model files that are missing or unreadable, or that hold another model."""


class SourceError(UserError):
    """A dataset that is empty, or whose listing or manifest cannot be read."""


class AccessError(UserError):
    """A refusal by storage: credentials, permissions, or no such bucket."""


class LabelSetError(UserError):
    """An output root that belongs to another model, or is not a label set."""


class QueryError(UserError):
    """A query in SQL that DuckDB refuses."""


class ArgumentError(UserError, TypeError, ValueError):
    """A wrong argument of a function that a program calls: its name, type or value."""


class RowError(ArgumentError, IndexError):
    """Rows that Instances do not have, or that are named in a wrong way."""


class ImageError(SegrayError):
    """A fault of one image. The run goes on.

    stage: the stage that failed: read, decode, infer or postprocess.
    """

    def __init__(self, what: str, *, stage: str = "decode", where: str = "", found: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, found=found, hint=hint)
        self.stage = stage

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_image, (self.what, self.stage, self.where, self.found, self.hint)


def _rebuild_image(what: str, stage: str, where: str, found: str, hint: str) -> ImageError:
    return ImageError(what, stage=stage, where=where, found=found, hint=hint)


class InfrastructureError(SegrayError):
    """A fault that no image causes: throttling, network, disk, a lost node.

    segray retries the work. If the fault persists, segray stops the run.
    """

    exit_code = 3


class LastingError(InfrastructureError):
    """A fault that waiting does not repair: a full disk, expired credentials."""


class ConflictError(InfrastructureError):
    """A lost race: another run committed this batch first."""


class TooManyFailedError(SegrayError):
    """A run in which more images failed than max_failed_fraction allows. All rows are committed."""

    exit_code = 3


class Interrupted(SegrayError):
    """A request to stop the run. Committed images stay committed; the same command resumes the run."""

    exit_code = 130
