"""Facts about values for widen-late."""
