"""QPruner core: structured pruning, mixed precision and recovery of language models."""

__version__ = "0.1.0"
