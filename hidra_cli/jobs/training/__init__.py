"""Meta-training: the outer loop, validation, selection, checkpoints."""
