"""A card as Markdown."""

from __future__ import annotations

import re

from acdc.card.parts import Card, Table


def to_markdown(card: Card) -> str:
    parts = [f"# {_plain(card.title)}", *map(_plain, card.lead)]
    for section in card.all_sections:
        if not section.text and section.table is None:
            continue  # a picture alone
        parts += [f"{'###' if section.is_part else '##'} {_plain(section.title)}", *map(_plain, section.text)]
        if section.table is not None and section.table.rows:
            parts.append(_table(section.table))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(table: Table) -> str:
    ends = ["---:" if column.startswith("#") else "---" for column in table.columns]
    names = [column.removeprefix("#") for column in table.columns]
    lines = [names, *table.written]
    head, *body = (f"| {' | '.join(map(_plain, line))} |" for line in lines)
    return "\n".join([head, f"|{'|'.join(ends)}|", *body])


def _plain(text: str) -> str:
    """Text from people and files, so that no viewer reads it as HTML, a link or the end of a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", " ".join(text.split()))
