"""Random well-typed methods: a seed gives the text of a `.gro` file, a batch, and by another way its numbers.

The programs use every observable, function, reduction, axis and form of LANGUAGE.md, kept numerically tame: what
could overflow is bounded, what could be divided by 0 is held away from it or guarded. Discrete values (labels,
scores, counts) are compared and guarded exactly, continuous ones only where a near tie is improbable.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

import grolang
from tests.oracle import language

from .expressions import SCOPES, Array, Node, World, finest, text, value

Mode = Literal["main", "scores", "logps"]
KINDS = ("preference", "unpaired", "prompts", "demonstrations", "prompts + demonstrations")
GROUPED = ("preference", "prompts", "prompts + demonstrations")
LOG_PROBS = ("logp", "logp_old", "logp_ref", "logp_sampler")
PARAMS = ("beta", "τ", "k2", "ε_low", "gamma")
NAMES = ("kl", "σ_g", "ratio", "Δ", "my_value", "w2")


def leaf(name: str, scope: str) -> Node:
    return Node("leaf", name, (), scope)


def call(name: str, *args: Node) -> Node:
    return Node("call", name, args, finest(*(arg.scope for arg in args)))


def binary(name: str, left: Node, right: Node) -> Node:
    return Node("binary", name, (left, right), finest(left.scope, right.scope))


def negated(x: Node) -> Node:
    return Node("negate", "-", (x,), x.scope)


def compare(signs: str, *args: Node) -> Node:
    return Node("compare", signs, args, finest(*(arg.scope for arg in args)))


def chosen_by(then: Node, condition: Node, otherwise: Node) -> Node:
    return Node("if", "if", (then, condition, otherwise), finest(then.scope, condition.scope, otherwise.scope))


def number(words: str) -> Node:
    return leaf(words, "const")


@dataclass
class Needs:
    """What a batch must have for the program to be defined on it."""

    tokens: int = 1
    group: int = 1
    rows: int = 1


@dataclass
class Program:
    """A method as text (a child and the parent it extends), and as trees."""

    seed: int
    kind: str
    files: dict[str, str]
    params: dict[str, float]
    settings: dict[str, float]
    scores: list[str]
    definitions: dict[str, Node]
    omega: Node
    omega_argument: str
    upsilon: Node
    upsilon_argument: str
    steps: list[language.Step]
    reports: dict[str, Node]
    needs: Needs
    has_penalty: bool

    @property
    def text(self) -> str:
        return "\n--- \n".join(self.files.values())

    def load(self, folder: Path) -> grolang.Method:
        for name, words in self.files.items():
            (folder / name).write_text(words, encoding="utf-8")
        return grolang.load(folder / next(iter(self.files)), **self.settings)


# --- drawing a program --------------------------------------------------------------------------------------


class Writer:
    """Draws trees of a wanted scope. `pool` holds the names defined so far: (name, scope, mode)."""

    def __init__(self, rng: random.Random, kind: str) -> None:
        self.rng = rng
        self.kind = kind
        self.grouped = kind in GROUPED
        self.needs = Needs()
        self.params: dict[str, tuple[float, str]] = {}
        self.scores: list[str] = []
        self.pool: list[tuple[str, str, Mode]] = []
        self.arguments: list[tuple[str, str]] = []

    # leaves

    def literal(self) -> Node:
        words = self.rng.choice(["0", "1", "2", "0.5", ".25", "1.5", "3.", "1e-1", "0.1", "0.3", "7E-1"])
        return negated(number(words)) if self.rng.random() < 0.15 else number(words)

    def unit(self) -> Node:
        """A number in [0, 1]."""
        inside = [name for name, (_, interval) in self.params.items() if interval == "[0, 1]"]
        if inside and self.rng.random() < 0.4:
            return number(self.rng.choice(inside))
        return number(self.rng.choice(["0", "0.25", "0.5", "0.9", "1", ".3"]))

    def leaves(self, scope: str, mode: Mode) -> list[Node]:
        names: list[str] = [n for n, s, m in self.pool if s == scope and (m == mode or mode == "main")]
        if mode == "main":
            names += [n for n, s in self.arguments if s == scope] * 3
        if mode in ("main", "logps"):
            if scope == "token":
                names += [n for n in LOG_PROBS if mode == "main" or n != "logp_old"] + ["logp", "position"]
                names += ["entropy"] if mode == "main" else []
            elif scope == "sequence":
                names.append("length")
        if mode == "main":
            if scope == "sequence":
                names += ["label"] * 2 if self.kind in ("preference", "unpaired") else []
                names += ["demonstration"] if "demonstrations" in self.kind else []
            elif scope == "group" and self.grouped:
                names.append("group_size")
        if mode in ("main", "scores") and scope == "sequence":
            names += self.scores * 2
        if scope == "const":
            names += list(self.params) * 2
        found = [leaf(name, scope) for name in names]
        if scope == "const":
            found += [self.literal() for _ in range(4)]
        return found

    # trees

    def some(self, scope: str, depth: int, mode: Mode) -> Node:
        """A tree of this scope or a coarser one."""
        usable = [s for s in SCOPES[: SCOPES.index(scope) + 1] if self.possible(s, mode)]
        weights = [3 if s in (scope, "const") else 1 for s in usable]
        return self.tree(self.rng.choices(usable, weights)[0], depth, mode)

    def possible(self, scope: str, mode: Mode) -> bool:
        if mode == "scores":
            return scope == "const" or (scope == "sequence" and bool(self.scores))
        if mode == "logps":
            return scope in ("const", "sequence", "token")
        return scope != "group" or self.grouped

    def tree(self, scope: str, depth: int, mode: Mode = "main") -> Node:
        """A tree of exactly this scope."""
        leaves = self.leaves(scope, mode)
        if leaves and (depth <= 0 or self.rng.random() < 0.15):
            return self.rng.choice(leaves)
        for _ in range(20):
            made = self.operation(scope, depth, mode)
            if made is not None and made.scope == scope:
                if self.rng.random() < 0.05:
                    made = Node(made.kind, made.name, made.args, made.scope, made.axis, redundant=True)
                return made
        if leaves:
            return self.rng.choice(leaves)
        made = self.moved(scope, 0, mode)
        assert made is not None, (scope, mode)
        return made

    def operation(self, scope: str, depth: int, mode: Mode) -> Node | None:
        depth -= 1
        kind = self.rng.choices(
            ["arithmetic", "function", "pair", "compare", "if", "logic", "moved"], [5, 4, 2, 1, 2, 1, 6]
        )[0]
        if depth < -2:
            kind = "moved"
        if kind == "moved":
            return self.moved(scope, depth, mode)
        x = self.tree(scope, depth, mode)
        y = self.some(scope, depth, mode)
        if self.rng.random() < 0.5:
            x, y = y, x
        match kind:
            case "arithmetic":
                return self.arithmetic(x, y, mode)
            case "function":
                return self.function(x if x.scope == scope else y)
            case "pair":
                if self.rng.random() < 0.6:
                    y = number("inf") if self.rng.random() < 0.04 else y
                    return call(self.rng.choice(["min", "max"]) if y.name != "inf" else "min", x, y)
                low = self.some(scope, depth - 1, mode) if self.rng.random() < 0.3 else negated(self.literal_positive())
                high = binary("+", call("abs", low), self.literal_positive())
                return call("clip", x, low, high)
            case "compare":
                signs = [self.rng.choice(["<", "<=", ">", ">=", "==", "!="]) for _ in range(self.rng.choice([1, 1, 2]))]
                more = [self.some(scope, depth, mode)] if len(signs) == 2 else []
                return compare(" ".join(signs), x, y, *more)
            case "if":
                return chosen_by(x, self.condition(scope, depth, mode), y)
            case _:
                word = self.rng.choice(["and", "or", "not"])
                return Node("not", "not", (x,), x.scope) if word == "not" else binary(word, x, y)

    def literal_positive(self) -> Node:
        return number(self.rng.choice(["0.5", "1", ".3", "2", "1.25"]))

    def condition(self, scope: str, depth: int, mode: Mode) -> Node:
        x = self.some(scope, depth, mode)
        y = self.some(scope, depth - 1, mode)
        made = compare(self.rng.choice(["<", "<=", ">", ">=", "==", "!="]), x, y)
        roll = self.rng.random()
        if roll < 0.15:
            return Node("not", "not", (made,), made.scope)
        if roll < 0.3:
            other = compare(self.rng.choice(["<", ">"]), self.some(scope, 0, mode), self.literal())
            return binary(self.rng.choice(["and", "or"]), made, other)
        return made if roll < 0.9 else x

    def arithmetic(self, x: Node, y: Node, mode: Mode) -> Node:
        word = self.rng.choices(["+", "-", "*", "/", "^", "neg"], [4, 4, 5, 3, 2, 1])[0]
        if word == "neg":
            return negated(x)
        if word == "/":
            held = [
                lambda: binary("+", call("abs", y), self.literal_positive()),
                lambda: binary("+", binary("^", y, number("2")), number("1")),
                lambda: self.literal_positive(),
                lambda: leaf("length", "sequence"),
            ]
            counted = mode != "scores" and finest(x.scope, "sequence") == x.scope
            return binary("/", x, self.rng.choice(held if counted else held[:3])())
        if word == "^":
            if self.rng.random() < 0.5:
                return binary("^", x, number(self.rng.choice(["2", "3", "1", "0"])))
            base = binary("+", call("abs", x), self.literal_positive())
            exponent = call("clip", y, negated(number("2")), number("1.5"))
            if self.rng.random() < 0.3:
                exponent = negated(exponent)
            return binary("^", base, exponent)
        return binary(word, x, y)

    def function(self, x: Node) -> Node:
        word = self.rng.choice(
            [
                "exp",
                "log",
                "log1p",
                "expm1",
                "sqrt",
                "abs",
                "sign",
                "sigmoid",
                "logsigmoid",
                "softplus",
                "tanh",
                "relu",
                "σ",
            ]
        )
        if word in ("exp", "expm1"):
            bound = self.rng.choice(["clip", "min", "tanh"])
            if bound == "clip":
                x = call("clip", x, negated(number("3")), number("2"))
            else:
                x = call("tanh", x) if bound == "tanh" else call("min", x, number("1.5"))
        elif word in ("log", "sqrt"):
            x = binary("+", call("abs", x), self.literal_positive())
        elif word == "log1p":
            x = call("abs", x)
        return call(word, x)

    def moved(self, scope: str, depth: int, mode: Mode) -> Node | None:
        """A reduction or a form that leaves this scope."""
        ways: list[Callable[[], Node | None]] = []
        if mode in ("main", "logps"):
            if scope == "token":
                ways += [lambda: self.terminal(depth, mode), lambda: self.to_go(depth, mode)]
            if scope == "sequence":
                ways += [lambda: self.reduce("tokens", ("token",), depth, mode)] * 3
        if mode == "main":
            if scope == "sequence":
                if self.grouped:
                    ways += [lambda: self.reduce("others", ("sequence", "token"), depth, mode)] * 3
                    ways += [lambda: self.reduce("others", ("comparison",), depth, mode)]
                if self.kind == "preference":
                    ways += [lambda: self.form("opposite", "sequence", depth)] * 2
                ways += [lambda: Node("form", "mismatched", (self.of_logps(depth),), "sequence")]
            if scope == "group":
                ways += [lambda: self.reduce("group", ("sequence", "token"), depth, mode)] * 2
                if self.kind == "preference":
                    ways += [lambda: self.form(self.rng.choice(["chosen", "rejected"]), "group", depth)]
                if self.scores and self.kind.startswith("prompts"):
                    ways += [lambda: Node("form", "greedy", (self.of_scores(depth),), "group")]
            if scope == "batch":
                finer = ("group", "sequence", "token") if self.grouped else ("sequence", "token")
                ways += [lambda: self.reduce("batch", finer, depth, mode)]
            if scope not in ("const",) and self.rng.random() < 0.2:
                ways += [lambda: Node("form", "sg", (self.tree(scope, depth, mode),), scope)]
        return self.rng.choice(ways)() if ways else None

    def of_logps(self, depth: int) -> Node:
        """A sequence value made of log-probs, holding at least one."""
        inner = self.tree("token", depth - 1, "logps")
        inner = binary("-", inner, leaf(self.rng.choice(["logp", "logp_ref"]), "token"))
        word = self.rng.choice(["sum", "mean", "max"])
        made = Node("reduce", word, (inner,), "sequence", "tokens")
        return made if self.rng.random() < 0.6 else binary("*", made, self.some("sequence", depth - 1, "logps"))

    def of_scores(self, depth: int) -> Node:
        """A sequence value made of scores."""
        return self.tree("sequence", min(depth, 2), "scores")

    def terminal(self, depth: int, mode: Mode) -> Node:
        x = self.some("sequence", depth, mode) if self.rng.random() < 0.3 else self.tree("sequence", depth, mode)
        return Node("form", "terminal", (x,), "token")

    def to_go(self, depth: int, mode: Mode) -> Node:
        return Node("form", "to_go", (self.tree("token", depth, mode), self.unit()), "token")

    def form(self, name: str, scope: str, depth: int) -> Node:
        return Node("form", name, (self.tree("sequence", depth),), scope)

    def reduce(self, axis: str, finer: tuple[str, ...], depth: int, mode: Mode) -> Node:
        scope = self.rng.choice(finer)
        word = self.rng.choice(["sum", "mean", "mean", "std", "sample_std", "max", "min", "quantile"])
        if word == "sample_std" and axis == "others" and scope != "token" and self.kind == "preference":
            word = "mean"
        if word == "sample_std":
            self.defined(axis, scope)
        if axis == "others":
            self.needs.group = max(self.needs.group, 2)
        args = [self.comparison(depth) if scope == "comparison" else self.tree(scope, depth, mode)]
        if word == "quantile":
            args.append(self.unit())
        leaves = {"tokens": "sequence", "others": "sequence", "group": "group", "batch": "batch"}[axis]
        made = Node("reduce", word, tuple(args), leaves, axis)
        if word in ("std", "sample_std") and self.rng.random() < 0.3 and mode == "main":
            return binary("/", self.literal(), binary("+", made, number("0.5")))
        return made

    def comparison(self, depth: int) -> Node:
        """A sequence held against another one: some operations on what is its own and what is the other's."""
        own = Node("form", "own", (self.tree("sequence", depth - 1),), "comparison")
        other = self.some("sequence", depth - 1, "main")
        roll = self.rng.random()
        if roll < 0.15:
            return own
        made = binary("-", own, other) if roll < 0.6 else binary("*", other, own)
        if self.rng.random() < 0.5:
            made = self.function(made)
        if self.rng.random() < 0.4:
            held = compare(self.rng.choice(["<", ">", ">=", "!="]), other, own)
            made = chosen_by(made, held, self.some("sequence", 0, "main"))
        return Node("form", "sg", (made,), "comparison") if self.rng.random() < 0.05 else made

    def defined(self, axis: str, scope: str) -> None:
        """The batch must give `sample_std` two values."""
        if scope == "token" and axis in ("tokens", "group", "others"):
            self.needs.tokens = 2
        elif axis == "group":
            self.needs.group = max(self.needs.group, 2)
        elif axis == "others":
            self.needs.group = max(self.needs.group, 3)
        self.needs.rows = max(self.needs.rows, 2)

    def increasing(self, name: str, scope: str) -> Node:
        """A body of upsilon whose rise composition shows."""
        a: Node = leaf(name, scope)
        for _ in range(self.rng.choice([1, 1, 2])):
            ways: list[Callable[[Node], Node]] = [
                lambda a: call("tanh", a),
                lambda a: binary("*", number("2"), a),
                lambda a: call("max", a, binary("*", number("0.3"), a)),
                lambda a: call("sigmoid", a),
                lambda a: call("exp", call("clip", a, negated(number("3")), number("2"))),
                lambda a: binary("/", binary("-", a, number("0.5")), number("1.5")),
                lambda a: call("min", call("softplus", a), number("3")),
                lambda a: call("clip", a, negated(number("1")), number("1")),
                lambda a: binary("^", a, number("3")),
                lambda a: negated(call("logsigmoid", negated(a))),
                lambda a: call("relu", a),
                lambda a: compare(">", a, number("0")),
                lambda a: call("expm1", call("min", a, number("1"))),
            ]
            a = self.rng.choice(ways)(a)
        return a


