"""What is known of a method, in sentences: the analyses of the language room, worded. Nothing is computed twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from grolang.compiler.lowering import lower
from grolang.compiler.needs import KNOWN, needs_of, vanishing
from grolang.compiler.program import MISMATCHED
from grolang.compiler.schedule import schedule
from grolang.explain.components import components
from grolang.explain.document import Code, Inline, Words, listed
from grolang.explain.printer import Printer
from grolang.language.diagnostics import Diagnostic
from grolang.language.facts import Facts
from grolang.language.ir import Argument, Expr, FunctionDefinition, Law, MethodIR, Reduce, constant, nodes

_MOVES = {"+": "rising", "-": "falling", "=": "constant"}


@dataclass(frozen=True)
class Bias:
    """Whether the estimate is one of ∇ E[R], in a word and in a sentence."""

    word: str
    why: Words


def bias(method: MethodIR, findings: Iterable[Diagnostic]) -> Bias:
    """Eq. 7 of arXiv:2503.19523, as the checker found it (W702), and the law `unbiased` where there is one."""
    if "prompts" not in method.data:
        rows = f"It descends a loss over given rows ({' and '.join(method.data)})"
        return Bias("–", (f"{rows}: there is no expected reward that it could be unbiased for.",))
    told = "; ".join(finding.message for finding in findings if finding.code == "W702")
    if told:
        return Bias("biased", tuple(_quoted(f"{told[0].upper()}{told[1:]}.")))
    reward = method.definitions.get("reward")
    shared = () if reward is None else (node for node in nodes(reward.body, method.definitions) if _shared(node))
    if any(shared):
        why = "The other completions have a say in the reward of each: there is no expected reward of one"
        return Bias("–", (f"{why} that it could be unbiased for.",))
    laws = [law.name for law in method.laws.values() if law.claim == "unbiased"]
    if laws:
        command = Code(f"grolang test {method.name}")
        return Bias("unbiased", ("Unbiased: its law ", Code(laws[0]), " says so, and ", command, " tries it."))
    clean = "The baseline does not see the sample's own reward, which keeps an estimate unbiased (Eq. 7)"
    if _plain(method):
        return Bias("unbiased", (f"{clean}, and nothing else weighs the advantage.",))
    return Bias("weighted", (f"{clean}; but ω, υ, the credit, the aggregation or the penalty weigh it.",))


def _shared(node: Expr) -> bool:
    """Whether more than one completion has a say in this value."""
    return isinstance(node, Reduce) and node.axis != "tokens"


def _plain(method: MethodIR) -> bool:
    """Whether the advantage reaches the gradient with one weight for all: no ω, υ, credit, penalty, no length."""
    parts = components(method)
    constants = (constant(parts.omega), constant(parts.credit), constant(parts.penalty))
    by_length = [step for step in method.aggregate if step.function == "mean" and step.axis in ("tokens", "batch")]
    return None not in constants and constants[2] == 0 and isinstance(parts.upsilon, Argument) and not by_length


def _quoted(text: str) -> list[Inline]:
    """A message with its `code` marked as such."""
    return [Code(part) if place % 2 else part for place, part in enumerate(text.split("`")) if part]


def facts(method: MethodIR, findings: tuple[Diagnostic, ...]) -> tuple[Words, ...]:
    """Bias, ranges and slopes of ω and υ, invariances, what a parameter of 0 drops, and what the checker warns of."""
    printer = Printer(method)
    rows: list[Words] = [bias(method, findings).why]
    rows += [_range(printer, function) for function in (method.functions["omega"], method.functions["upsilon"])]
    rows += [_invariant(printer, law) for law in method.laws.values() if law.claim == "invariant"]
    for name, words in vanishing(method).items():
        rows.append(("With ", Code(f"{name} = 0"), f" it needs no {' and no '.join(words)}."))
    warned = [finding for finding in findings if finding.code not in ("W702", "W703")]
    rows += [(f"{finding.code}: ", *_quoted(finding.message), ".") for finding in warned]
    return tuple(dict.fromkeys(rows))


def _range(printer: Printer, function: FunctionDefinition) -> Words:
    """`ω(z) lies in (0, 0.1), falling.`"""
    known = Facts(printer.method, fixed=True)
    sign = printer.function(function.name).tight()
    value = constant(function.body)
    if value is not None:
        return (sign, f" is {value:g}: nothing is compared." if function.name == "omega" else f" is {value:g}.")
    if isinstance(function.body, Argument):
        return (sign, " is the advantage itself.")
    moves = _MOVES.get(known.slope(function.body, function.name))
    words: Words = (
        sign,
        f" lies in {known.range(function.body)} at these parameters" + (f", {moves}." if moves else "."),
    )
    return words


def _invariant(printer: Printer, law: Law) -> Words:
    changes = []
    for name, expr in law.exchanges.items():
        replaced, by = printer.exchange(name, expr)
        changes.append((replaced, " is replaced by ", by))
    return ("No coefficient changes where ", *listed(changes), " (law ", Code(law.name), ").")


#: why a pass of its own, without gradient, may be left out where a coefficient waits for that scope
_SECOND = {"group": "every group fits into a micro-batch", "batch": "it is one micro-batch of one process"}


# --- what a step costs ---------------------------------------------------------------------------------------------


def cost(method: MethodIR) -> tuple[tuple[str, str], ...]:
    """What one optimizer step draws and passes through which model, and when its coefficients are known."""
    needed, program = needs_of(method), lower(method)
    crossed = {name for name, world in program.loads("coefficient", "penalty") if world == MISMATCHED}
    rows = [("policy, with gradient", "1 pass over every sequence")]
    known = _SECOND.get(needed.scope)
    if unless := known or (_SECOND.get(needed.old_scope) if needed.old else None):
        first = "" if known else "before the first update "
        rows.append(("policy, without gradient", f"{first}1 pass over the whole step, unless {unless}"))
    if needed.mismatched:
        rows.append(("policy, mismatched", "1 pass over the completions of other prompts, without gradient"))
    if needed.reference:
        also = " and over the mismatched ones" if "logp_ref" in crossed else ""
        rows.append(("reference model", f"1 pass over every sequence{also}"))
    if "prompts" in method.data:
        rows.append(("completions drawn", f"{method.group or 1} per prompt"))
    if needed.greedy:
        rows.append(("greedy completions", "1 per prompt"))
    if needed.scores:
        rows.append(("scores", ", ".join(needed.scores)))
    if needed.sampler:
        rows.append(("sampler log-probs", "of every token drawn"))
    if needed.entropy:
        rows.append(("entropy", "of the policy at every token"))
    rows.append(("a coefficient is known", KNOWN[needed.scope]))
    rows.append(("loss from hidden states", schedule(program).phrase))
    if needed.old_scope != needed.scope:
        rows.append(("in the first update", KNOWN[needed.old_scope]))
    return tuple(rows)
