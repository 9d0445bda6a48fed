"""The few SVG elements that the pictures are made of, and how wide a text may be taken to be."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence

Point = tuple[float, float]

GLYPH_WIDTH = 0.6
"""Width of a character over the font size: that of monospaced fonts; running text in wide sans fonts is at 0.56."""
WIDE_GLYPH_WIDTH = 1.05  # East Asian wide characters
LINE_HEIGHT = 1.4  # over the font size

SANS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

INK = "#1a1d23"
QUIET = "#59616e"  # labels of lesser weight: 6:1 on the page
RULE = "#c9ced6"  # axes, frames
PAGE = "#ffffff"
STRIPE = "#f3f5f8"

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: str) -> str:
    """The text without the characters that no XML document may hold, not even escaped."""
    return _NOT_XML.sub("\ufffd", text)


def number(value: float) -> str:
    """A coordinate: a tenth of a pixel is enough, and the same bytes come out on every machine."""
    text = f"{value:.1f}"
    return "0" if text in ("0.0", "-0.0") else text.removesuffix(".0")


def signed(value: float) -> str:
    """A score for people: three digits and always its sign."""
    text = f"{value:+,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:+.3g}"
    return text.replace("-", "\u2212")


def text_width(text: str, size: float) -> float:
    """An upper bound of the drawn width, in pixels."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * (GLYPH_WIDTH * (len(text) - wide) + WIDE_GLYPH_WIDTH * wide)


def wrap(text: str, size: float, width: float) -> list[str]:
    """Lines that fit `width` pixels; a word that is too long alone is broken."""
    lines: list[str] = []
    line = ""
    for word in clean(text).split():
        while text_width(word, size) > width:
            room = max(1, int(width / (size * WIDE_GLYPH_WIDTH)))
            lines += [line] if line else []
            line, word = word[:room], word[room:]
            lines.append(line)
            line = ""
        longer = f"{line} {word}" if line else word
        if line and text_width(longer, size) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line] if line else lines


class Drawing:
    """A picture under construction. Elements are appended in drawing order; the size is known at the start."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self.width, self.height = width, height
        # Several pictures may stand in one page, so the ids that screen readers follow must differ.
        self.key = hashlib.sha256(f"{title}\n{description}\n{width}x{height}".encode()).hexdigest()[:10]
        self.root = ET.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {number(width)} {number(height)}",
                "width": number(width),
                "height": number(height),
                "role": "img",
                "aria-labelledby": f"title-{self.key} desc-{self.key}",
                "font-family": SANS,
            },
        )
        self._text_element(self.root, "title", title, {"id": f"title-{self.key}"})
        self._text_element(self.root, "desc", description, {"id": f"desc-{self.key}"})
        self.rect(0, 0, width, height, fill=PAGE)  # its own page, light also on a dark one

    @staticmethod
    def _text_element(parent: ET.Element, tag: str, text: str, attributes: dict[str, str]) -> ET.Element:
        element = ET.SubElement(parent, tag, attributes)
        element.text = clean(text)
        return element

    def style(self, rules: str) -> None:
        """CSS that adds comfort only: the picture must be complete without it."""
        ET.SubElement(self.root, "style").text = rules

    def define(self, tag: str, **attributes: str) -> ET.Element:
        """Something to refer to by its id, such as a pattern; `key` makes the id one of this picture alone."""
        return ET.SubElement(ET.SubElement(self.root, "defs"), tag, _names(attributes))

    def group(self, title: str | None = None, parent: ET.Element | None = None, **attributes: str) -> ET.Element:
        element = ET.SubElement(self.root if parent is None else parent, "g", _names(attributes))
        if title is not None:
            self._text_element(element, "title", title, {})
        return element

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        title: str | None = None,
        parent: ET.Element | None = None,
        **attributes: str,
    ) -> None:
        box = {"x": number(x), "y": number(y), "width": number(width), "height": number(height)}
        self._shape("rect", {**box, **_names(attributes)}, title, parent)

    def path(self, d: str, *, title: str | None = None, parent: ET.Element | None = None, **attributes: str) -> None:
        self._shape("path", {"d": d, "fill": "none", **_names(attributes)}, title, parent)

    def circle(self, x: float, y: float, r: float, *, parent: ET.Element | None = None, **attributes: str) -> None:
        self._shape("circle", {"cx": number(x), "cy": number(y), "r": number(r), **_names(attributes)}, None, parent)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        anchor: str = "start",
        parent: ET.Element | None = None,
        **attributes: str,
    ) -> None:
        """y is the baseline."""
        place = {"x": number(x), "y": number(y), "font-size": number(size), "text-anchor": anchor}
        look = {"fill": INK, **_names(attributes)}
        self._text_element(self.root if parent is None else parent, "text", text, {**place, **look})

    def lines(self, x: float, y: float, lines: Iterable[str], *, size: float, fill: str, weight: str = "400") -> float:
        """Lines of text below y. Returns the y under the last one."""
        for line in lines:
            y += size * LINE_HEIGHT
            self.text(x, y - size * 0.35, line, size=size, fill=fill, font_weight=weight)
        return y

    def _shape(self, tag: str, attributes: dict[str, str], title: str | None, parent: ET.Element | None) -> None:
        element = ET.SubElement(self.root if parent is None else parent, tag, attributes)
        if title is not None:
            self._text_element(element, "title", title, {})

    def to_string(self) -> str:
        ET.indent(self.root, " ")
        return ET.tostring(self.root, encoding="unicode") + "\n"


def polyline(points: Sequence[Point]) -> str:
    return "M" + " L".join(f"{number(x)} {number(y)}" for x, y in points)


def _names(attributes: dict[str, str]) -> dict[str, str]:
    """Python's stroke_width is SVG's stroke-width; class_ is class."""
    return {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
