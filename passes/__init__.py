"""memoptc."""
