"""Pure computation on tensors: the inner loop and the meta-gradient. No files, no printing."""
