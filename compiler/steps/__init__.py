"""The steps of a compile; `memoptc.api` and `memoptc.attempts` say in which order."""
