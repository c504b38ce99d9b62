"""Weights that are read from the disk while the model runs, within a limit."""