COMPONENTS = ("reward", "baseline", "advantage", "measure", "anchor", "alpha", "credit", "penalty")


def draw(seed: int) -> Program:
    """The program of a seed."""
    rng = random.Random(seed)
    kind = rng.choice(KINDS)
    writer = Writer(rng, kind)
    statements: dict[tuple[str, str], str] = {("data", ""): f"data {kind}"}
    params: dict[str, float] = {}
    settings: dict[str, float] = {}
    for name in rng.sample(PARAMS, rng.choice([0, 1, 2, 3])):
        if rng.random() < 0.5:
            interval, choices = "[0, 1]", [0.0, 0.25, 0.5, 0.9, 1.0]
        else:
            interval, choices = rng.choice(["", "(-5, inf)", "(-inf, 5]"]), [0.1, 0.5, 2.0, -0.5, 1.5, 0.0]
        default = rng.choice(choices)
        params[name] = default
        writer.params[name] = default, interval
        words = f"param {name} = {default:g}" + (f" in {interval}" if interval else "")
        statements["name", name] = words + (' "a number"' if rng.random() < 0.3 else "")
        if rng.random() < 0.3:
            settings[name] = params[name] = rng.choice(choices)
    if kind.startswith("prompts"):
        writer.scores = rng.sample(["correct", "style"], rng.choice([1, 2]))
        for score in writer.scores:
            statements["name", score] = f"score {score}" + (" = exact_match" if rng.random() < 0.3 else "")
        if rng.random() < 0.5:
            statements["group", ""] = f"group {rng.choice([2, 4, 8])}"
    definitions: dict[str, Node] = {}

    def define(name: str, node: Node, mode: Mode = "main", shown: str | None = None) -> None:
        definitions[name] = node
        statements["name", name] = f"{shown or name} = {text(node)}"
        writer.pool.append((name, node.scope, mode))

    def scoped(*choices: str) -> str:
        return rng.choice([s for s in choices if writer.possible(s, "main")])

    depth = rng.choice([1, 2, 2, 3])
    for name in rng.sample(NAMES, rng.choice([0, 1, 2])):
        mode: Mode = rng.choice(["main", "main", "scores", "logps"])
        if mode == "scores" and not writer.scores:
            mode = "main"
        if mode == "main":
            define(name, writer.tree(scoped("token", "sequence", "group", "batch", "const"), depth))
        else:
            define(name, writer.tree("sequence" if mode == "scores" else "token", depth, mode), mode)
    any_scope = ("token", "sequence", "sequence", "group", "batch", "const")
    define("reward", writer.tree(scoped(*any_scope), depth))
    if rng.random() < 0.6:
        define("baseline", writer.tree(scoped(*any_scope), depth))
    if rng.random() < 0.3:
        define("advantage", writer.tree(scoped("token", "sequence", "group"), depth))
    else:
        parts = definitions["reward"], definitions.get("baseline", number("0"))
        definitions["advantage"] = binary(
            "-", leaf("reward", parts[0].scope), leaf("baseline" if "baseline" in definitions else "0", parts[1].scope)
        )
        writer.pool.append(("advantage", definitions["advantage"].scope, "main"))
    if rng.random() < 0.8:
        define("measure", writer.tree(scoped("token", "sequence", "sequence"), depth))
    else:
        definitions["measure"] = leaf("logp", "token")
        writer.pool.append(("measure", "token", "main"))
    if rng.random() < 0.6:
        if kind == "preference" and definitions["measure"].scope == "sequence" and rng.random() < 0.5:
            define("anchor", Node("form", "opposite", (leaf("measure", "sequence"),), "sequence"))
        else:
            define("anchor", writer.tree(scoped(*any_scope), depth))
    else:
        definitions["anchor"] = number("0")
    if rng.random() < 0.6:
        define("alpha", writer.tree(scoped(*any_scope), depth - 1), shown=rng.choice(["alpha", "α"]))
    else:
        definitions["alpha"] = number("1")
    if rng.random() < 0.5:
        define("credit", writer.tree(scoped(*any_scope), depth))
    else:
        definitions["credit"] = number("1")
    z_scope = finest(*(definitions[name].scope for name in ("alpha", "measure", "anchor")))
    z = rng.choice(["z", "ζ", "x"])
    omega = number("1")
    if rng.random() < 0.75:
        writer.arguments = [(z, z_scope), ("advantage", definitions["advantage"].scope)]
        omega = writer.tree(z_scope, depth)
        writer.arguments = []
        statements["name", "omega"] = f"{rng.choice(['omega', 'ω'])}({z}) = {text(omega)}"
    a = rng.choice(["a", "adv"])
    a_scope = definitions["advantage"].scope
    upsilon = leaf(a, a_scope)
    if rng.random() < 0.5:
        upsilon = writer.increasing(a, a_scope)
        statements["name", "upsilon"] = f"{rng.choice(['upsilon', 'υ'])}({a}) = {text(upsilon)}"
    has_penalty = rng.random() < 0.6
    if has_penalty:
        live = writer.tree(scoped("token", "token", "sequence", "sequence", "group", "batch"), depth + 1)
        define("penalty", live)
    else:
        definitions["penalty"] = number("0")
    reports = {}
    for name in rng.sample(["seen", "margin"], rng.choice([0, 1])):
        reports[name] = writer.tree(scoped(*any_scope), depth)
        statements["report", name] = f"report {name} = {text(reports[name])}"
    steps, words = aggregation(rng, writer.grouped, params)
    if words:
        statements["aggregate", ""] = f"aggregate = {words}"
    files = written(rng, statements)
    return Program(
        seed,
        kind,
        files,
        params,
        settings,
        writer.scores,
        definitions,
        omega,
        z,
        upsilon,
        a,
        steps,
        reports,
        writer.needs,
        has_penalty,
    )


