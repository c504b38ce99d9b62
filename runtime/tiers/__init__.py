"""The ways in which `memoptc.runtime.Session` runs a model: onnxruntime's own arena or one of ours, planned runs."""
