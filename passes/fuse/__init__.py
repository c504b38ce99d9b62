"""Several operators become one that onnxruntime has a kernel for."""
