"""The token that Ray sends, from where Ray takes it.

Knows Ray's environment variables for authentication. Sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def token_file(environ: Mapping[str, str]) -> Path:
    """Return the file of the token: RAY_AUTH_TOKEN_PATH, else auth_token in the user's folder .ray."""
    path = environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path) if path else Path(environ.get("HOME", "~")).expanduser() / ".ray" / "auth_token"


def read_token(environ: Mapping[str, str]) -> str:
    """Return RAY_AUTH_TOKEN, else the content of the token's file; "" if neither has a token."""
    token = environ.get("RAY_AUTH_TOKEN", "")
    if not token:
        with suppress(OSError):
            token = token_file(environ).read_text(encoding="utf-8")
    return token.strip()
