"""The graph made ready for onnxruntime and for being written."""
