"""A program: types, values, ops and graphs, the operators, text, and ONNX in and out."""

from memoptc.ir import deferred

deferred.install()
