"""Parts of prune-tokens: where tokens can go, what computes per token behind that, how some of them are dropped."""
