"""Parts of equalize and smooth: where scales of channels can move, and which are worth it."""
