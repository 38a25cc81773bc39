"""The pytest plugin: `pytest methods/` collects every `.gro` file and runs its laws, one test each.

Loaded in every pytest run where grolang is installed, so it imports nothing heavy before it meets a `.gro` file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from grolang.language.ir import Law


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("grolang")
    group.addoption("--gro-examples", type=int, default=50, help="batches that each law of a .gro file is tried on")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix == ".gro":
        return GroFile.from_parent(parent, path=file_path)
    return None


class GroFile(pytest.File):
    """A `.gro` file: it checks, and each of its laws holds."""

    def collect(self) -> Iterator[pytest.Item]:
        from grolang.language.checker import check_file

        checked = check_file(self.path)
        yield GroCheck.from_parent(self, name="checks")
        for law in checked.method.laws.values() if checked.method else ():
            yield GroLaw.from_parent(self, name=law.name, law=law)


class GroCheck(pytest.Item):
    """The file has no errors."""

    def runtest(self) -> None:
        from grolang.language.checker import check_file

        check_file(self.path).unwrap()

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.path.name


class GroLaw(pytest.Item):
    """One law of a file."""

    def __init__(self, *, law: Law, **rest: Any) -> None:
        super().__init__(**rest)
        self.law = law

    def runtest(self) -> None:
        from grolang.compiler.method import load
        from grolang.laws.check import check_law

        verdict = check_law(self.law, load(self.path), examples=self.config.getoption("--gro-examples"))
        if not verdict.good:
            raise LawFails(_told(self.path.stem, verdict))

    def repr_failure(self, excinfo: Any, style: Any = None) -> str:
        return str(excinfo.value) if isinstance(excinfo.value, LawFails) else str(super().repr_failure(excinfo, style))

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, f"{self.path.name}: law {self.law.name}"


class LawFails(Exception):
    """A law does not hold; the text is the counterexample."""


def _told(method: str, verdict: Any) -> str:
    from grolang.laws.show import failure, text

    return text(failure(method, verdict))
