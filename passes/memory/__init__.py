"""Fewer bytes alive at once: order, tiles, narrower and later values, weights held once, the arena."""
