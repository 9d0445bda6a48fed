"""Windows of neighbouring layers, as causal tracing and attention knockout change them together."""

from __future__ import annotations

from acdc.errors import TaskError


def window_around(layer: int, size: int, n_layers: int) -> range:
    """`size` layers around `layer`, cut off at both ends of the model; of an even size, the longer half comes before.

    Raises TaskError for a size below 1.
    """
    if size < 1:
        raise TaskError(f"a window of {size} layers changes nothing; give 1 or more")
    first = layer - size // 2
    return range(max(0, first), min(n_layers, first + size))
