"""A document as Markdown: formulas between dollar signs, figures as files beside it."""

from __future__ import annotations

from collections.abc import Callable

from grolang.explain import document as doc
from grolang.explain.document import Block, Document, Words
from grolang.explain.formula import Formula

#: a name -> where it is found
Address = Callable[[str], str]


def rendered(document: Document, figure: Address | None = None, link: Address | None = None) -> str:
    """The text. `figure` gives the address of a figure by its name, `link` that of a method's page; else plain."""
    parts = [f"# {document.title}"]
    for section in document.sections:
        if section.title:
            parts.append(f"## {section.title}")
        parts += [_block(block, figure, link) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block, figure: Address | None, link: Address | None) -> str:
    def words(row: Words) -> str:
        return "".join(_word(word, link) for word in row)

    match block:
        case doc.Paragraph():
            return words(block.words)
        case doc.Display():
            return f"$$\n{aligned(block.formulas)}\n$$"
        case doc.Items():
            return "\n".join(f"- {words(row)}" for row in block.rows)
        case doc.Table():
            rows = [[words(cell).replace("|", r"\|") for cell in row] for row in (block.head, *block.rows)]
            lines = [f"| {' | '.join(row)} |" for row in rows]
            return "\n".join([lines[0], "|" + " --- |" * len(block.head), *lines[1:]])
        case doc.Figures() if figure is not None:
            shown = [f"![{drawing.caption or drawing.name}]({figure(drawing.name)})" for drawing in block.figures]
            return "\n".join(shown)
        case doc.Listing():
            return f"```{block.language}\n{block.text}\n```"
        case _:
            return ""


def _word(word: object, link: Address | None) -> str:
    match word:
        case Formula():
            return f"${word.latex}$"
        case doc.Code():
            return f"`{word.text}`"
        case doc.Link():
            return f"[`{word.name}`]({link(word.name)})" if link is not None else f"`{word.name}`"
        case _:
            return str(word)


def aligned(formulas: tuple[Formula, ...]) -> str:
    """Formulas below each other, their first `=` in one column."""
    if len(formulas) == 1:
        return formulas[0].latex
    lines = [formula.latex.replace(" = ", " &= ", 1) for formula in formulas]
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"