def aggregation(rng: random.Random, grouped: bool, params: Mapping[str, float]) -> tuple[list[language.Step], str]:
    """Steps from the tokens up to one number, and their text; no text for the default."""
    if rng.random() < 0.2:
        return [language.Step("sum", "tokens"), language.Step("mean", "sequences")], ""
    axes: list[Any] = []
    left = "tokens"
    while left != "one":
        choices = {
            "tokens": ["tokens", "tokens", "batch"] + ["group"] * grouped,
            "sequences": ["sequences", "batch"] + ["group"] * grouped,
            "groups": ["groups", "batch"],
        }[left]
        axis = rng.choice(choices)
        axes.append(axis)
        left = {"tokens": "sequences", "group": "groups"}.get(axis, "one")
    steps, words = [], []
    for axis in axes:
        op: Any = rng.choice(["sum", "mean"])
        divisor, shown = 1.0, ""
        if rng.random() < 0.3:
            usable = [name for name, given in params.items() if given != 0]
            if usable and rng.random() < 0.5:
                name = rng.choice(usable)
                divisor, shown = params[name], f" / {name}"
            else:
                divisor, shown = 2.5, " / 2.5"
        steps.append(language.Step(op, axis, divisor))
        words.append(f"{op} over {axis}{shown}")
    return steps, ", ".join(words)


