"""The house's rules (ARCHITECTURE.md), read off the sources: arrows run one way, torch starts in the compiler."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from grolang.language import library
from grolang.language.functions import KEYWORDS
from grolang.language.parameters import BUILTIN_SCORES
from grolang.language.syntax import parser

tomllib: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).resolve().parents[2]

#: which rooms a room may not import, whatever the place of the import
FORBIDDEN = {
    "language": ("compiler", "laws", "explain", "integrations", "cli", "runtime"),
    "compiler": ("runtime", "laws", "explain", "integrations", "cli"),
    "laws": ("runtime", "explain", "cli", "integrations"),
    "explain": ("runtime", "cli", "integrations"),
    "runtime": ("cli", "integrations"),
    "integrations": ("runtime", "cli"),
}
#: importing these must not import torch
TORCH_FREE = (
    "grolang",
    "grolang.language.checker",
    "grolang.language.formatter",
    "grolang.language.library",
    "grolang.compiler.lowering",
    "grolang.compiler.needs",
    "grolang.runtime.settings",
    "grolang.compiler.program",
    "grolang.compiler.derivative",
    "grolang.compiler.schedule",
    "grolang.compiler.on_policy",
)


def room(name: str) -> Path:
    return ROOT / name if name == "runtime" else ROOT / "grolang" / name


def sources(*rooms: str) -> Iterator[Path]:
    for name in rooms:
        yield from sorted(path for path in room(name).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every import of a file, relative ones resolved."""
    parts = ("grolang", *path.relative_to(ROOT).with_suffix("").parts)
    package = parts[1:-1] if parts[1] == "grolang" else parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


@pytest.mark.parametrize("name", ["language", "compiler", "laws"])
def test_a_room_says_in_which_order_to_read_its_files(name: str) -> None:
    said = import_module(f"grolang.{name}").__doc__ or ""
    files = {path.stem for path in room(name).iterdir()} - {"__init__", "__pycache__"}
    assert set(re.findall(r"`(\w+)`", said)) == files


@pytest.mark.parametrize("name", FORBIDDEN)
def test_imports_run_one_way(name: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources(name)
        for line, module in imported(path)
        for other in FORBIDDEN[name]
        if module == f"grolang.{other}" or module.startswith(f"grolang.{other}.")
    ]
    assert not wrong, "\n".join(wrong)


def test_the_import_reader_sees_an_arrow_that_runs_back(tmp_path: Path) -> None:
    assert any(module == "grolang.language.scopes.Scope" for _, module in imported(room("compiler") / "layout.py"))
    assert any(
        module.startswith("grolang.compiler.fused.") for _, module in imported(room("compiler") / "fused" / "attach.py")
    )


def test_the_language_imports_no_torch() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources("language")
        for line, module in imported(path)
        if module.split(".")[0] in ("torch", "numpy", "transformers")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_module_that_only_reads_text_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert done.stdout.strip() == "[]", f"{module} imports {done.stdout}"


def test_a_method_is_checked_without_torch() -> None:
    code = "import sys; from grolang.language.checker import check_file; check_file('dpo').unwrap(); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    assert done.stdout.strip() == "False"


def packages_on_disk() -> set[str]:
    """Every folder that holds an `__init__.py`, under the name that it installs as."""
    found = set()
    for top, name in (
        ("grolang", "grolang"),
        ("grammar", "grolang.grammar"),
        ("methods", "grolang.methods"),
        ("runtime", "grolang.runtime"),
    ):
        for init in (ROOT / top).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / top).parts
            found.add(".".join([name, *inner]))
    return found


def project() -> Any:
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)


