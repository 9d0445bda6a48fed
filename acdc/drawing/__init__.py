"""Pictures as SVG text, from a Circuit, a Report or a PatchMap alone: the same input gives the same bytes.

Standard library only, since the engine draws too and a drawing library is more than a GPU machine needs.
"""

from __future__ import annotations

from acdc.drawing.challenge import draw_challenge
from acdc.drawing.curve import draw_curve
from acdc.drawing.diagram import draw_circuit
from acdc.drawing.heatmap import draw_map
from acdc.drawing.removals import draw_removals

__all__ = ["draw_challenge", "draw_circuit", "draw_curve", "draw_map", "draw_removals"]
