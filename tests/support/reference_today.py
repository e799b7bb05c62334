"""Where the reference results of other libraries lie: SEGRAY_SHARED, or ../shared beside the repository.

The folders are too large for the repository, and some of them have another licence. Their tests skip without them.
"""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path(os.environ.get("SEGRAY_SHARED") or Path(__file__).parents[3] / "shared")
DESCRIPTIONS = SHARED / "reference-today" / "describe"
REAL = SHARED / "real"
