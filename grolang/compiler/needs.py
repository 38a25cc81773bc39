"""What a program needs, and what must be together before a coefficient is known."""

from __future__ import annotations

from dataclasses import dataclass

from grolang.compiler.lowering import lower
from grolang.compiler.on_policy import on_policy
from grolang.compiler.program import CURRENT, MAIN, MISMATCHED, Program
from grolang.language.ir import MethodIR
from grolang.language.parameters import bound
from grolang.language.scopes import Scope

#: when a coefficient is known, by the scope that it waits for
KNOWN = {
    "none": "before the policy runs",
    "token": "from the token's own log-prob",
    "sequence": "from its sequence",
    "group": "from its group",
    "batch": "from the whole batch",
}


@dataclass(frozen=True)
class Needs:
    """What the method needs to be run.

    `scope` is the finest part of the step that must be there before a coefficient is known from the current
    log-probs: "none" (known before the policy runs), "token", "sequence", "group" or "batch".
    `old_scope` is the same in the first update after a draw, where `logp_old` is `logp` too; `mismatched_scope` for
    the log-probs of the mismatched completions. `others`: something is reduced over the rest of a group, which must
    then have two sequences.
    """

    reference: bool
    mismatched: bool
    greedy: bool
    entropy: bool
    old: bool
    sampler: bool
    others: bool
    scores: tuple[str, ...]
    scope: str
    old_scope: str
    mismatched_scope: str

    @property
    def words(self) -> list[str]:
        """The models and passes beyond the policy's own, in words."""
        rows = (
            (self.reference, "reference model"),
            (self.mismatched, "mismatched pass"),
            (self.greedy, "greedy completions"),
            (self.sampler, "sampler log-probs"),
            (self.entropy, "entropy"),
        )
        return [word for needed, word in rows if needed]


def needs(program: Program, score_names: tuple[str, ...]) -> Needs:
    """Read off the steps that the coefficients, the loss's value and the reports use."""
    wanted = ["coefficient", "penalty", *program.reports]
    loads, used = program.loads(*wanted), program.reachable(*wanted)
    names = {name for name, _ in loads}
    return Needs(
        reference="logp_ref" in names,
        mismatched=any(world == MISMATCHED for _, world in loads),
        greedy=any(name.startswith("greedy ") for name in names),
        entropy="entropy" in names,
        old="logp_old" in names,
        sampler="logp_sampler" in names,
        others=any(program.steps[index].op == "reduce" and program.steps[index].others for index in used),
        scores=tuple(name for name in score_names if name in names or f"greedy {name}" in names),
        scope=extent(program, MAIN, CURRENT),
        old_scope=extent(on_policy(program), MAIN, CURRENT),
        mismatched_scope=extent(program, MISMATCHED, (*CURRENT, "logp_old")),
    )


def needs_of(method: MethodIR) -> Needs:
    """Of a method with its parameters as they are set."""
    return needs(lower(method), tuple(method.scores))


def vanishing(method: MethodIR) -> dict[str, list[str]]:
    """Parameters that drop a need when they are 0: `beta = 0` drops a penalty and with it the reference model."""
    whole = needs_of(method)
    found = {}
    for name, row in method.parameters.items():
        if 0.0 in row.interval and row.value != 0:
            without = needs_of(bound(method, {name: 0.0}))
            if dropped := [word for word in whole.words if word not in without.words]:
                found[name] = dropped
    return found


def extent(program: Program, world: str, current: tuple[str, ...]) -> str:
    """How far what the current policy gives in a world spreads before it reaches a coefficient, as in `Needs`."""
    none = max(Scope) + 1  # finer than any: nothing of the current policy
    extents: dict[int, int] = {}
    for index in program.reachable("coefficient"):
        step = program.steps[index]
        extent = min((extents[argument] for argument in step.args), default=none)
        if step.op == "load" and step.detail[0] in current and step.world == world:
            extent = Scope.TOKEN
        elif extent < none:
            match step.op:
                case "to_go" | "so_far":
                    extent = min(extent, Scope.SEQUENCE)
                case "opposite" | "chosen" | "rejected" | "swapped":
                    extent = min(extent, Scope.GROUP)
                case "reduce" | "unreduce":
                    joint = Scope.GROUP if step.others else _parent(program, index)
                    extent = min(extent, joint)
        extents[index] = extent
    found = extents[program.outputs["coefficient"]]
    return "none" if found == none else Scope(found).word


def _parent(program: Program, index: int) -> Scope:
    """The scope whose members a reduction (or its adjoint) mixes."""
    step = program.steps[index]
    owner = step if step.op == "reduce" else program.steps[step.args[1]]
    return owner.scope
