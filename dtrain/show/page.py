"""A page that opens without a network: one file with its style, its charts and the few lines of script that read values off a chart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources


def page(title: str, sections: Iterable[str]) -> str:
    """Format the whole page."""
    here = resources.files(__package__ or "")
    style, script = (here.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{style}</style></head>'
        f"<body><main>\n{body}\n</main><script>{script}</script></body></html>\n"
    )


def section(title: str, *parts: str, panel: bool = True) -> str:
    """A heading and what belongs to it; '' if nothing does."""
    body = "".join(parts)
    if not body:
        return ""
    return f"<h2>{escape(title)}</h2>" + (f'<div class="panel">{body}</div>' if panel else body)


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers: (what it is, value, class of its colour or '')."""
    parts = (
        f'<div class="tile"><span>{escape(name)}</span><b class="{kind}">{escape(value)}</b></div>'
        for name, value, kind in values
    )
    return f'<div class="tiles">{"".join(parts)}</div>'


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Sequence[int] = (), raw: Sequence[int] = (),
    sorts: bool = False, best: int | None = None,
) -> str:  # fmt: skip
    """A table; `numeric` columns stand at the right, the cells of `raw` ones are HTML already. With `sorts`, a click on a heading sorts
    it; `best` is a row that is marked."""

    def cell(tag: str, index: int, text: str) -> str:
        kind = (
            ' class="num"'
            if index in numeric
            else ' class="wide"'
            if tag == "td" and len(text) > 40 and index not in raw
            else ""
        )
        return f"<{tag}{kind}>{text if index in raw and tag == 'td' else escape(text)}</{tag}>"

    head = "".join(cell("th", index, text) for index, text in enumerate(columns))
    body = "".join(
        ('<tr class="best">' if number == best else "<tr>")
        + "".join(cell("td", index, text) for index, text in enumerate(row))
        + "</tr>"
        for number, row in enumerate(rows)
    )
    kind = ' class="sorts"' if sorts else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def columns(parts: Iterable[str]) -> str:
    """Charts beside each other, as many as there is room for; '' if there are none."""
    shown = [f"<div>{part}</div>" for part in parts if part]
    return f'<div class="columns">{"".join(shown)}</div>' if shown else ""


def key(color: str) -> str:
    """A small square in the colour of a CSS variable."""
    return f'<i class="key" style="background:var({color})"></i>'


def legend(labels: Sequence[tuple[str, str]]) -> str:
    """(CSS variable, text) of each curve."""
    return (
        '<div class="legend">'
        + "".join(f"<span>{key(color)}{escape(text)}</span>" for color, text in labels)
        + "</div>"
    )


def folded(title: str, text: str) -> str:
    """A text that is opened with a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>" if text else ""
