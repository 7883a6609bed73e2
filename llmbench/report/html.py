"""Write a Document as HTML, for notebooks."""

from __future__ import annotations

from html import escape

from llmbench.report.document import Command, Document, Table

__all__ = ["to_html"]


def to_html(document: Document) -> str:
    """Return the headlines, tables and lines of a document as HTML. All text is escaped."""
    parts: list[str] = []
    for block, lines in zip(document.blocks, document.below(notes=True), strict=True):
        above = block.above(wide=False)
        if above:
            first, *others = map(_text, above)
            parts.append(f"<p>{'<br>'.join([f'<strong>{first}</strong>', *others])}</p>")
        if block.table is not None:
            parts.append(_table(block.table.for_people()))
        if lines:
            parts.append(f"<p>{'<br>'.join(map(_line, lines))}</p>")
    return "\n".join(parts)


def _line(line: str | Command) -> str:
    return f"{_text(line.label)} <code>{_text(line.text)}</code>" if isinstance(line, Command) else _text(line)


def _text(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _table(table: Table) -> str:
    styles = ["text-align:left" if column.unit == "text" else "text-align:right" for column in table.columns]

    def line(cells: list[str], tag: str) -> str:
        inside = (f'<{tag} style="{style}">{_text(cell)}</{tag}>' for cell, style in zip(cells, styles, strict=True))
        return f"<tr>{''.join(inside)}</tr>"

    rows = table.texts()
    body = [line(cells, "th" if table.total and cells is rows[-1] else "td") for cells in rows]
    return f"<table><thead>{line(table.headings(), 'th')}</thead><tbody>{''.join(body)}</tbody></table>"
