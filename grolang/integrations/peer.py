"""What the audit knows of a peer: its losses, each with the method that should equal it; and how it is loaded."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from grolang.compiler.batch import Batch
from grolang.compiler.method import Method, from_source, load
from grolang.language.diagnostics import GroError
from grolang.language.source import Source


@dataclass(frozen=True, eq=False)
class Gradient:
    """What a peer's own code gives on a batch.

    of: ∂loss/∂logp [S, T], or, where a peer starts at hidden states, the gradients in those and in the head, flat.
    outside: the largest entry on tokens that are in no completion; 0 as a rule.
    """

    of: Tensor
    outside: float = 0.0


#: the peer's code on a batch, in so many micro-batches, accumulated as the peer accumulates them
Run = Callable[[Batch, int], Gradient]


@dataclass(frozen=True, eq=False)
class Loss:
    """One row of an audit: a peer's loss under its options.

    name: the call as the peer's user writes it.
    run: the peer's own code.
    method, params: the built-in method that the loss is compared with; none where `method` is blank.
    changes: the statements that make the method equal to it, where the method alone is not. Each must be needed.
    beyond: what the language has no word for, where no changes can do it.
    data: the kind of data, where there is no method.
    note: what a person who trusts this loss should know; `trap` where its name or its default says otherwise.
    """

    name: str
    run: Run
    method: str = ""
    params: Mapping[str, float] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    beyond: str = ""
    note: str = ""
    trap: bool = False
    data: str = ""

    @property
    def kind(self) -> str:
        return self.data or load(self.method).data[0]

    def text(self, *without: str) -> str:
        """The method with its changes as a file."""
        lines = [line for line in self.changes if line not in without]
        return "\n".join([f"method {self.method}_here", f"extends {self.method}", *lines]) + "\n"

    def exact(self, *without: str) -> Method:
        """The method that is claimed to equal the loss."""
        source = Source(f"{self.method}_here.gro", self.text(*without))
        return from_source(source, **self.params) if self.changes else load(self.method, **self.params)


def row(name: str, run: Run, compared: str, *changes: str, note: str = "", trap: str = "", beyond: str = "") -> Loss:
    """A row as it is written down: `compared` is a method with its parameters, `grpo beta=0`; a trap is a note."""
    assert not (note and trap), f"{name}: a note or a trap"
    method, *settings = compared.split()
    params = {word: float(value) for word, value in (setting.split("=") for setting in settings)}
    return Loss(name, run, method, params, changes, beyond, note or trap, bool(trap))


def call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a call as the peer's user writes it: `DPOConfig(beta=0.5)`."""
    made = ast.parse(text, mode="eval").body
    assert isinstance(made, ast.Call)
    return ast.unparse(made.func), {str(word.arg): ast.literal_eval(word.value) for word in made.keywords}


@dataclass(frozen=True, eq=False)
class Peer:
    """A library with losses.

    tolerance: differences up to this share of the largest entry count as rounding.
    losses: its rows, under headings.
    recurring: statements that many rows share, and the words that stand for them in a table.
    there: every name that the peer itself lists (loss types, registries); each is in a row or left out.
    left_out: what has no row, and why.
    ours: what is compared with the peer's gradient, for a method on a batch.
    """

    name: str
    about: str
    tolerance: float
    losses: Mapping[str, tuple[Loss, ...]]
    recurring: Mapping[str, str]
    there: tuple[str, ...]
    left_out: Mapping[str, str]
    ours: Callable[[Method, Batch], Tensor] = lambda method, batch: -method.coefficients(batch)


@dataclass(frozen=True)
class Known:
    """How a peer is installed, and the version that its rows were written for."""

    module: str
    distribution: str
    tested: str


KNOWN = {
    "trl": Known("grolang.integrations.trl", "trl", "1.16.0"),
    "verl": Known("grolang.integrations.verl", "verl", "0.9.1"),
    "liger": Known("grolang.integrations.liger", "liger-kernel", "0.8.5"),
}


def rows(of: Peer) -> list[Loss]:
    """All rows of a peer, in order."""
    return [loss for group in of.losses.values() for loss in group]


def installed(name: str) -> str | None:
    """The version of a peer that is installed here."""
    try:
        return importlib.metadata.version(KNOWN[name].distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def peer(name: str) -> Peer:
    """A peer with its rows. Raises GroError where there is no such peer, or it is not installed, or not whole."""
    known = KNOWN.get(name)
    if known is None:
        raise GroError.plain(f"there is no audit of `{name}`", help=f"audited are {', '.join(KNOWN)}", code="E602")
    if installed(name) is None:
        message = f"{known.distribution} is not installed, so its losses cannot be run"
        raise GroError.plain(message, help=f'pip install "{known.distribution}=={known.tested}"')
    try:
        found = importlib.import_module(known.module).PEER
    except ImportError as error:
        message = f"{known.distribution} {installed(name)} cannot be imported: {error}"
        raise GroError.plain(message, help="install what it misses") from error
    assert isinstance(found, Peer)
    return found


def untested(name: str) -> str:
    """A warning where the installed version is not the one that the rows were written for; else blank."""
    version, known = installed(name), KNOWN[name]
    if version == known.tested:
        return ""
    return f"{known.distribution} {version} is installed; its rows were written for {known.tested}, so claims may fail"
