"""Parts of prune, factorize and cluster-weights: how far to go, and what must hold."""
