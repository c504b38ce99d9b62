"""Fewer and plainer operators that give the same bits."""
