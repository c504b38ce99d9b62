"""Parts of quantize: arithmetic, which operators, the static and the dynamic form."""