def written(rng: random.Random, statements: dict[tuple[str, str], str]) -> dict[str, str]:
    """The statements as one file, or as two of which the first extends the second."""
    keys = list(statements)
    rng.shuffle(keys)
    child = keys
    files: dict[str, str] = {}
    if rng.random() < 0.25:
        child = [key for key in keys if rng.random() < 0.5]
        parent = [statements[key] for key in keys if key not in child]
        # what the child says replaces what the parent says
        for key in child:
            if key[1] in COMPONENTS and rng.random() < 0.7:
                parent.append(f"{key[1]} = {rng.choice(['0', '3', 'position', 'logp - 1', 'length'])}")
            elif key == ("aggregate", ""):
                parent.append("aggregate = sum over batch / 3")
            elif key[1] == "omega":
                parent.append("omega(u) = u + 7")
        parent.append("law parental: invariant when position = any(token)")
        files["parent.gro"] = "\n".join(["method parent", *parent]) + "\n"
        lines = ["method drawn", "extends parent", *(statements[key] for key in child)]
    else:
        lines = ['method drawn "Drawn"', *(statements[key] for key in child)]
    shown = []
    for line in lines:
        if rng.random() < 0.2:
            line = line.replace(" = ", " =\n    # a remark\n  ", 1) + "  # the end"
        shown.append(line)
        if rng.random() < 0.1:
            shown += ["", "# between"]
    return {"drawn.gro": "\n".join(shown) + "\n"} | files


