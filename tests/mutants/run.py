"""Show that the fast suite finds each seeded fault: `python tests/mutants/run.py [NAME …]`, or `make mutants`.

The tracked files are copied to a temporary folder with an environment of its own, which sees the packages of the
one that runs this but imports grolang from the copy. There each fault is written in and taken out again; the tests
that its row names run first, and only if they pass, all others. Nothing is ever changed where this file lies.

The outcome goes to docs/mutants.md; with names only their rows are written anew. Exit code 1 where a fault survives.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.mutants.table import MUTANTS, Mutant  # noqa: E402

PAGE = ROOT / "docs" / "mutants.md"
MARK = re.compile(r"(<!-- mutants -->\n).*?(<!-- end mutants -->)", re.DOTALL)
HEAD = ("fault", "what is wrong", "in", "found by", "seconds")
SURVIVED = "**nothing**"

#: of a fault's text in the table this is a test itself, and would find every one
BLIND = "tests/unit/test_mutants.py"


@dataclass(frozen=True)
class Outcome:
    """What found a fault: the first test that failed, or SURVIVED."""

    mutant: Mutant
    found_by: str
    seconds: float


@dataclass(frozen=True)
class Copy:
    """The copied tree, the Python that imports it, and a process that has torch imported and forks (warm.py)."""

    tree: Path
    python: Path

    @cached_property
    def warm(self) -> subprocess.Popen[str]:
        command = [str(self.python), "tests/mutants/warm.py"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.tree, env=self.environment(), stdin=pipe, stdout=pipe, text=True)

    def pytest(self, *words: str, limit: float) -> str | None:
        """The first test that fails, or None where all pass or the limit is over: a fault is found or it is not."""
        options = ("-x", "-q", "--tb=no", "-rfE", "--no-header", "-p", "no:cacheprovider", f"--ignore={BLIND}")
        written = self.tree.parent / "output.txt"
        assert self.warm.stdin is not None and self.warm.stdout is not None
        self.warm.stdin.write(json.dumps({"words": [*options, *words], "output": str(written)}) + "\n")
        self.warm.stdin.flush()
        process = int(self.warm.stdout.readline())
        late = threading.Timer(limit, os.killpg, (process, signal.SIGKILL))
        late.start()
        code = int(self.warm.stdout.readline())
        late.cancel()
        if code == -signal.SIGKILL:
            return None
        output = written.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        if code == 0:
            return None
        return found[1] if found else f"pytest ends with {code}: {output.strip()[-200:]}"

    def environment(self) -> dict[str, str]:
        """The same tests with the same random examples every time; no compiled file may outlive its fault."""
        own = {"HYPOTHESIS_PROFILE": "same", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        rest = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return rest | own

    @contextmanager
    def with_fault(self, mutant: Mutant) -> Iterator[None]:
        path = self.tree / mutant.file
        text = path.read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, f"{mutant.name}: its text stands {text.count(mutant.old)} times in {path}"
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(text, encoding="utf-8")

    def close(self) -> None:
        self.warm.kill()
        self.warm.wait()


def copied(folder: Path) -> Copy:
    """Copy the tree, as a repository of its own, and install it there; every package must come from it."""
    tree = folder / "tree"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().splitlines():
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tree, check=True)
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    packages = next((folder / "venv" / "lib").glob("python*/site-packages"))
    here = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # A path that a .pth file names is searched, but its own .pth files are not read: no other grolang gets in.
    (packages / "of_the_caller.pth").write_text("\n".join(dict.fromkeys([*here, *site.getsitepackages()])) + "\n")
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation")
    made = Copy(tree, python)
    subprocess.run([str(python), *install, "-e", str(tree)], env=made.environment(), check=True)
    code = (
        "import importlib, sys\n"
        "for name in ('grolang', 'grolang.runtime', 'grolang.methods', 'grolang.grammar', 'grolang.compiler.fused'):\n"
        "    file = importlib.import_module(name).__file__\n"
        "    assert file.startswith(sys.argv[1]), f'{name} is imported from {file}'\n"
    )
    for place in (tree, folder):
        subprocess.run([str(python), "-c", code, str(tree)], cwd=place, env=made.environment(), check=True)
    return made


def tried(copy: Copy, mutant: Mutant, limit: float, hinted: bool) -> Outcome:
    """Run the tests that should find a fault, then the others."""
    began = time.monotonic()
    with copy.with_fault(mutant):
        found = copy.pytest(*mutant.hint, limit=limit)
        if found is None and not hinted:
            found = copy.pytest("tests", "methods", limit=limit)
    return Outcome(mutant, found or SURVIVED, time.monotonic() - began)


def sound(copy: Copy, mutants: Sequence[Mutant], limit: float) -> str | None:
    """Without a fault the named tests pass: else nothing would be shown."""
    hints = list(dict.fromkeys(hint for mutant in mutants for hint in mutant.hint))
    return copy.pytest(*hints, limit=10 * limit)


def row(outcome: Outcome) -> str:
    mutant = outcome.mutant
    found = SURVIVED if outcome.found_by == SURVIVED else f"`{outcome.found_by.split('[')[0]}`"
    cells = (f"`{mutant.name}`", mutant.what, f"`{mutant.file}`", found, f"{outcome.seconds:.0f}")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rows_of(text: str) -> dict[str, str]:
    """The rows that a page has, by the name of the fault."""
    return {found[1]: found[0] for found in re.finditer(r"^\| `(\w+)` \|.*$", text, re.MULTILINE)}


def write(outcomes: Sequence[Outcome]) -> None:
    """Rows of these faults anew, of the others as they were, in the order of the table."""
    text = PAGE.read_text(encoding="utf-8")
    found = rows_of(text) | {outcome.mutant.name: row(outcome) for outcome in outcomes}
    lines = ["| " + " | ".join(HEAD) + " |", "| --- | --- | --- | --- | ---: |"]
    lines += [found[mutant.name] for mutant in MUTANTS if mutant.name in found]
    table = "\n".join(lines)
    PAGE.write_text(MARK.sub(lambda mark: f"{mark[1]}\n{table}\n\n{mark[2]}", text), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults of tests/mutants/table.py; all by default")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that one run of tests may take")
    parser.add_argument(
        "--trust", action="store_true", help="do not make sure first that the tests pass without faults"
    )
    parser.add_argument("--hinted", action="store_true", help="run the named tests alone")
    asked = parser.parse_args()
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := [name for name in asked.names if name not in known]:
        parser.error(f"there is no fault {', '.join(unknown)}")
    mutants = [known[name] for name in asked.names] or list(MUTANTS)
    outcomes: list[Outcome] = []
    temporary = tempfile.TemporaryDirectory(prefix="grolang-mutants-")
    with temporary as folder, closing(copied(Path(folder).resolve())) as copy:
        if not asked.trust and (failing := sound(copy, mutants, asked.limit)) is not None:
            sys.stderr.write(f"without any fault {failing} fails already\n")
            return 2
        for mutant in mutants:
            outcomes.append(tried(copy, mutant, asked.limit, asked.hinted))
            sys.stdout.write(f"{mutant.name}: {outcomes[-1].found_by} ({outcomes[-1].seconds:.0f} s)\n")
            sys.stdout.flush()
            write(outcomes)
    survivors = [outcome.mutant.name for outcome in outcomes if outcome.found_by == SURVIVED]
    sys.stdout.write(f"{len(outcomes) - len(survivors)} of {len(outcomes)} faults found\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
