"""Parts of early-exit: after which values a model can end, heads for them, and the branch that the rest moves into."""
