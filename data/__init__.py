"""What ships as data, no code: class splits and presets, read with `importlib.resources`."""
