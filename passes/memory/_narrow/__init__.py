"""Facts about slices for narrow and related passes."""
