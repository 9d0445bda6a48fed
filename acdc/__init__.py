"""Automated circuit discovery: find, judge, store and compare circuits of transformer language models."""

from acdc.version import __version__

__all__ = ["__version__"]
