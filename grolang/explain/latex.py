"""A document as a LaTeX article that pdflatex reads; figures are left out."""

from __future__ import annotations

import unicodedata

from grolang.explain import document as doc
from grolang.explain.document import Block, Document, Words
from grolang.explain.formula import Formula
from grolang.explain.markdown import aligned
from grolang.explain.notation import GREEK

_FRAME = r"""\documentclass{{article}}
\usepackage[utf8]{{inputenc}}
\usepackage[T1]{{fontenc}}
\usepackage{{amsmath,amssymb,booktabs,array}}
\usepackage[a4paper,margin=2.5cm{orientation}]{{geometry}}
\title{{{title}}}
\date{{}}
\begin{{document}}
\maketitle

{body}

\end{{document}}
"""
_MARKS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "–": "--",
    "−": "$-$",
    "∇": r"$\nabla$",
    "ĝ": r"$\hat g$",
    "·": r"$\cdot$",
    "…": r"\dots{}",
    "µ": r"$\mu$",
    "√": r"$\surd$",
    "Σ": r"$\sum$",
    "²": "$^2$",
    "≥": r"$\ge$",
    "≤": r"$\le$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "∞": r"$\infty$",
}
_SIGNS = {letter: rf"$\{name}$" for name, letter in GREEK.items() if name != "omicron"} | _MARKS


def rendered(document: Document) -> str:
    """The text of a file of its own."""
    parts = []
    wide = False
    for section in document.sections:
        if section.title:
            parts.append(rf"\section*{{{_escaped(section.title)}}}")
        for block in section.blocks:
            wide = wide or (isinstance(block, doc.Table) and len(block.head) > 4)
            parts.append(_block(block))
    body = "\n\n".join(part for part in parts if part)
    return _FRAME.format(title=_escaped(document.title), body=body, orientation=",landscape" if wide else "")


def _block(block: Block) -> str:
    match block:
        case doc.Paragraph():
            return _words(block.words)
        case doc.Display():
            return "\\[\n" + aligned(block.formulas) + "\n\\]"
        case doc.Items():
            rows = "\n".join(rf"  \item {_words(row)}" for row in block.rows)
            return f"\\begin{{itemize}}\n{rows}\n\\end{{itemize}}"
        case doc.Table():
            return _table(block)
        case doc.Listing():
            return f"\\begin{{verbatim}}\n{_plain(block.text)}\n\\end{{verbatim}}"
        case doc.Figures():
            return ""


def _table(table: doc.Table) -> str:
    rows = [" & ".join(_words(cell) for cell in row) + r" \\" for row in (table.head, *table.rows)]
    columns = "l" * len(table.head)
    inside = "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]])
    size = r"{\tiny\setlength{\tabcolsep}{3pt}" if len(table.head) > 4 else "{"
    return f"{size}\n{inside}\n\\bottomrule\n\\end{{tabular}}\n}}"


def _words(words: Words) -> str:
    return "".join(_word(word) for word in words)


def _word(word: object) -> str:
    match word:
        case Formula():
            return f"${word.latex}$"
        case doc.Code():
            return rf"\texttt{{{_escaped(word.text)}}}"
        case doc.Link():
            return rf"\texttt{{{_escaped(word.name)}}}"
        case _:
            return _escaped(str(word))


def _escaped(text: str) -> str:
    return "".join(_SIGNS.get(char, _named(char)) for char in text)


def _plain(text: str) -> str:
    """Verbatim text takes no formulas: Greek letters become their names."""
    return "".join(map(_named, text))


def _named(char: str) -> str:
    """A sign that pdflatex reads, or its name."""
    if ord(char) < 0x100:
        return char
    return {"√": "sqrt", "Σ": "Sum", "−": "-", "–": "-"}.get(char, unicodedata.name(char, "?").split()[-1].lower())
