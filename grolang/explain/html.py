"""A document as HTML: MathML for formulas, SVG within the page, nothing that is fetched from anywhere."""

from __future__ import annotations

import re
from html import escape

from grolang.explain import document as doc
from grolang.explain.document import Block, Document, Figure, Section, Words
from grolang.explain.formula import Formula
from grolang.explain.markdown import Address, aligned
from grolang.explain.mathml import converted

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .7rem; text-align: left; vertical-align: baseline; }
td:nth-child(n+5) { white-space: nowrap; }
code, pre { font: .9em/1.5 ui-monospace, monospace; }
pre { background: var(--faint); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px; }
math { font-size: 1.08em; }
.formula { overflow-x: auto; overflow-y: hidden; padding: .3rem 0; margin: .6rem 0; }
.formula math { margin: 0; text-align: left; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; max-width: 22rem; } figure svg { width: 100%; height: auto; }
figcaption { font-size: .85rem; opacity: .75; }
"""


def style() -> str:
    """The style sheet of a whole page, with the font for formulas."""
    from grolang.explain import fonts

    return _STYLE + fonts.style()


def rendered(document: Document, link: Address | None = None) -> str:
    """A whole page. `link` gives the address of a method's page, where there is one."""
    body = "\n".join(fragment(section, link) for section in document.sections)
    title = escape(document.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<style>{style()}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def fragment(section: Section, link: Address | None = None) -> str:
    """A section as a piece of another page, without style."""
    head = f"<h2>{escape(section.title)}</h2>\n" if section.title else ""
    return head + "\n".join(_block(block, link) for block in section.blocks)


def _block(block: Block, link: Address | None) -> str:
    def words(row: Words) -> str:
        return "".join(_word(word, link) for word in row)

    match block:
        case doc.Paragraph():
            return f"<p>{words(block.words)}</p>"
        case doc.Display():
            return f'<div class="formula">{converted(aligned(block.formulas), display=True)}</div>'
        case doc.Items():
            return "<ul>\n" + "".join(f"<li>{words(row)}</li>\n" for row in block.rows) + "</ul>"
        case doc.Table():
            head = "".join(f"<th>{words(cell)}</th>" for cell in block.head)
            rows = ("<tr>" + "".join(f"<td>{words(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
            return "<table>\n<thead><tr>" + head + "</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"
        case doc.Figures():
            return '<div class="figures">\n' + "\n".join(map(drawn, block.figures)) + "\n</div>"
        case doc.Listing():
            return f"<pre><code>{escape(block.text)}</code></pre>"


def drawn(figure: Figure) -> str:
    """A figure with its caption. Ids are its own, so that several may stand on one page."""
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{figure.name}-", figure.svg)
    caption = f"<figcaption>{escape(figure.caption)}</figcaption>" if figure.caption else ""
    return f"<figure>{svg}{caption}</figure>"


def _word(word: object, link: Address | None) -> str:
    match word:
        case Formula():
            return word.mathml()
        case doc.Code():
            return f"<code>{escape(word.text)}</code>"
        case doc.Link():
            name = f"<code>{escape(word.name)}</code>"
            return f'<a href="{escape(link(word.name))}">{name}</a>' if link is not None else name
        case _:
            return escape(str(word))
