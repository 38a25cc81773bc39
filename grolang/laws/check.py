"""Every law of a method, tried."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from grolang.compiler.method import Method
from grolang.language.checker import check
from grolang.language.diagnostics import GroError
from grolang.language.ir import Law
from grolang.laws.claims import Pair, Verdict, pair_of, search
from grolang.laws.equivalence import equivalence
from grolang.laws.unbiased import COMPLETIONS, GROUP, bias

#: sequences of a group up to which a law that fails is tried with groups of the file's own size
LARGEST_GROUP = 8


def check_laws(method: Method, *, examples: int = 100, seed: int = 0) -> Iterator[Verdict]:
    """A verdict for each law, in the order of the file."""
    for law in method.ir.laws.values():
        yield check_law(law, method, examples=examples, seed=seed)


def check_law(law: Law, method: Method, *, examples: int = 100, seed: int = 0) -> Verdict:
    """Try one law. A law that cannot be tried (a parameter that does not exist, say) is a failed one."""
    try:
        if law.claim == "unbiased":
            verdict = _unbiased(law, method, seed)
        else:
            pair = pair_of(law, method)
            verdict = equivalence(pair, examples=examples, seed=seed)
            verdict = replace(verdict, note=_of_size(pair, verdict, method, examples, seed))
    except GroError as error:
        verdict = Verdict(law.name, "failed", error=str(error))
    return replace(verdict, claim=described(law))


def _of_size(pair: Pair, verdict: Verdict, method: Method, examples: int, seed: int) -> str:
    """That a law which fails would hold if every group were as large as the file says; blank where that is not so."""
    size, found = method.ir.group, verdict.counterexample
    if found is None or size is None or not pair.smallest <= size <= LARGEST_GROUP:
        return ""
    rows = found.batch.mask.any(1)
    if found.batch.group is None or bool((torch.unique(found.batch.group[rows], return_counts=True)[1] == size).all()):
        return ""
    alone = search(replace(pair, group=size), examples=examples, seed=seed)
    if not alone.good:
        return ""
    means = (
        "a law is about groups of every size, since `--group` sets others; pairs of any group: `own(x)`, `over others`"
    )
    return f"with groups of {size}, as in `group {size}`, it held on {alone.tried} batches: {means}"


def _unbiased(law: Law, method: Method, seed: int) -> Verdict:
    found = bias(method, seed)
    tried = len(COMPLETIONS) ** GROUP
    if found.unbiased:
        return Verdict(law.name, "held", tried)
    if not math.isfinite(found.gap):
        return Verdict(law.name, "failed", tried, error="the estimate is not finite for some batch")
    blame = blamed(method)
    error = f"the expected estimate is {found.gap:.3g} away from the true gradient" + (f"; {blame}" if blame else "")
    return Verdict(law.name, "failed", tried, error=error)


def blamed(method: Method) -> str:
    """The expressions that the checker names as biased."""
    findings = check(method.sources[method.ir.file]).findings
    return "; ".join(finding.message for finding in findings if finding.code == "W702")


def described(law: Law) -> str:
    """A law in a few words, for a table."""
    match law.claim:
        case "loss":
            return "the gradient of its loss"
        case "invariant":
            return f"invariant when {', '.join(law.exchanges)} changes"
        case "unbiased":
            return "unbiased"
        case claim:
            settings = ", ".join(f"{name} = {value:g}" for name, value in law.settings.items())
            words = [("proportional to" if claim == "proportional" else "equals"), str(law.method)]
            words += [f"with {settings}"] if settings else []
            words += [f"when {', '.join(law.exchanges)} is replaced"] if law.exchanges else []
            return " ".join(words)
