"""Reading and writing ONNX: the names everybody uses."""

from memoptc.ir.onnx_read import read_onnx
from memoptc.ir.onnx_write import to_proto, weight_tensors, write_into, write_onnx

__all__ = ["read_onnx", "to_proto", "weight_tensors", "write_into", "write_onnx"]
