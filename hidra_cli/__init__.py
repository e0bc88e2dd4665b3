"""hidra: few-shot image classification with any number of classes."""

__version__ = "0.1.0"
