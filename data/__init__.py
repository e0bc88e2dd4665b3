"""What ships as data, no code: class splits, presets, meta-trained models."""
