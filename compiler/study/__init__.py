"""The untouched control against one change at a time, and in sequence: compiled, measured in turns, judged, kept."""

from memoptc.study.changes import Asked, Change, changes
from memoptc.study.findings import Row, Study
from memoptc.study.run import study

__all__ = ["Asked", "Change", "Row", "Study", "changes", "study"]
