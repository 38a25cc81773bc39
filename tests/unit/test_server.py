"""The language server, asked by a real client over pipes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types as lsp
from pygls.lsp.client import LanguageClient

from grolang.language.diagnostics import GroError

TEXT = """method mine "Mine"
data preference
param beta = 0.1 in (0, inf) "how strongly"
reward  = label
measure = sum(logp - logp_ref over tokens)
margin  = sigmoid(beta * measure)
advantage = margin * reward
"""


class Editor:
    """A client that keeps what is published."""

    def __init__(self) -> None:
        self.client = LanguageClient("test", "1")
        self.published: asyncio.Queue[lsp.PublishDiagnosticsParams] = asyncio.Queue()
        self.client.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)(lambda told: self.published.put_nowait(told))

    async def open(self, path: Path, text: str) -> list[lsp.Diagnostic]:
        item = lsp.TextDocumentItem(path.as_uri(), "gro", 1, text)
        self.client.text_document_did_open(lsp.DidOpenTextDocumentParams(item))
        return list((await asyncio.wait_for(self.published.get(), 600)).diagnostics)

    async def change(self, path: Path, text: str) -> list[lsp.Diagnostic]:
        document = lsp.VersionedTextDocumentIdentifier(uri=path.as_uri(), version=2)
        whole = lsp.TextDocumentContentChangeWholeDocument(text)
        self.client.text_document_did_change(lsp.DidChangeTextDocumentParams(document, [whole]))
        return list((await asyncio.wait_for(self.published.get(), 600)).diagnostics)


@pytest.fixture
def edit() -> Callable[[Callable[[Editor], Awaitable[Any]]], Any]:
    """Runs a conversation with a server of its own."""

    def run(talk: Callable[[Editor], Awaitable[Any]]) -> Any:
        async def conversation() -> Any:
            editor = Editor()
            await editor.client.start_io(sys.executable, "-m", "grolang", "lsp")
            await editor.client.initialize_async(lsp.InitializeParams(capabilities=lsp.ClientCapabilities()))
            editor.client.initialized(lsp.InitializedParams())
            found = await talk(editor)
            await editor.client.shutdown_async(None)
            editor.client.exit(None)
            await editor.client.stop()
            return found

        return asyncio.run(asyncio.wait_for(conversation(), 600))

    return run


def at(text: str, what: str) -> lsp.Position:
    line = next(number for number, line in enumerate(text.split("\n")) if what in line)
    return lsp.Position(line, text.split("\n")[line].index(what) + 1)


def test_findings_follow_the_text(edit: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.gro"
    bad = TEXT.replace("logp_ref", "logp_reff").replace("how strongly", "β: 𝛽, how strongly")

    async def talk(editor: Editor) -> None:
        (finding,) = await editor.open(path, bad.replace("\n", "\r\n"))
        assert (finding.code, finding.severity) == ("E201", lsp.DiagnosticSeverity.Error)
        assert "did you mean `logp_ref`?" in finding.message
        column = bad.split("\n")[4].index("logp_reff")
        assert finding.range == lsp.Range(lsp.Position(4, column), lsp.Position(4, column + len("logp_reff")))
        assert [row.severity for row in await editor.change(path, TEXT)] == []

    edit(talk)


def test_positions_count_utf16_units(edit: Any, tmp_path: Path) -> None:
    text = TEXT.replace('"how strongly"', '"𝛽𝛽" strongly')

    async def talk(editor: Editor) -> None:
        (finding,) = await editor.open(tmp_path / "mine.gro", text)
        before = text.split("\n")[2].split("strongly")[0]
        assert finding.range.start.character == len(before.encode("utf-16-le")) // 2 == len(before) + 2

    edit(talk)


def test_a_finding_in_a_parent_stands_where_it_is_extended(edit: Any, tmp_path: Path) -> None:
    (tmp_path / "parent.gro").write_text(TEXT.replace("logp_ref", "logp_reff"))
    text = 'method child "Child"\nextends parent\n'

    async def talk(editor: Editor) -> None:
        (finding,) = await editor.open(tmp_path / "child.gro", text)
        assert finding.range.start.line == 1
        (related,) = finding.related_information or []
        assert related.location.uri.endswith("parent.gro") and related.location.range.start.line == 4

    edit(talk)


def test_words_have_meanings(edit: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.gro"
    document = lsp.TextDocumentIdentifier(path.as_uri())

    async def talk(editor: Editor) -> None:
        await editor.open(path, TEXT)

        async def hover(what: str) -> str:
            found = await editor.client.text_document_hover_async(lsp.HoverParams(document, at(TEXT, what)))
            return "" if found is None else found.contents.value  # type: ignore[union-attr]

        assert "has one value per sequence, in (0, 1); a gradient in `logp` flows" in await hover("margin  =")
        assert 'param beta = 0.1 in (0, inf) "how strongly"' in await hover("beta * measure")
        assert "log πθ of the token, now: has one value per token" in await hover("logp - ")
        assert "sigmoid(x)" in await hover("sigmoid(")
        assert await hover("0.1") == ""

        (place, parents) = [
            await editor.client.text_document_definition_async(lsp.DefinitionParams(document, at(text, what)))
            for text, what in ((TEXT, "measure)"), (TEXT, "label"))
        ]
        assert isinstance(place, lsp.Location) and place.range.start.line == 4 and parents is None

        items = await editor.client.text_document_completion_async(lsp.CompletionParams(document, lsp.Position(6, 12)))
        assert isinstance(items, list)
        labels = [item.label for item in sorted(items, key=lambda item: item.sort_text or "")]
        assert labels[0] == "advantage" and {"margin", "beta", "logsigmoid", "to_go", "aggregate"} <= {*labels}

    edit(talk)


def test_the_definition_in_a_built_in_parent_is_its_file(edit: Any, tmp_path: Path) -> None:
    path, text = tmp_path / "child.gro", 'method child "Child"\nextends dpo\nalpha = beta * label * 2\n'

    async def talk(editor: Editor) -> lsp.Location:
        assert await editor.open(path, text) == []
        asked = lsp.DefinitionParams(lsp.TextDocumentIdentifier(path.as_uri()), at(text, "beta"))
        found = await editor.client.text_document_definition_async(asked)
        assert isinstance(found, lsp.Location)
        return found

    place = edit(talk)
    line = Path(place.uri.removeprefix("file://")).read_text().split("\n")[place.range.start.line]
    assert line.startswith("param beta")


def test_layout_is_that_of_fmt(edit: Any, tmp_path: Path) -> None:
    from grolang.language.formatter import format_text

    path = tmp_path / "mine.gro"

    async def talk(editor: Editor) -> list[Any]:
        found = []
        for text in (TEXT, TEXT + "omega(z) = (\n"):
            await editor.open(path, text)
            asked = lsp.DocumentFormattingParams(
                lsp.TextDocumentIdentifier(path.as_uri()), lsp.FormattingOptions(tab_size=4, insert_spaces=True)
            )
            found.append(await editor.client.text_document_formatting_async(asked))
        return found

    (edited,), broken = edit(talk)
    assert edited.new_text == format_text(TEXT, "mine.gro") != TEXT
    assert edited.range == lsp.Range(lsp.Position(0, 0), lsp.Position(len(TEXT.split("\n")) - 1, 0))
    assert not broken  # a text that cannot be read is left alone


@pytest.mark.parametrize("missing", ["pygls", "lsprotocol"])
def test_without_pygls_the_command_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from grolang.cli.lsp import lsp as command

    monkeypatch.delitem(sys.modules, "grolang.server", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GroError, match=r"grolang\[lsp\]"):
        command()


def test_another_module_that_is_missing_is_not_blamed_on_pygls(monkeypatch: pytest.MonkeyPatch) -> None:
    from grolang.cli.lsp import lsp as command

    monkeypatch.delitem(sys.modules, "grolang.server", raising=False)
    monkeypatch.setitem(sys.modules, "grolang.language.facts", None)
    with pytest.raises(ModuleNotFoundError, match=r"grolang\.language\.facts"):
        command()
