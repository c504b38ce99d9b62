"""Rewrites of slices that `narrow` does besides: into the padding of a transposed convolution, two into one."""