# --- drawing a batch ----------------------------------------------------------------------------------------


@dataclass
class Drawn:
    """A batch as arrays without holes, with the tensors that grolang gets (NaN and garbage where nothing is)."""

    mask: NDArray[np.bool_]
    group: NDArray[np.int64]
    arrays: dict[str, Array]
    label: NDArray[np.float64]
    demonstration: NDArray[np.float64]
    scores: dict[str, Array]
    greedy: dict[str, Array]
    other_mask: NDArray[np.bool_]
    other: dict[str, Array]
    rng: np.random.Generator = field(repr=False, default_factory=np.random.default_rng)
    slip: float = 0.0  # how far a demonstration's old policy stands from the policy


def batch(program: Program, *, seed: int | None = None, most: int = 4) -> Drawn:
    """A batch on which the program is defined."""
    rng = np.random.default_rng(program.seed if seed is None else seed)
    needs = program.needs
    if program.kind == "preference":
        sizes = [2] * int(rng.integers(1, 4))
    elif program.kind in GROUPED:
        sizes = [int(rng.integers(needs.group, needs.group + 3)) for _ in range(int(rng.integers(1, 4)))]
    else:
        sizes = [1] * int(rng.integers(needs.rows, 6))
    if sum(sizes) < needs.rows:
        sizes.append(max(needs.group, 2))
    count, padding = sum(sizes), int(rng.integers(0, 3))
    slots = int(rng.integers(needs.tokens, needs.tokens + most))

    def masks() -> NDArray[np.bool_]:
        made = np.zeros((count, slots), dtype=np.bool_)
        for row in made:
            length = int(rng.integers(needs.tokens, slots + 1))
            row[rng.permutation(slots)[:length] if rng.random() < 0.4 else np.arange(length)] = True
        return made

    mask = np.concatenate([masks(), np.zeros((padding, slots), dtype=np.bool_)])
    ids = rng.choice(40, size=len(sizes), replace=False)
    group = np.concatenate([np.repeat(ids, sizes), rng.choice(ids, size=padding)]).astype(np.int64)
    label = rng.choice([-1.0, 1.0], size=len(group))
    if program.kind == "preference":
        label[1:count:2] = -label[0:count:2]
    order = rng.permutation(len(group))
    mask, group, label = mask[order], group[order], label[order]
    real = mask.any(1)
    other_mask = np.zeros_like(mask)
    rows = np.flatnonzero(real)
    other_mask[rows] = mask[np.roll(rows, -1)]
    shape = mask.shape

    def policies() -> dict[str, Array]:
        logp = -rng.gamma(1.0, 1.2, size=shape) - 1e-3
        return {
            "logp": logp,
            "logp_old": np.minimum(logp + rng.normal(0, 0.3, shape), -1e-3),
            "logp_ref": np.minimum(logp + rng.normal(0, 0.5, shape), -1e-3),
            "logp_sampler": np.minimum(logp + rng.normal(0, 0.1, shape), -1e-3),
            "entropy": rng.uniform(0.1, 3, shape),
        }

    demonstration = np.zeros(len(group))
    if program.kind == "demonstrations":
        demonstration[:] = 1.0
    elif "demonstrations" in program.kind:
        demonstration = rng.integers(0, 2, len(group)).astype(float)
    modes: list[Callable[[int], Array]] = [
        lambda n: rng.integers(0, 2, n).astype(float),
        lambda n: np.full(n, 0.1),
        lambda n: rng.integers(-8, 9, n) / 8,  # eighths: their sums round nothing, so that a sum of 0 is one
        lambda n: rng.normal(size=n),
    ]
    index = np.unique(group, return_inverse=True)[1]
    scores = {name: modes[int(rng.integers(4))](len(group)) for name in program.scores}
    greedy = {name: modes[int(rng.integers(4))](len(sizes))[index] for name in program.scores}
    other = {name: x for name, x in policies().items() if name != "logp_old"}
    return Drawn(mask, group, policies(), label, demonstration, scores, greedy, other_mask, other, rng)


