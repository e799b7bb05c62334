"""OpenVINO, imported without its telemetry.

Importing OpenVINO tells Google Analytics of it, unless the module that does so is missing. It is made to be missing
while OpenVINO is imported, and is back for the host process afterwards.
"""

from __future__ import annotations

import sys

_TELEMETRY = "openvino_telemetry"

_before = {name: sys.modules[name] for name in (_TELEMETRY,) if name in sys.modules}
sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
try:
    import openvino as openvino
finally:
    del sys.modules[_TELEMETRY]
    sys.modules.update(_before)
