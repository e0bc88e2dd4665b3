"""A run on disk, and the model in it."""
