"""Expressions of the language as trees that know their text and, independently of the compiler, their numbers.

A value is an array by its scope, as in `tests.oracle.language`: token [S, T], sequence and group [S], batch and
const one number. The numbers may be complex: a complex step in `logp` differentiates any tree, each function here
being analytic in the step. Conditions, orders and bounds look at real parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.oracle import language

Array = NDArray[Any]
SCOPES = ("const", "batch", "group", "sequence", "token", "comparison")


def finest(*scopes: str) -> str:
    """The scope of an operation on values of these scopes."""
    return max(scopes, key=SCOPES.index)


@dataclass
class World:
    """What names mean: the batch itself, or the mismatched completions."""

    mask: NDArray[np.bool_]
    group: NDArray[np.int64]
    values: dict[str, Any]  # observables, scores and parameters
    greedy: dict[str, Any] = field(default_factory=dict)
    mismatched: World | None = None
    definitions: Mapping[str, Node] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)

    def other(self) -> World:
        assert self.mismatched is not None
        self.mismatched.definitions = self.definitions
        return self.mismatched


@dataclass(frozen=True, eq=False)
class Node:
    """One operation: its kind, what it is called, the trees below it, its scope."""

    kind: str
    name: str
    args: tuple[Node, ...]
    scope: str
    axis: str = ""
    live: bool = False
    redundant: bool = False  # parentheses that change nothing

    @property
    def size(self) -> int:
        return 1 + sum(arg.size for arg in self.args)


# --- text: Python's precedence, `^` for power -------------------------------------------------------------------

IF, OR, AND, NOT, COMPARE, SUM, PRODUCT, UNARY, POWER, ATOM = range(10)
_LEVEL = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT, "^": POWER, "and": AND, "or": OR}


def level(node: Node) -> int:
    """How tightly a tree's text holds together."""
    match node.kind:
        case "binary":
            return _LEVEL[node.name]
        case "negate":
            return UNARY
        case "not":
            return NOT
        case "if":
            return IF
        case "compare":
            return COMPARE
        case _:
            return ATOM


def text(node: Node, least: int = IF) -> str:
    """The tree as an author writes it, with the parentheses that it needs (and `redundant` ones)."""
    made = _text(node)
    return f"({made})" if level(node) < least or node.redundant else made


def _text(node: Node) -> str:
    args = node.args
    match node.kind:
        case "leaf":
            return node.name
        case "negate":
            return "-" + text(args[0], UNARY)
        case "not":
            return "not " + text(args[0], NOT)
        case "binary" if node.name == "^":
            return f"{text(args[0], ATOM)} ^ {text(args[1], UNARY)}"
        case "binary":
            own = _LEVEL[node.name]
            left, right = text(args[0], own), text(args[1], own + 1)
            return f"{left} {node.name} {right}"
        case "compare":
            signs = node.name.split()
            words = [text(args[0], SUM)]
            for sign, arg in zip(signs, args[1:], strict=True):
                words += [sign, text(arg, SUM)]
            return " ".join(words)
        case "if":
            then, condition, otherwise = args
            return f"{text(then, OR)} if {text(condition, OR)} else {text(otherwise, IF)}"
        case "reduce":
            return f"{node.name}({', '.join(map(text, args))} over {node.axis})"
        case _:
            return f"{node.name}({', '.join(map(text, args))})"


# --- numbers ----------------------------------------------------------------------------------------------------


def real(x: Any) -> Any:
    return np.real(x)


def _sigmoid(x: Any) -> Any:
    left = real(x) < 0
    small = np.exp(np.where(left, x, -x))
    return np.where(left, small / (1 + small), 1 / (1 + small))


def _logsigmoid(x: Any) -> Any:
    left = real(x) < 0
    return np.where(left, x, 0) - np.log1p(np.exp(np.where(left, x, -x)))


def _least(a: Any, b: Any) -> Any:
    return np.where(real(a) <= real(b), a, b)


def _greatest(a: Any, b: Any) -> Any:
    return np.where(real(a) >= real(b), a, b)


def _power(a: Any, b: Any) -> Any:
    """a ^ b; of complex numbers to first order, so that a negative base may have a whole exponent."""
    base, exponent = np.asarray(real(a), dtype=float), np.asarray(real(b), dtype=float)
    value = base**exponent
    if not (np.iscomplexobj(a) or np.iscomplexobj(b)):
        return value
    slope = np.imag(a) * exponent * base ** (exponent - 1)
    turn = np.where(np.imag(b) == 0, 0.0, np.imag(b) * value * np.log(np.where(base > 0, base, 1.0)))
    return value + 1j * (slope + turn)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "abs": lambda x: np.where(real(x) < 0, -x, x),
    "sign": lambda x: np.sign(real(x)),
    "sigmoid": _sigmoid,
    "σ": _sigmoid,
    "logsigmoid": _logsigmoid,
    "softplus": lambda x: -_logsigmoid(-x),
    "tanh": np.tanh,
    "relu": lambda x: np.where(real(x) > 0, x, 0.0),
    "min": _least,
    "max": _greatest,
    "clip": lambda x, lo, hi: _least(_greatest(x, lo), hi),
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": _power,
    "and": lambda a, b: np.where(real(a) != 0, b, a),
    "or": lambda a, b: np.where(real(a) != 0, a, b),
}
COMPARE_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}


