"""How a run goes, on a web page that asks for itself again.

Knows which sections the page has; the template knows what of a heartbeat people want to see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import segray
from segray.analytics.reports.html import render


def live(beat: Mapping[str, Any]) -> str:
    """How a run goes, as HTML that asks for itself again until the run has ended. beat: as heartbeat.json has it."""
    sections = {"counts": "This process so far"} | ({"workers": "Workers"} if beat["slowest"] else {})
    return render("live.html.jinja", beat=beat, sections=sections, version=segray.__version__)
