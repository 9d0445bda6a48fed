"""Models whose circuit is known, and how near to it a ranking of edges comes."""
