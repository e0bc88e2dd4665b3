"""What is drawn: a task of images or of functions."""
