"""OpenVINO, imported so that it tells nobody of it.

Knows that the import tells Google Analytics of itself where `openvino_telemetry` is installed, and lacks nothing where
it is not. What another import of that module finds is as it was.
"""

from __future__ import annotations

from segray._system import host_process

with host_process.kept(), host_process.without("openvino_telemetry"):
    import openvino as ov
    from openvino import opset13, opset14
    from openvino.exceptions import OVError
    from openvino.utils.node_factory import NodeFactory

__all__ = ["NodeFactory", "OVError", "opset13", "opset14", "ov"]
