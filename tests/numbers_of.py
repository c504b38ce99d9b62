"""The numeric comparison of `memoptc.testing`, under the name that tests of memoptc itself import."""

from memoptc.testing.numbers import (
    NOT_EMPTY,
    UNOPTIMIZED,
    Feed,
    bits,
    compare,
    compare_coded,
    feed_of,
    hard_feeds,
    run,
    tame_feeds,
    with_external_weights,
)

__all__ = [
    "NOT_EMPTY", "UNOPTIMIZED", "Feed", "bits", "compare", "compare_coded", "feed_of", "hard_feeds", "run",
    "tame_feeds", "with_external_weights",
]  # fmt: skip
