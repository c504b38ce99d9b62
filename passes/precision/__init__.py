"""Weights and activations in fewer bits: integers, blocks, half floats, and what keeps them accurate."""
