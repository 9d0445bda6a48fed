"""Maps of what inner states do: activation patching, path patching, causal tracing, attention knockout.

Each is a function of a model, prompts, metrics and plain arguments that returns `Cells` (acdc.patch_map): the metric of
every example with one thing changed at a time, over named axes.
"""
