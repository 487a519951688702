"""geoquant decides, with evidence, how few bits each part of a neural network needs, and does the work."""

__version__ = "0.1.0"