def tensors(program: Program, drawn: Drawn) -> grolang.Batch:
    """The batch as grolang gets it: what the mask drops is NaN or something that would show."""

    def covered(x: Array, on: Any) -> torch.Tensor:
        return torch.from_numpy(np.where(on, x, drawn.rng.choice([np.nan, 40.0, -1e4, np.inf], size=x.shape)))

    real = drawn.mask.any(1)
    there: dict[str, Any] = {name: covered(x, drawn.other_mask) for name, x in drawn.other.items()}
    kinds: dict[str, Any] = {name: covered(x, drawn.mask) for name, x in drawn.arrays.items()}
    if program.kind in ("preference", "unpaired"):
        kinds["label"] = covered(drawn.label, real)
    if "demonstrations" in program.kind:
        kinds["demonstration"] = covered(drawn.demonstration, real)
    if program.kind in GROUPED:
        kinds["group"] = torch.from_numpy(drawn.group)
    return grolang.Batch(
        mask=torch.from_numpy(drawn.mask),
        scores={name: covered(x, real) for name, x in drawn.scores.items()},
        greedy_scores={name: covered(x, real) for name, x in drawn.greedy.items()},
        mismatched=grolang.Batch(mask=torch.from_numpy(drawn.other_mask), **there),
        **kinds,
    )


