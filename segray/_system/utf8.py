"""Names of files as their bytes are: a command decodes names as UTF-8, whatever the locale says.

Python decodes file names with the locale's encoding. In a Latin-1 locale the same file would get another key, and the
same output.root another folder. Arrow and Delta always use UTF-8.
"""

from __future__ import annotations

import os
import sys


def use_utf8() -> None:
    """Run this command again in Python's UTF-8 mode if the locale has another encoding. Return if it has not.

    Standard streams keep the encoding of the locale, which the terminal expects. Children inherit the mode. Source:
    PEP 540.
    """
    if sys.getfilesystemencoding() == "utf-8" or not sys.executable:
        return
    environ = {**os.environ, "PYTHONUTF8": "1"}
    if sys.stdout is not None:
        environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execve(sys.executable, [sys.orig_argv[0], "-X", "utf8", *sys.orig_argv[1:]], environ)
