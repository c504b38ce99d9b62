"""memoptc."""

from memoptc.ir import deferred

deferred.install()
