"""Tasks, and how they are drawn: of images, of features or of functions."""
