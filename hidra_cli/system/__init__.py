"""The machine and the person at it."""
