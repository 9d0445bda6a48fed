"""A card as one HTML page that needs nothing else: text, tables and pictures, to read, print or send."""

from __future__ import annotations

from html import escape

from acdc.card.sections import Card, Cell, Section, Table, in_words

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1d23; background: #fff }
body { max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #c9ced6 }
.scroll { overflow-x: auto } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 13px } th { text-align: left; font-weight: 600 }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #e4e7ec; vertical-align: top; overflow-wrap: anywhere }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
@media print { h2 { break-after: avoid } tr, svg { break-inside: avoid } }
"""


def to_page(card: Card, diagram: str) -> str:
    """diagram: the circuit's picture as SVG."""
    said = "".join(f"<p>{escape(line)}</p>" for line in card.lead)
    sections = "".join(map(_section, (Section("The circuit", picture=lambda: diagram), *card.sections)))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(card.title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(card.title)}</h1>{said}\n{sections}</body></html>\n"
    )


def _section(section: Section) -> str:
    text = "".join(f"<p>{escape(line)}</p>" for line in section.text)
    table = _table(section.table) if section.table is not None and section.table.rows else ""
    drawn = f'<div class="scroll">{section.picture()}</div>' if section.picture is not None else ""
    return f"<section><h2>{escape(section.title)}</h2>{text}{drawn}{table}</section>\n"


def _table(table: Table) -> str:
    numeric = [column.startswith("#") for column in table.columns]
    head = "".join(_cell("th", column.removeprefix("#"), n) for column, n in zip(table.columns, numeric, strict=True))
    rows = "".join(
        f"<tr>{''.join(_cell('td', cell, n) for cell, n in zip(row, numeric, strict=True))}</tr>" for row in table.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(tag: str, value: Cell, is_number: bool) -> str:
    kind = ' class="n"' if is_number else ""
    return f"<{tag}{kind}>{escape(in_words(value))}</{tag}>"