def spread(x: Any, own: str, scope: str) -> Any:
    """A value on the axes of a finer scope, so that numpy's broadcasting meets it."""
    x = np.asarray(x)
    return x[:, None] if scope == "token" and own in ("sequence", "group") else x


def value(node: Node, world: World) -> Any:
    """The value of a tree in a world, by loops and numpy."""
    args = node.args
    match node.kind:
        case "leaf":
            return _leaf(node, world)
        case "reduce":
            return _reduce(node, world)
        case "form":
            return _form(node, world)
    values = [spread(value(arg, world), arg.scope, node.scope) for arg in args]
    return _shaped(_operated(node, values), node.scope, world)


def _operated(node: Node, values: list[Any]) -> Any:
    """An operation on the values of its parts."""
    out: Any
    match node.kind:
        case "negate":
            out = -values[0]
        case "not":
            out = (real(values[0]) == 0) * 1.0
        case "binary":
            out = BINARY[node.name](*values)
        case "compare":
            held: Any = np.asarray(True)
            for sign, left, right in zip(node.name.split(), values, values[1:], strict=False):
                held = held & COMPARE_SIGNS[sign](real(left), real(right))
            out = held * 1.0
        case "if":
            out = np.where(real(values[1]) != 0, values[0], values[2])
        case "call":
            out = FUNCTIONS[node.name](*values)
        case kind:
            raise AssertionError(kind)
    return out


def _shaped(x: Any, scope: str, world: World) -> Any:
    x = np.asarray(x)
    shape = {"token": world.mask.shape, "sequence": world.mask.shape[:1], "group": world.mask.shape[:1]}.get(scope, ())
    return np.broadcast_to(x, shape).copy() if shape else x[()]


def _leaf(node: Node, world: World) -> Any:
    name = node.name
    if name in world.definitions:
        if name not in world.cache:
            world.cache[name] = value(world.definitions[name], world)
        return world.cache[name]
    if name in world.values:
        return world.values[name]
    match name:
        case "position":
            return language.position(world.mask)
        case "length":
            return language.length(world.mask)
        case "group_size":
            return language.group_size(world.mask, world.group)
        case "inf":
            return np.inf
    return float(name)


def _compared(node: Node, world: World) -> Any:
    """A tree within `over others` that `own` is part of, at each pair of rows [S, S]: own first, the other second."""
    if node.scope != "comparison":
        x = np.asarray(value(node, world))
        return x[None, :] if x.ndim == 1 else x
    if node.kind == "form":
        arg = node.args[0]
        if node.name == "own":
            return np.asarray(_shaped(value(arg, world), "sequence", world))[:, None]
        return real(_compared(arg, world))  # sg
    return _operated(node, [_compared(arg, world) for arg in node.args])


def _reduce(node: Node, world: World) -> Any:
    if node.args[0].scope == "comparison":
        rows = len(world.mask)
        pairs = np.broadcast_to(np.asarray(_compared(node.args[0], world)), (rows, rows))
        q = float(real(value(node.args[1], world))) if len(node.args) > 1 else None
        op: Any = node.name
        return language.over_others_compared(op, lambda i, j: pairs[i, j], world.mask, world.group, q)
    x, *rest = (value(arg, world) for arg in node.args)
    q = float(real(rest[0])) if rest else None
    op: Any = node.name
    x = np.asarray(x)
    if node.axis == "tokens":
        return language.over_tokens(op, x, world.mask, q)
    if node.axis == "group":
        return language.over_group(op, x, world.mask, world.group, q)
    if node.axis == "others":
        return language.over_others(op, x, world.mask, world.group, q)
    return language.over_batch(op, x, world.mask, q)


def _form(node: Node, world: World) -> Any:
    arg = node.args[0]
    if node.name == "mismatched":
        there = world.other()
        found = value(arg, there)
        return np.where(world.mask.any(1), _shaped(found, "sequence", there), 0)
    if node.name == "greedy":
        there = World(world.mask, world.group, world.values | world.greedy, definitions=world.definitions)
        found = value(arg, there)
        return language.greedy(lambda _: np.asarray(_shaped(found, "sequence", world)), {}, world.mask, world.group)
    x = value(arg, world)
    match node.name:
        case "sg":
            return real(x)
        case "terminal":
            return language.terminal(np.asarray(_shaped(x, "sequence", world)), world.mask)
        case "to_go":
            return language.to_go(np.asarray(x), float(real(value(node.args[1], world))), world.mask)
        case "opposite":
            return language.opposite(np.asarray(x), world.mask, world.group)
        case "chosen":
            return language.chosen(np.asarray(x), world.mask, world.group, world.values["label"])
        case "rejected":
            return language.rejected(np.asarray(x), world.mask, world.group, world.values["label"])
    raise AssertionError(node.name)
