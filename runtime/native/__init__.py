"""onnxruntime's C interface, reached through ctypes: what its Python package does not offer (allocators of ours)."""
