"""The pages of the site that are made from code: the front page from the README, and one for each method.

mkdocs runs it (`make site`); nothing of it is written into the tree. Formulas are MathML and curves SVG within the
page, so that the site needs no network.
"""

from __future__ import annotations

import re
from pathlib import Path

import mkdocs_gen_files

from grolang.explain import html, page, table_of
from grolang.language import library

ROOT = Path(__file__).resolve().parents[1]


def write(path: str, text: str) -> None:
    with mkdocs_gen_files.open(path, "w") as file:
        file.write(text)


def front() -> str:
    """The README; its links into the manual are those of the site, those to other files of the project plain text."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](manual:")
    text = re.sub(r"\[([^\]]+)\]\((?!https?:|manual:)[^)]+\)", r"\1", text)
    return text.replace("](manual:", "](")


def method(name: str) -> str:
    """What `grolang explain` shows, and the file itself, with its colours."""
    shown = page(name)
    document = shown.document()
    parts = [f"# {name}: {document.title}"]
    for section in document.sections:
        if section.title == "The file":
            parts.append(f"## The file\n\n```gro\n{library.built_in()[name].text.rstrip()}\n```")
        elif section.blocks:
            body = html.fragment(section, lambda other: f"../{other}/")
            head, body = (f"## {section.title}", body.split("</h2>\n", 1)[1]) if section.title else ("", body)
            parts += [head, f'<div class="explain">\n{body}\n</div>']
    return "\n\n".join(part for part in parts if part) + "\n"


def index() -> str:
    """Every method with a line, and Table 1."""
    lines = ["# Methods", "", "| method | data | |", "| --- | --- | --- |"]
    for name in library.built_in():
        shown = page(name)
        data = " + ".join(shown.ir.data)
        lines.append(f"| [`{name}`]({name}.md) | {data} | {shown.ir.title} |")
    lines += ["", "## Table 1"]
    for section in table_of().sections:
        body = html.fragment(section, lambda other: f"{other}/")
        lines += ["", f'<div class="explain">\n{body}\n</div>']
    return "\n".join(lines) + "\n"


write("index.md", front())
write("explain.css", "\n".join(rule for rule in html.style().split("\n") if not re.match(r"(:root|body|h1)", rule)))
write("methods/index.md", index())
for built_in in library.built_in():
    write(f"methods/{built_in}.md", method(built_in))
