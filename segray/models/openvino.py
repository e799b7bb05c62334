"""OpenVINO, imported without telemetry.

OpenVINO's import reports itself to Google Analytics where `openvino_telemetry` is installed, and works the same
without that module. Later imports of `openvino_telemetry` find the module unchanged.
"""

from __future__ import annotations

from segray._system import host_process

with host_process.import_changes_undone(), host_process.import_blocked("openvino_telemetry"):
    import openvino as ov
    from openvino import opset13, opset14
    from openvino.exceptions import OVError
    from openvino.utils.node_factory import NodeFactory

__all__ = ["NodeFactory", "OVError", "opset13", "opset14", "ov"]
