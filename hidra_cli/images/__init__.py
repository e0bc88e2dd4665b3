"""Prepared images: built once from a dataset plugin, read by every run."""
