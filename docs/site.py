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
    """Every method with a line."""
    lines = ["# Methods", "", "[Table 1](table.md) has a row of formulas for each.", "", "| method | data | |"]
    lines.append("| --- | --- | --- |")
    for name in library.built_in():
        shown = page(name)
        data = " + ".join(shown.ir.data)
        lines.append(f"| [`{name}`]({name}.md) | {data} | {shown.ir.title} |")
    return "\n".join(lines) + "\n"


def table() -> str:
    """Table 1 over the whole width of the window."""
    lines = ["---", "hide: [navigation, toc]", "---", "", "# Table 1"]
    for section in table_of().sections:
        body = html.fragment(section, lambda other: f"../{other}/")
        lines += ["", f'<div class="explain wide">\n{body}\n</div>']
    return "\n".join(lines) + "\n"


#: how pages fit into the theme: words of code whole, and columns of wide tables no narrower than a sentence can take;
#: figures in pairs; Table 1 with its head and names in sight
FITTED = """
.md-typeset td code { word-break: normal; }
.md-typeset :where(td:first-child:nth-last-child(n+5) ~ td) { min-width: 10rem; }
.md-typeset td a code { white-space: nowrap; }
.md-typeset .explain figure { width: 15.5rem; max-width: 100%; margin: 0; text-align: start; }
.md-typeset .explain figcaption { margin: 0; max-width: none; font-style: normal; }
.md-typeset .wide table { max-height: 85vh; overflow: auto; }
.wide th, .wide td { min-width: 0; white-space: nowrap; }
.wide th, .wide td:first-child { position: sticky; z-index: 1; background: var(--md-default-bg-color); }
.wide th { top: 0; z-index: 2; }
.wide td:first-child, .wide th:first-child { left: 0; }
.wide th:first-child { z-index: 3; }
"""


def css() -> str:
    """The style of explanations, where they stand; text, tables and code look as they do on the rest of the site."""
    rules = [rule for rule in html.style().split("\n") if not re.match(r"(:root|body|h1|table|th|code|pre)\b", rule)]
    scoped = [rule if rule.startswith("@") else re.sub(r"(?:^|(?<=} ))(?=[^\s}])", ".explain ", rule) for rule in rules]
    return "\n".join(scoped) + FITTED


def fenced(text: str) -> str:
    """A block of the manual that is refused, with its code above it: what stands after the language of a fence, which
    the tests read, is no fence to mkdocs, which would take the rest of the page for code."""
    return re.sub(r"(?m)^```gro bad (\w+)$", r'```gro title="\1"', text)


for path in sorted((ROOT / "docs").rglob("*.md")):
    text = path.read_text(encoding="utf-8")
    if fenced(text) != text:
        write(path.relative_to(ROOT / "docs").as_posix(), fenced(text))
write("index.md", front())
write("explain.css", css())
write("methods/index.md", index())
write("methods/table.md", table())
for built_in in library.built_in():
    write(f"methods/{built_in}.md", method(built_in))
