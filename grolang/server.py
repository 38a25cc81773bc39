"""`.gro` in an editor, by the Language Server Protocol: findings while one types, meanings, words, layout.

What is shown comes from the language's own tables and from a check of the text as it stands. Positions of the
protocol count UTF-16 units from 0, or what the editor asked for; a `Source` counts characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer
from pygls.uris import from_fs_path
from pygls.workspace import PositionCodec

from grolang.language.checker import Checked, check
from grolang.language.declarations import Declarations, canonical, declare
from grolang.language.diagnostics import Diagnostic, GroError
from grolang.language.facts import Facts
from grolang.language.findings import Findings
from grolang.language.formatter import format_text
from grolang.language.functions import FORMS, KEYWORDS, NAMED, OBSERVABLES, REDUCTIONS, SPELLINGS
from grolang.language.source import Source, Span

_WORD = re.compile(r"\w+")
_SEVERITY = {"error": lsp.DiagnosticSeverity.Error, "warning": lsp.DiagnosticSeverity.Warning}


def make() -> LanguageServer:
    """The server; its `start_io()` answers on standard input and output until the editor leaves."""
    server = LanguageServer("grolang", version("grolang"))

    @server.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
    @server.feature(lsp.TEXT_DOCUMENT_DID_CHANGE)
    def publish(ls: LanguageServer, told: lsp.DidOpenTextDocumentParams | lsp.DidChangeTextDocumentParams) -> None:
        uri = told.text_document.uri
        ls.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri, Page.of(ls, uri).diagnostics()))

    @server.feature(lsp.TEXT_DOCUMENT_HOVER)
    def hover(ls: LanguageServer, asked: lsp.HoverParams) -> lsp.Hover | None:
        page = Page.of(ls, asked.text_document.uri)
        word = page.word(asked.position)
        meaning = None if word is None else page.meaning(word)
        return None if meaning is None else lsp.Hover(lsp.MarkupContent(lsp.MarkupKind.Markdown, meaning))

    @server.feature(lsp.TEXT_DOCUMENT_COMPLETION)
    def completion(ls: LanguageServer, asked: lsp.CompletionParams) -> list[lsp.CompletionItem]:
        return Page.of(ls, asked.text_document.uri).words()

    @server.feature(lsp.TEXT_DOCUMENT_DEFINITION)
    def definition(ls: LanguageServer, asked: lsp.DefinitionParams) -> lsp.Location | None:
        page = Page.of(ls, asked.text_document.uri)
        word = page.word(asked.position)
        said = None if word is None else page.declared.named(canonical(word))
        return None if said is None else page.location(said.span, said.source)

    @server.feature(lsp.TEXT_DOCUMENT_FORMATTING)
    def formatting(ls: LanguageServer, asked: lsp.DocumentFormattingParams) -> list[lsp.TextEdit]:
        return Page.of(ls, asked.text_document.uri).layout()

    return server


@dataclass(frozen=True)
class Page:
    """The text of an open file, and how the editor counts."""

    uri: str
    source: Source
    codec: PositionCodec

    @staticmethod
    def of(ls: LanguageServer, uri: str) -> Page:
        document = ls.workspace.get_text_document(uri)
        text = document.source.replace("\r\n", "\n")
        return Page(uri, Source(document.path, text), ls.workspace.position_codec)

    @cached_property
    def checked(self) -> Checked:
        return check(self.source)

    @cached_property
    def declared(self) -> Declarations:
        """What the statements say that can be read, in a text that may not be finished."""
        try:
            return declare(self.source, Findings())
        except GroError:  # a file that this one extends cannot be read: the findings say so
            return Declarations()

    def diagnostics(self) -> list[lsp.Diagnostic]:
        return [self._diagnostic(finding) for finding in self.checked.findings]

    def _diagnostic(self, finding: Diagnostic) -> lsp.Diagnostic:
        """A finding in a file that this one extends stands here where it is extended."""
        marks = [] if finding.span is None else [(finding.span, finding.label or "here")]
        marks += [(note.span, note.label) for note in finding.notes]
        place = next((span for span, _ in marks if span.file == self.source.name), None)
        sources = self.checked.sources
        others = [(span, label) for span, label in marks if span != place and span.file in sources]
        return lsp.Diagnostic(
            self._range(place or Span(file=self.source.name, start=0, end=0), self.source),
            finding.message + (f"\nhelp: {finding.help}" if finding.help else ""),
            severity=_SEVERITY[finding.severity],
            code=finding.code,
            source="grolang",
            related_information=[
                lsp.DiagnosticRelatedInformation(self.location(span, sources[span.file]), label)
                for span, label in others
            ],
        )

    def word(self, position: lsp.Position) -> str | None:
        """The word at a position."""
        lines = self.source.text.split("\n")
        at = self.codec.position_from_client_units(lines, position)
        found = _WORD.finditer(lines[at.line]) if at.line < len(lines) else ()
        return next((word[0] for word in found if word.start() <= at.character <= word.end()), None)

    def meaning(self, word: str) -> str | None:
        """What a word says: a name of this file's, or a word of the language."""
        name = canonical(word)
        said = self.declared.named(name)
        if said is not None:
            return "\n\n".join([f"```gro\n{said.source.quoted(said.span)}\n```", *self._facts(name)])
        rows = [f"```gro\n{call}\n```\n\n{meaning}" for call, meaning in _language(SPELLINGS.get(name, name))]
        return "\n\n".join(rows) or None

    def _facts(self, name: str) -> list[str]:
        """Scope, flow and range, where the file has no error."""
        method = self.checked.method
        if method is None or (name not in method.definitions and name not in method.functions):
            return []
        facts = Facts(method)
        body = (method.definitions.get(name) or method.functions[name]).body
        flow = "a gradient in `logp` flows through it" if body.live else "a number: no gradient flows through it"
        return [f"{body.scope.phrase}, in {facts.range(body)}; {flow}"]

    def words(self) -> list[lsp.CompletionItem]:
        """Every word that could stand somewhere: the file's own names first."""
        kinds = lsp.CompletionItemKind
        own = dict.fromkeys(self.declared.names, kinds.Variable)
        rows = own | dict.fromkeys(OBSERVABLES, kinds.Field) | dict.fromkeys(KEYWORDS, kinds.Keyword)
        rows |= dict.fromkeys([*NAMED, *REDUCTIONS, *FORMS], kinds.Function)
        return [
            lsp.CompletionItem(
                word,
                kind=kind,
                detail=next((meaning for _, meaning in _language(word)), None),
                sort_text=f"{word not in own:d}{word}",
            )
            for word, kind in rows.items()
        ]

    def layout(self) -> list[lsp.TextEdit]:
        """The whole text anew; nothing where it cannot be read."""
        try:
            new = format_text(self.source.text, self.source.name)
        except GroError:
            return []
        whole = Span(file=self.source.name, start=0, end=len(self.source.text))
        return [] if new == self.source.text else [lsp.TextEdit(self._range(whole, self.source), new)]

    def location(self, span: Span, source: Source) -> lsp.Location:
        path = files("grolang.methods") / Path(source.name).name if source.built_in else Path(source.name).absolute()
        uri = self.uri if source.name == self.source.name else from_fs_path(str(path)) or self.uri
        return lsp.Location(uri, self._range(span, source))

    def _range(self, span: Span, source: Source) -> lsp.Range:
        def position(offset: int) -> lsp.Position:
            line, column = source.place(offset)
            return lsp.Position(line - 1, self.codec.client_num_units(source.line(line)[: column - 1]))

        return lsp.Range(position(span.start), position(span.end))


def _language(word: str) -> list[tuple[str, str]]:
    """How a word of the language is written, and what it says: one row for each thing that it can be."""
    found = []
    if word in NAMED:
        row = NAMED[word]
        found.append((f"{word}({', '.join(row.arguments)})", row.help))
    if word in REDUCTIONS:
        found.append((f"{word}(… over AXIS)", REDUCTIONS[word].help))
    if word in FORMS:
        found.append((f"{word}({', '.join(FORMS[word].arguments)})", FORMS[word].help))
    if word in OBSERVABLES:
        seen = OBSERVABLES[word]
        found.append((word, f"{seen.help}: {seen.scope.phrase}, in {seen.range}"))
    return found
