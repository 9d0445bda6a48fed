"""A circuit's card: what is known of it, and what the numbers depend on, for people.

`sections.py` says it once, as titles, sentences and tables; Markdown, the page of text and pictures, the command line
and the explorer show those.
"""

from __future__ import annotations

from acdc.card.challenges import challenge_sections
from acdc.card.edges import heads_of, nodes_in_words, shared_inputs
from acdc.card.markdown import to_markdown
from acdc.card.origin import conditions_of, origin_of, title_of
from acdc.card.page import to_page
from acdc.card.parts import Card, Section, Table, in_words
from acdc.card.sections import also, card_of, challenged, closer_look

__all__ = [
    "Card",
    "Section",
    "Table",
    "also",
    "card_of",
    "challenge_sections",
    "challenged",
    "closer_look",
    "conditions_of",
    "heads_of",
    "in_words",
    "nodes_in_words",
    "origin_of",
    "shared_inputs",
    "title_of",
    "to_markdown",
    "to_page",
]
