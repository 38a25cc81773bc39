"""The lattice of scopes: const < batch < group < sequence < token, and the axes that lead down it.

A value of a scope is one number per token, per sequence, per group, per batch, or one for good (LANGUAGE.md, 4).
Beside the tokens, below the sequences, lie comparisons: a sequence held against another one of its group. They exist
within `… over others` only, and never meet a token value.
"""

from __future__ import annotations

from enum import IntEnum


class Scope(IntEnum):
    """How many values there are; a larger number is a finer scope."""

    CONST = 0
    BATCH = 1
    GROUP = 2
    SEQUENCE = 3
    TOKEN = 4
    COMPARISON = 5

    @property
    def word(self) -> str:
        """As files and messages name it: "sequence"."""
        return self.name.lower()

    @property
    def phrase(self) -> str:
        """As a message says it: "has one value per sequence"."""
        return "is one number" if self is Scope.CONST else f"has one value per {self.word}"


#: axis of a reduction -> the scope that it leaves. `others` leaves one value per sequence: its group without it.
REDUCED: dict[str, Scope] = {
    "tokens": Scope.SEQUENCE,
    "group": Scope.GROUP,
    "others": Scope.SEQUENCE,
    "batch": Scope.BATCH,
}

#: axis of an aggregation step -> the scope that it leaves (LANGUAGE.md, 6)
AGGREGATED: dict[str, Scope] = {
    "tokens": Scope.SEQUENCE,
    "sequences": Scope.BATCH,
    "group": Scope.GROUP,
    "groups": Scope.BATCH,
    "batch": Scope.BATCH,
}

#: the axis over all values of a scope, with which the averaging of a loss of that scope begins
ALL_OF = {Scope.SEQUENCE: "sequences", Scope.GROUP: "groups"}


def has_axis(scope: Scope, axis: str) -> bool:
    """Whether a value of this scope can be reduced over the axis.

    Over tokens: token values. Over a group or its others: sequence and token values. Over the batch: all that
    differs within it, a group value being counted once for each of the group's sequences. A comparison lives within
    the reduction over others that it is made for.
    """
    if scope is Scope.COMPARISON:
        return axis == "others"
    finer_than = {"tokens": Scope.SEQUENCE, "group": Scope.GROUP, "others": Scope.GROUP, "batch": Scope.BATCH}
    return scope > finer_than[axis]


def joined(*scopes: Scope) -> Scope:
    """The scope of an operation on values of these scopes: the finest."""
    return max(scopes, default=Scope.CONST)
