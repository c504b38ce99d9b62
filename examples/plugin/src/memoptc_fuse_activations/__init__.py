"""The pass fuse-activations for memoptc."""
