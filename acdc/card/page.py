"""A card as one HTML page that needs nothing else: text, tables and pictures, to read, print or send."""

from __future__ import annotations

from dataclasses import replace
from html import escape

from acdc.card.parts import FACTS, Card, Section, Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1d23; background: #fff }
body { max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; line-height: 1.25 } h1, h2, h3 { overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #c9ced6 }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem } p { max-width: 75ch; overflow-wrap: anywhere }
.scroll { overflow-x: auto } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0 }
th { text-align: left; font-weight: 600; vertical-align: bottom; border-bottom: 1px solid #8a929e }
th, td { padding: .2rem 1.1rem .2rem 0 } td { border-bottom: 1px solid #e4e7ec; vertical-align: top }
td { overflow-wrap: break-word } td:first-child:not(.n) { min-width: 7em }
.facts td { overflow-wrap: anywhere } .facts td:first-child { color: #59616e; min-width: 11em }
th.n { text-align: right; max-width: 7em } td.n { text-align: right; white-space: nowrap }
td.n { font-variant-numeric: tabular-nums }
@media screen and (max-width: 700px) { svg { max-width: none } }
@media print { h2, h3 { break-after: avoid } tr, svg { break-inside: avoid } }
"""


def to_page(card: Card, diagram: str) -> str:
    """diagram: the circuit's picture as SVG."""
    said = "".join(f"<p>{escape(line)}</p>" for line in card.lead)
    drawn = replace(card.circuit, picture=lambda: diagram)
    sections = "".join(map(_section, (card.summary, drawn, card.edges, *card.sections)))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(card.title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{escape(card.title)}</h1>{said}\n{sections}</body></html>\n"
    )


def _section(section: Section) -> str:
    text = "".join(f"<p>{escape(line)}</p>" for line in section.text)
    table = _table(section.table) if section.table is not None and section.table.rows else ""
    drawn = f'<div class="scroll">{section.picture()}</div>' if section.picture is not None else ""
    heading = "h3" if section.is_part else "h2"
    return f"<section><{heading}>{escape(section.title)}</{heading}>{text}{drawn}{table}</section>\n"


def _table(table: Table) -> str:
    numeric = [column.startswith("#") for column in table.columns]
    names = [column.removeprefix("#") for column in table.columns]
    head = "".join(_cell("th", name, n) for name, n in zip(names, numeric, strict=True))
    rows = "".join(
        f"<tr>{''.join(_cell('td', cell, n) for cell, n in zip(row, numeric, strict=True))}</tr>"
        for row in table.written
    )
    if table.columns == FACTS:
        return f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(tag: str, text: str, is_number: bool) -> str:
    kind = ' class="n"' if is_number else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"