# --- its numbers, by another way ----------------------------------------------------------------------------


def world(program: Program, drawn: Drawn, logp: Array | None = None) -> World:
    """The names of the program on the batch; `logp` may be complex."""
    arrays = dict(drawn.arrays)
    old = np.where((drawn.demonstration != 0)[:, None], arrays["logp"] * (1 + drawn.slip), arrays["logp_old"])
    arrays["logp_old"] = old
    if logp is not None:
        arrays["logp"] = logp
    values = {**program.params, **arrays, "label": drawn.label, "demonstration": drawn.demonstration, **drawn.scores}
    there = World(drawn.other_mask, drawn.group, {**program.params, **drawn.other})
    definitions = {name: node for name, node in program.definitions.items() if name not in values}
    return World(drawn.mask, drawn.group, values, dict(drawn.greedy), there, definitions)


@dataclass
class Numbers:
    coefficients: Array
    reports: dict[str, float]


def expected(program: Program, drawn: Drawn) -> Numbers:
    """The coefficients and the reports, by LANGUAGE.md, 2 and 6."""
    here = world(program, drawn)
    with np.errstate(all="ignore"):

        def get(name: str) -> tuple[Any, str]:
            node = program.definitions[name]
            return value(node, here), node.scope

        def token(x: Any) -> Array:
            return language.to_token_scope(x, drawn.mask)

        advantage, measure = token(get("advantage")[0]), token(get("measure")[0])
        z = token(get("alpha")[0]) * (measure - token(get("anchor")[0]))
        inner = [program.definitions[name].scope for name in ("alpha", "measure", "anchor")]
        of_z = World(here.mask, here.group, dict(here.values), here.greedy, here.mismatched, here.definitions)
        of_z.values[program.omega_argument] = narrowed(z, finest(*inner), drawn.mask)
        omega = token(value(program.omega, of_z))
        of_a = World(here.mask, here.group, dict(here.values), here.greedy, here.mismatched, here.definitions)
        of_a.values[program.upsilon_argument] = narrowed(advantage, program.definitions["advantage"].scope, drawn.mask)
        upsilon = token(value(program.upsilon, of_a))
        push = token(get("credit")[0]) * omega * upsilon
        c = language.coefficients(push, program.steps, drawn.mask, drawn.group)
        if program.has_penalty:
            c = c + penalty(program, drawn)
        reports = {}
        for name, node in program.reports.items():
            x = np.asarray(value(node, here))
            if node.scope in ("const", "batch"):
                reports[name] = float(x)
            elif node.scope == "token":
                reports[name] = float(x[drawn.mask].mean())
            else:
                reports[name] = float(x[drawn.mask.any(1)].mean())
    return Numbers(c, reports)


