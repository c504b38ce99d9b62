"""What narrow and its kin need to know of slices."""
