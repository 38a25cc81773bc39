"""The manual is run: files check, code runs, commands succeed, tables are those in code, links lead somewhere.

On a page, every ```gro block lies in the working folder under its method's name; ```python blocks share their names.
A ```gro block marked `bad CODE` must yield that code. A command that ends otherwise than with 0 says `# exit code N`.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

import grolang
from grolang.cli import main
from grolang.cli.app import command
from grolang.language.checker import check
from grolang.language.components import COMPONENTS, FUNCTION_COMPONENTS
from grolang.language.source import Source

from . import tables

ROOT = tables.DOCS.parent
PAGES = [*sorted(tables.DOCS.rglob("*.md")), ROOT / "README.md"]
RUNS = (
    "check",
    "fmt",
    "show",
    "list",
    "test",
    "equiv",
    "diff",
    "lift",
    "new",
    "version",
    "explain-error",
    "emit",
    "explain",
    "table",
)
BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


@dataclass(frozen=True)
class Block:
    """A fenced block: the words after its fence, and its text."""

    words: tuple[str, ...]
    text: str

    @property
    def kind(self) -> str:
        return self.words[0] if self.words else ""


def blocks(path: Path, *kinds: str) -> list[Block]:
    found = BLOCK.finditer(path.read_text(encoding="utf-8"))
    every = [Block(tuple(block["info"].split()), block["text"]) for block in found]
    return [block for block in every if block.kind in kinds]


def lines(path: Path) -> list[tuple[list[str], int]]:
    """The commands of the shell blocks, as words, with the exit code that the page promises."""
    found = []
    for block in blocks(path, "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            promised = re.search(r"# exit code (\d+)", line)
            if words := shlex.split(line, comments=True):
                found.append((words, int(promised[1]) if promised else 0))
    return found


def test_the_pages_hold_what_they_should() -> None:
    """A test of the test: fences are found."""
    found = [block for path in PAGES for block in blocks(path, "gro", "python", "sh", "toml")]
    assert len(found) > 20
    assert {"gro", "python", "sh", "toml"} == {block.kind for block in found}
    assert sum(len(lines(path)) for path in PAGES) > 15


@page
def test_files_check(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_files(path)  # one may extend another
    for block in blocks(path, "gro"):
        checked = check(Source("page.gro", block.text))
        wanted = block.words[2:] if block.words[1:2] == ("bad",) else ()
        found = {finding.code for finding in checked.findings}
        assert set(wanted) <= found, f"{wanted} is not among {found}:\n{block.text}"
        errors = {finding.code for finding in checked.errors} - set(wanted)
        assert not errors, f"{errors}:\n{block.text}"


@page
def test_code_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    put_files(path)
    names: dict[str, object] = {"__name__": path.stem}
    for block in blocks(path, "python"):
        exec(compile(block.text, path.name, "exec"), names)


@pytest.fixture
def unshrunk() -> Iterator[None]:
    """Counterexamples as they are found: making them small takes most of the time."""
    before = settings.get_current_profile_name()
    settings.register_profile("unshrunk", phases=[Phase.generate])
    settings.load_profile("unshrunk")
    yield
    settings.load_profile(before)


@page
@pytest.mark.usefixtures("unshrunk")
def test_commands_succeed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with the page's files and a copy of `methods/`."""
    monkeypatch.chdir(tmp_path)
    Path("methods").symlink_to(ROOT / "methods")
    put_files(path)
    for words, promised in lines(path):
        if words[0] != "grolang" or words[1] not in RUNS:
            continue
        if any(word.startswith("runs/") for word in words):  # test_howto.py runs it
            continue
        output = io.StringIO()
        target = words.index(">") if ">" in words else len(words)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = main(words[1:target])
        assert code == promised, f"{shlex.join(words)}: exit code {code}\n{output.getvalue()}"
        if target < len(words):
            Path(words[target + 1]).write_text(output.getvalue(), encoding="utf-8")


def put_files(path: Path) -> None:
    for block in blocks(path, "gro"):
        name = re.search(r"^method\s+(\w+)", block.text, re.MULTILINE)
        if name and "bad" not in block.words:
            Path(f"{name[1]}.gro").write_text(block.text, encoding="utf-8")


@page
def test_training_commands_have_known_options(path: Path) -> None:
    run = command("run").commands["run"]
    for words, _ in lines(path):
        if "grolang" in words and "run" in words:
            run.make_context("run", words[words.index("run") + 1 :])  # parses; raises for what it does not know


@page
def test_every_command_exists(path: Path) -> None:
    known = set(command().commands)
    for words, _ in lines(path):
        if words[0] == "grolang":
            assert words[1] in known, shlex.join(words)


@page
def test_tables_are_those_in_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == tables.written(text), "run `python tests/docs/tables.py`"


def test_the_defaults_of_components_are_those_in_code() -> None:
    page = (tables.DOCS / "language.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+(?:\(\w\))?)` \| [^|]+ \| `([^`]+)` \|", page, re.MULTILINE))
    rows = [*COMPONENTS.values(), *FUNCTION_COMPONENTS.values()]
    defaults = {row.name + (f"({row.argument})" if row.argument else ""): row.default for row in rows if row.default}
    assert len(defaults) == 9 and defaults.items() <= told.items()


def test_every_table_has_a_place() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    assert {found["name"] for found in tables.MARK.finditer(text)} == set(tables.TABLES)


@page
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith(("https://", "http://")) or (path.parent / target).exists(), target


def test_the_reading_order_of_the_runtime_has_every_file() -> None:
    order = (
        (tables.DOCS / "design.md")
        .read_text(encoding="utf-8")
        .partition("## The runtime")[2]
        .partition("**One row**")[0]
    )
    files = {path.stem for path in (tables.DOCS.parent / "runtime").glob("*.py")} - {"__init__"}
    named = re.findall(r"`(\w+)`", "".join(line.split(" | ")[0] for line in order.splitlines() if line.startswith("|")))
    assert len(named) == len(set(named)) and set(named) == files


RUNTIME = tables.DOCS / "runtime.md"


def test_configuration_files_are_read() -> None:
    from grolang.runtime.settings import read_settings, tomllib

    for block in blocks(RUNTIME, "toml"):
        values = tomllib.loads(block.text)
        assert read_settings("prompts", values).method == values["method"]


@pytest.mark.parametrize(("name", "drawn"), [("dpo", False), ("grpo", True), ("sft", False)])
def test_every_figure_is_named(name: str, drawn: bool) -> None:
    from grolang.runtime.figures import METRICS
    from grolang.runtime.metrics import step_figures
    from grolang.runtime.sequences import Sample

    named = {name for row in METRICS for name in row.names}
    method = grolang.load(name)
    logp = -torch.rand(4, 3)
    batch = grolang.Batch(
        mask=torch.ones(4, 3, dtype=torch.bool), group=torch.tensor([0, 0, 1, 1]), logp=logp, logp_old=logp,
        logp_ref=logp, logp_sampler=logp, entropy=torch.rand(4, 3), label=torch.tensor([1.0, -1.0, 1.0, -1.0]),
        demonstration=torch.zeros(4), scores={score: torch.rand(4) for score in method.scores},
    )  # fmt: skip
    samples = [Sample([1], [1, 2, 3], group) for group in (0, 0, 1, 1)]
    for figure in step_figures(samples, batch, method.evaluate(batch), drawn=drawn, old=True):
        general = re.sub(r"^report/.*", "report/NAME", figure)
        general = re.sub(r"^rewards/correct/", "rewards/SCORE/", general)
        assert general in named, figure