def test_the_package_list_is_what_is_on_the_disk() -> None:
    assert set(project()["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_every_folder_of_sources_is_a_package() -> None:
    folders = {path.parent for top in ("grolang", "runtime") for path in (ROOT / top).rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_no_source_branches_on_a_methods_name() -> None:
    """No comparison, membership, match case or dict look-up with a built-in method's name in it."""
    names = set(library.built_in())
    wrong = []
    for path in [*sources("language", "compiler", "laws", "runtime", "explain"), ROOT / "grolang" / "__init__.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            places: list[ast.AST] = []
            if isinstance(node, ast.Compare):
                places = [node.left, *node.comparators]
            elif isinstance(node, ast.MatchValue):
                places = [node.value]
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value) != "Literal":
                places = [node.slice]
            elif isinstance(node, ast.Dict):
                places = [key for key in node.keys if key is not None]
            for place in places:
                for inner in ast.walk(place):
                    if isinstance(inner, ast.Constant) and inner.value in names:
                        wrong.append(f"{path.relative_to(ROOT)}:{inner.lineno}: {inner.value!r}")
    assert not wrong, "\n".join(wrong)


def grammar_words() -> set[str]:
    """The words that the grammar spells out."""
    found = {t.pattern.value.removesuffix(r"\b") for t in parser().terminals}
    words = {word for word in found if re.fullmatch("[a-z]+", word)}
    assert {"method", "aggregate", "over", "if"} <= words
    return words


def test_every_keyword_of_the_grammar_is_reserved_or_only_meant_in_its_place() -> None:
    """A word of the grammar is a keyword that no definition may take, or one that only a law's claim reads."""
    words = grammar_words()
    of_claims = {"loss", "equals", "proportional", "to", "invariant", "unbiased"}
    assert of_claims <= words
    assert words - of_claims <= KEYWORDS, sorted(words - of_claims - KEYWORDS)


def test_every_keyword_of_the_grammar_is_documented() -> None:
    words = grammar_words()
    pages = [*(ROOT / "docs").glob("**/*.md"), ROOT / "README.md", ROOT / "grammar" / "gro.lark"]
    manual = [page for page in pages if page.suffix == ".md" and page.stat().st_size]
    if not any("docs" in page.parts for page in manual):
        pytest.skip("the manual is not written yet")
    said = " ".join(page.read_text(encoding="utf-8") for page in manual)
    assert not [word for word in sorted(words) if not re.search(rf"\b{word}\b", said)]


def test_the_checker_knows_exactly_the_built_in_scores_of_the_runtime() -> None:
    try:
        verifiers = import_module("grolang.runtime.verifiers")
    except ImportError:
        pytest.skip("grolang.runtime.verifiers cannot be imported yet")
    assert tuple(verifiers.BUILTINS) == BUILTIN_SCORES


@pytest.mark.parametrize("name", sorted(library.built_in()))
def test_a_built_in_method_cites_its_source_and_stays_short(name: str) -> None:
    text = library.built_in()[name].text
    lines = [line for line in text.splitlines() if line.strip()]
    assert 6 <= len(lines) <= 25, f"{len(lines)} lines"
    assert re.search(r"arXiv:\d{4}\.\d{5}|\((19|20)\d\d\)|, (19|20)\d\d\)", text), "cites no paper"


def test_completion_shows_names_that_wait_for_torch() -> None:
    assert set(import_module("grolang").__all__) <= set(dir(import_module("grolang")))


@pytest.mark.parametrize("module", ["grolang", "grolang.testing", "grolang.explain", "grolang.runtime"])
def test_what_a_user_imports_says_what_it_is(module: str) -> None:
    """Every public name, and every method and property of a public class."""
    found, silent = import_module(module), []
    for name in found.__all__:
        thing = getattr(found, name)
        if not isinstance(thing, type) and not inspect.isfunction(thing):
            continue
        silent += [] if thing.__doc__ and not thing.__doc__.startswith(f"{name}(") else [name]
        for part, value in vars(thing).items() if isinstance(thing, type) else ():
            told = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
            if not part.startswith("_") and inspect.isfunction(told) and not told.__doc__:
                silent.append(f"{name}.{part}")
    assert not silent
