"""A circuit's card: what is known of it, and what the numbers depend on, for people.

`sections.py` says it once, as titles, sentences and tables; Markdown, the page of text and pictures, the command line
and the explorer show those.
"""

from __future__ import annotations

from acdc.card.markdown import to_markdown
from acdc.card.page import to_page
from acdc.card.sections import (
    Card,
    Section,
    Table,
    also,
    card_of,
    challenge_sections,
    challenged,
    closer_look,
    conditions_of,
    in_words,
)

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
    "in_words",
    "to_markdown",
    "to_page",
]
