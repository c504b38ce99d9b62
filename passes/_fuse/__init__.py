"""What fuse-attention is made of: recognition, masks, and the operands of the operator that takes over."""
