"""What widen-late needs to know of values."""
