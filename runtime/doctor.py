"""What is installed and whether it works: each finding with one edit that mends it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from grolang.language.diagnostics import GroError

ROOM = 2 * 2**30  # bytes of free disk below which a checkpoint may not fit


@dataclass(frozen=True)
class Finding:
    """One line: `good` is True, False, or None for what is optional and not there."""

    what: str
    found: str
    good: bool | None = True
    mend: str = ""


def examine(output: Path = Path(), *, test: bool = True) -> Iterator[Finding]:
    """Every finding, as it is made: packages with the range that is asked for, device, threads, disk, a self-test."""
    recent = sys.version_info >= (3, 10)
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}", recent, "use Python 3.10 or later")
    yield from _packages()
    yield from _machine(output)
    if test:
        for what, check in TESTS:
            yield _tried(what, check)


def _packages() -> Iterator[Finding]:
    try:
        asked = [Requirement(text) for text in requires("grolang") or ()]
    except PackageNotFoundError:
        yield Finding("grolang", "runs from its sources, and is not installed", None, "pip install -e .")
        return
    yield Finding("grolang", version("grolang"))
    extras: dict[str, list[Requirement]] = {}
    for row in asked:
        optional = re.search(r"""extra == ['"]([\w-]+)""", str(row.marker or ""))
        if optional:
            extras.setdefault(optional[1], []).append(row)
        elif row.marker is None or row.marker.evaluate():
            yield _package(row, needed=True)
    wanted = [row for extra, rows in extras.items() for row in rows if extra != "dev"]
    for row in {row.name: row for row in wanted}.values():  # several extras may want the same one
        yield _package(row, needed=False)


def _package(row: Requirement, *, needed: bool) -> Finding:
    mend = f"pip install '{row.name}{row.specifier}'"
    asked = f"(asks for {row.specifier or 'any'})"
    try:
        found = version(row.name)
    except PackageNotFoundError:
        return Finding(row.name, f"not installed {asked}", False if needed else None, mend)
    fits = row.specifier.contains(found, prereleases=True)
    return Finding(row.name, f"{found} {asked}", fits, mend)


def _machine(output: Path) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            yield Finding(f"device cuda:{index}", f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {bf16}")
    else:
        yield Finding("device", "cpu; torch sees no CUDA device", None, "")
    cores = os.cpu_count() or 1
    yield Finding("threads", f"{torch.get_num_threads()} of {cores} cores", True)
    free = shutil.disk_usage(output).free
    few = f"{free / 2**30:.1f} GiB free in {output.resolve()}"
    yield Finding("disk", few, free > ROOM, "free some space, or give runs another place with --output")
    ours = os.access(output, os.W_OK)
    can = "can" if ours else "cannot"
    yield Finding("folder", f"{output.resolve()} {can} be written", ours, "name a folder of yours")


def _tried(what: str, check: Callable[[], str]) -> Finding:
    began = time.perf_counter()
    try:
        found = check()
    except GroError as error:
        return Finding(what, str(error), False, "see the message")
    except Exception as error:  # whatever a broken installation raises is what is looked for
        help = "install the versions above anew: pip install --force-reinstall grolang"
        return Finding(what, f"{type(error).__name__}: {error}", False, help)
    return Finding(what, f"{found}, {time.perf_counter() - began:.1f} s")


def _compiles() -> str:
    """Every built-in method passes the checker."""
    from grolang.language import library
    from grolang.language.checker import check

    for source in library.built_in().values():
        check(source).unwrap()
    return f"{len(library.built_in())} methods check"


def _gradient() -> str:
    """The fused gradient of DPO against torch's own, through the published loss."""
    import torch

    import grolang

    torch.manual_seed(0)
    hidden, head = torch.randn(4, 5, 6, dtype=torch.float64), torch.randn(11, 6, dtype=torch.float64)
    targets, reference = torch.randint(11, (4, 5)), -torch.rand(4, 5, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 2])[:, None]
    sides = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    batch = grolang.Batch(mask=mask, group=torch.tensor([0, 0, 1, 1]), label=sides, logp_ref=reference)
    ours = hidden.clone().requires_grad_()
    grolang.compile(grolang.load("dpo", beta=0.5))(ours, head, targets, batch).backward()
    theirs = hidden.clone().requires_grad_()
    logp = (theirs @ head.T).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    ratio = ((logp - reference) * mask).sum(1)
    loss: torch.Tensor = -torch.nn.functional.logsigmoid(0.5 * (ratio[0::2] - ratio[1::2])).mean()
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
    assert ours.grad is not None and theirs.grad is not None
    gap = float((ours.grad - theirs.grad).abs().max())
    if gap > 1e-10:
        raise ArithmeticError(f"the compiled gradient differs from autograd's by {gap:.3g}")
    return f"compiled and autograd's differ by {gap:.1e}"


def _step() -> str:
    """One optimizer step of DPO on the embedded model."""
    from rich.console import Console

    from grolang.runtime.launch import start

    with tempfile.TemporaryDirectory() as folder:
        flags = {"method": "dpo", "steps": 1, "batch": 2, "eval_rows": 0, "keep_samples": 0, "track": ("none",)}
        outcome = start(flags | {"output": str(Path(folder) / "run")}, None, Console(quiet=True))
        return f"{outcome.steps} step of dpo on the embedded model"


TESTS = (("methods", _compiles), ("gradient", _gradient), ("training", _step))
"""The self-test, in order."""
