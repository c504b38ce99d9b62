"""Parts of to-half: facts about formats and kernels, which ops change, weights, and the change itself."""
