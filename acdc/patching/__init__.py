"""The executor: plain and edge-masked forwards of a Transformer, and gradients at its receivers."""
