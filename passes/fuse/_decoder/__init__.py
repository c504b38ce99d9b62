"""Decoders: attention over a cache, rotary embedding, norms, as exporters spell them."""
