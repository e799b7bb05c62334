"""The logger `segray`, through which library calls tell what commands print as lines.

A program decides by its own configuration of logging what becomes of the records. Without any they are dropped.
"""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("segray")
LOGGER.addHandler(logging.NullHandler())


def is_heard() -> bool:
    """Return whether a handler of this program receives records of level INFO."""
    logger: logging.Logger | None = LOGGER
    while logger is not None:
        heard = (handler for handler in logger.handlers if not isinstance(handler, logging.NullHandler))
        if any(handler.level <= logging.INFO for handler in heard):
            return LOGGER.isEnabledFor(logging.INFO)
        logger = logger.parent if logger.propagate else None
    return False