def narrowed(x: Array, scope: str, mask: NDArray[np.bool_]) -> Any:
    """Token values that are all the same within a scope, as a value of that scope."""
    if scope == "token":
        return x
    rows = np.zeros(len(mask))
    for i in language.rows(mask):
        rows[i] = x[i, language.tokens(mask, i)[0]]
    return rows if scope in ("group", "sequence") else rows[mask.any(1)][0]


def penalty(program: Program, drawn: Drawn) -> Array:
    """[S, T]: −∂(aggregated penalty)/∂logp by a complex step."""
    node = program.definitions["penalty"]

    def of(logp: Array) -> Any:
        there = world(program, drawn, logp)
        return value(node, there)

    scope: Any = node.scope
    return language.penalty_coefficients(of, scope, program.steps, drawn.mask, drawn.group, drawn.arrays["logp"])


def nudged(drawn: Drawn, size: float, seed: int) -> Drawn:
    """The batch with its continuous values moved a little: to tell a wrong number from an ill-defined one."""
    rng = np.random.default_rng(seed)

    def moved(arrays: dict[str, Array]) -> dict[str, Array]:
        return {name: x * (1 + size * rng.uniform(-1, 1, x.shape)) for name, x in arrays.items()}

    return Drawn(
        drawn.mask,
        drawn.group,
        moved(drawn.arrays),
        drawn.label,
        drawn.demonstration,
        drawn.scores,
        drawn.greedy,
        drawn.other_mask,
        moved(drawn.other),
        slip=size if seed % 2 else -size,
    )
