"""The two version numbers that a result carries."""

__version__ = "0.1.0"

# Raised by hand whenever a change can move a score: results are reused, and checkpoints resumed, only within one.
ENGINE_VERSION = 3
