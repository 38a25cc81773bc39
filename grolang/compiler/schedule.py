"""How a method's gradient is best formed: read off its program, before any batch is seen."""

from __future__ import annotations

from dataclasses import dataclass

from grolang.compiler.factor import factored, in_pairs
from grolang.compiler.needs import extent
from grolang.compiler.program import CURRENT, MAIN, Program
from grolang.language.scopes import Scope


@dataclass(frozen=True)
class Schedule:
    """What must be together before a coefficient is known, and what can be done until then.

    ========= =========================================================== ========================
    kind      a coefficient                                               cost (N·D·V)
    ========= =========================================================== ========================
    none      is known before the policy runs                             6
    token     needs its own token's log-prob                              6
    factored  is s · w, w known before and s once its `unit` is complete  6
    free      needs its `unit`, and does not factor                       6, beyond the budget 8
    ========= =========================================================== ========================

    With a head that is not trained all cost 4. `unit` is the scope whose log-probs are waited for; `part` (the unit
    or a sequence of it) that within which s is one number. `program` has the outputs `scale` and `weight` where the
    kind is factored.
    """

    kind: str
    unit: Scope
    part: Scope
    program: Program

    @property
    def phrase(self) -> str:
        """As `grolang show --stage needs` prints it."""
        per = f"each {self.part.word}" if self.part > Scope.BATCH else "the batch"
        whole = f"a {self.unit.word}" if self.unit > Scope.BATCH else "the batch"
        return {
            "none": "none: known beforehand, 6 NDV",
            "token": "token: formed while its chunk of logits lives, 6 NDV",
            "factored": f"factored: one number for {per}, times what is known beforehand, 6 NDV",
            "free": f"free: log-probs of {whole} first, 6 NDV within the memory given, beyond it 8",
        }[self.kind]


def schedule(program: Program) -> Schedule:
    """The cheapest schedule that is exact for every batch."""
    scope = extent(program, MAIN, CURRENT)
    if scope in ("none", "token"):
        return Schedule(scope, Scope.TOKEN, Scope.TOKEN, program)
    unit = Scope[scope.upper()]
    # Each part of a unit takes a [V, D] scratch: one, or the two sides of a pair.
    parts = [unit, Scope.SEQUENCE] if unit is Scope.GROUP and in_pairs(program) else [unit]
    for part in parts:
        if (found := factored(program, part)) is not None:
            return Schedule("factored", unit, part, found)
    return Schedule("free", unit, unit, program)
