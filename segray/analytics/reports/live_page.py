"""The progress of a run on a web page that reloads itself.

This module knows the sections of the page. The template knows which values of the heartbeat the page shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import segray
from segray.analytics.reports.html import render


def live(beat: Mapping[str, Any]) -> str:
    """Return the progress of a run as HTML that reloads itself until the run has ended.

    beat: the content of heartbeat.json.
    """
    sections = {"counts": "Counts of this process"}
    if beat["slowest"]:
        sections["workers"] = "Workers"
    return render("live.html.jinja", beat=beat, sections=sections, version=segray.__version__)
