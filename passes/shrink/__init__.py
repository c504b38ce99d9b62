"""Fewer or cheaper weights at a loss that data has to justify: pruning, low rank, codebooks."""
