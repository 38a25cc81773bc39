"""Trees to typed expressions: every name resolved, every scope known, every misuse found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

from lark import Token, Tree

from grolang.language import ir, misuse
from grolang.language.components import COMPONENTS, FUNCTION_COMPONENTS, Component
from grolang.language.declarations import Declarations, canonical, leaf
from grolang.language.findings import Findings
from grolang.language.functions import (
    BINARY,
    CALLABLE,
    FORMS,
    FUNCTIONS,
    KEYWORDS,
    LOG_PROBS,
    NAMED,
    OBSERVABLES,
    REDUCTIONS,
    SPELLINGS,
    Form,
)
from grolang.language.ir import constant
from grolang.language.misuse import DATA_OF, Misuse
from grolang.language.scopes import REDUCED, Scope, has_axis, joined
from grolang.language.source import Source, Span
from grolang.language.syntax import Statement, branches, operator, tree_of

#: findings after which no nearest name is looked for: it is the slowest part, and nobody reads so far
MANY = 20


@dataclass(frozen=True)
class Binding:
    """The argument of a function component while its body is read."""

    name: str
    component: str
    scope: Scope


def _whole(parts: Iterable[ir.Expr | None]) -> tuple[ir.Expr, ...] | None:
    """All parts; None where one of them has a finding."""
    made = tuple(parts)
    whole = tuple(part for part in made if part is not None)
    return whole if len(whole) == len(made) else None


class Elaborator:
    """Turns trees into expressions. A tree with a mistake becomes None, after one finding; None spreads silently."""

    def __init__(
        self, declared: Declarations, data: tuple[str, ...], findings: Findings, *, alone: bool = False
    ) -> None:
        self.declared = declared
        self.data = data
        self.alone = alone  # whether the file says that a group is one completion
        self.findings = findings
        self.definitions: dict[str, ir.Definition | None] = {}
        self.in_law = False
        self._stack: list[tuple[str, Span]] = []
        self._statement: Statement | None = None
        self._binding: Binding | None = None
        self._axis = ""  # of the innermost reduction around the tree that is read

    # --- names ------------------------------------------------------------------------------------------------

    def define(self, name: str) -> ir.Definition | None:
        """The checked definition or component of this name."""
        if name in self.definitions:
            return self.definitions[name]
        statement = self.declared.named(name)
        if name in self.declared.broken:
            return self.definitions.setdefault(name, None)
        if statement is None or statement.kind != "definition":
            return self._default(name)
        token = leaf(statement)
        span = statement.span_of(token)
        self._stack.append((name, span))
        body = self.expression(statement, statement.tree.children[1])
        self._stack.pop()
        made = None if body is None else ir.Definition(name=name, spelled=str(token), body=body, span=span)
        # A cycle that was found further in has already settled this name.
        return self.definitions.setdefault(name, made)

    def _default(self, name: str) -> ir.Definition | None:
        """A component that the author left out."""
        place, body = self.declared.place, self.default(COMPONENTS[name])
        made = None if body is None else ir.Definition(name=name, spelled=name, body=body, span=place, given=False)
        return self.definitions.setdefault(name, made)

    def default(self, row: Component, binding: Binding | None = None) -> ir.Expr | None:
        """What a component is that the author left out; None where that has none."""
        if not row.default:
            return None
        tree, source = tree_of(row.default), Source(self.declared.place.file, row.default)
        return self.expression(Statement(source, 0, 0, tree, self.declared.place), tree, binding)

    def _named(self, name: str, span: Span) -> ir.Expr | None:
        names = [earlier for earlier, _ in self._stack]
        if name in names and name not in self.definitions:
            way = [*self._stack[names.index(name) :], (name, span)]
            self.findings.add(
                "E204",
                f"defined through itself: {' → '.join(self._spelled(step) for step, _ in way)}",
                way[0][1],
                notes=[(place, f"`{self._spelled(step)}` is used here") for step, place in way[1:]][-1:],
                help="break the circle: one of them must not use the other",
            )
            for step, _ in way:
                self.definitions[step] = None
            return None
        definition = self.define(name)
        if definition is None:
            return None
        body = definition.body
        return ir.Named(scope=body.scope, live=body.live, span=span, name=name)

    def _spelled(self, name: str) -> str:
        statement = self.declared.named(name)
        return str(leaf(statement)) if statement else name

    def known(self) -> set[str]:
        """Every name that an expression may use here."""
        own = {self._binding.name} if self._binding else set()
        return own | self.declared.names | set(OBSERVABLES) | set(COMPONENTS) | {"inf"}

    # --- expressions --------------------------------------------------------------------------------------------

    def expression(
        self, statement: Statement, tree: Tree[Token] | Token | None, binding: Binding | None = None
    ) -> ir.Expr | None:
        """Check one tree of a statement."""
        before = self._statement, self._binding, self._axis
        self._statement, self._binding, self._axis = statement, binding, ""
        try:
            return self._expression(tree)
        finally:
            self._statement, self._binding, self._axis = before

    def _expression(self, tree: Tree[Token] | Token | None) -> ir.Expr | None:
        assert isinstance(tree, Tree), "bug in grolang: the grammar gave no tree for an expression"
        if (function := operator(tree)) is not None:
            return self._apply(function, branches(tree), self._span(tree))
        rule: Callable[[Tree[Token]], ir.Expr | None] = getattr(self, f"read_{tree.data}")
        return rule(tree)

    def _span(self, part: Tree[Token] | Token) -> Span:
        assert self._statement is not None
        return self._statement.span_of(part)

    def _text(self, part: Tree[Token] | Token) -> str:
        assert self._statement is not None
        return self._statement.text_of(part)

    def read_literal(self, tree: Tree[Token]) -> ir.Expr | None:
        value = float(str(tree.children[0]))
        if math.isinf(value):
            return self._refuse(misuse.too_large(str(tree.children[0])), self._span(tree))
        return ir.Number(scope=Scope.CONST, span=self._span(tree), value=value)

    def read_parenthesis(self, tree: Tree[Token]) -> ir.Expr | None:
        return self._expression(tree.children[0])

    def read_name(self, tree: Tree[Token]) -> ir.Expr | None:
        spelled = str(tree.children[0])
        name, span = canonical(spelled), self._span(tree)
        if self._binding and name == self._binding.name:
            return ir.Argument(scope=self._binding.scope, span=span, name=self._binding.component)
        if name == "inf":
            return ir.Number(scope=Scope.CONST, span=span, value=math.inf)
        if name in OBSERVABLES:
            row = OBSERVABLES[name]
            if row.data and not self.has(row.data):
                return self._refuse(misuse.wrong_data(DATA_OF[row.data], spelled, self.data), span)
            return ir.Observed(scope=row.scope, live=row.live, span=span, name=name)
        statement = self.declared.named(name)
        if statement is not None and statement.kind == "param":
            return ir.Parameter(scope=Scope.CONST, span=span, name=name)
        if statement is not None and statement.kind == "score":
            return ir.Observed(scope=Scope.SEQUENCE, span=span, name=name)
        if self._binding and self._binding.component == "upsilon" and name == "advantage":
            return ir.Argument(scope=self._binding.scope, span=span, name="upsilon")
        if name in FUNCTION_COMPONENTS or (statement is not None and statement.kind == "function"):
            return self._refuse(misuse.function_component(spelled), span)
        if statement is not None or name in COMPONENTS:
            return self._component(name, spelled, span)
        return self._unknown(spelled, span)

    def _component(self, name: str, spelled: str, span: Span) -> ir.Expr | None:
        assert self._statement is not None
        given = self.declared.named(name) is not None or name in self.declared.broken
        if name == "reward" and not given and self._statement.place is None:
            return self._refuse(misuse.no_reward(spelled), span)
        return self._named(name, span)

    def _unknown(self, spelled: str, span: Span) -> ir.Expr | None:
        if canonical(spelled) in self.declared.broken:
            return None  # the statement that declares it has a finding of its own
        if canonical(spelled) in CALLABLE or spelled in SPELLINGS:
            return self._refuse(misuse.function_as_value(spelled), span)
        if spelled in KEYWORDS:
            return self._refuse(misuse.keyword_as_value(spelled), span)
        around = {name for name, _ in self._stack}  # a value of these would be defined through itself
        known = self.known() - around if len(self.findings) < MANY else ()
        return self._refuse(misuse.unknown(spelled, known, around, drawn="prompts" in self.data), span)

    def _refuse(self, wrong: Misuse, span: Span, notes: Iterable[tuple[Span, str]] = ()) -> ir.Expr | None:
        """A finding at this place, and None for the expression."""
        self.findings.add(wrong.code, wrong.message, span, label=wrong.label, help=wrong.help, notes=notes)
        return None

    def has(self, data: str) -> bool:
        """Whether the method's data holds pairs, labels, groups, …"""
        return not self.data or not set(DATA_OF[data].kinds).isdisjoint(self.data)

    # --- operators ----------------------------------------------------------------------------------------------

    def read_if_else(self, tree: Tree[Token]) -> ir.Expr | None:
        then, condition, otherwise = branches(tree)
        return self._apply("choose", [condition, then, otherwise], self._span(tree))

    def read_comparison(self, tree: Tree[Token]) -> ir.Expr | None:
        """`a < b < c` holds where both do, as in Python."""
        values, signs, span = [self._expression(part) for part in branches(tree)], tree.children[1::2], self._span(tree)
        pairs = zip(signs, values, values[1:])
        held = [self._call(BINARY[str(sign)].name, (left, right), span) for sign, left, right in pairs]
        return reduce(lambda one, other: self._call("and", (one, other), span), held)

    def _apply(self, function: str, trees: Iterable[Tree[Token]], span: Span) -> ir.Expr | None:
        return self._call(function, [self._expression(tree) for tree in trees], span)

    def _call(self, function: str, arguments: Iterable[ir.Expr | None], span: Span) -> ir.Expr | None:
        whole = _whole(arguments)
        if whole is None or self._unlike(whole, span):
            return None
        flows = FUNCTIONS[function].derivative
        live = any(argument.live for argument, flow in zip(whole, flows) if flow is not None)
        return ir.Call(
            scope=joined(*(argument.scope for argument in whole)),
            live=live,
            span=span,
            function=function,
            arguments=whole,
        )

    def _unlike(self, parts: tuple[ir.Expr, ...], span: Span) -> bool:
        """Whether a token value meets a comparison of sequences; a finding if so."""
        tokens = [part for part in parts if part.scope is Scope.TOKEN]
        if not tokens or all(part.scope is not Scope.COMPARISON for part in parts):
            return False
        assert self._statement is not None
        self._refuse(misuse.tokens_compared(self._statement.source.quoted(tokens[0].span)), tokens[0].span)
        return True

    # --- calls --------------------------------------------------------------------------------------------------

    def read_call(self, tree: Tree[Token]) -> ir.Expr | None:
        word, axis, trees = tree.children[0], tree.children[-1], branches(tree)
        assert isinstance(word, Token)
        name = SPELLINGS.get(str(word), canonical(str(word)))
        if name == "any" and self.in_law:
            return self._any(tree, trees)
        if isinstance(axis, Token):
            return self._reduction(tree, word, name, trees, axis)
        if name in REDUCTIONS and (name not in NAMED or len(trees) == 1):
            return self._without_axis(word, trees[0])
        if name in NAMED:
            if not self._counted(word, len(trees), NAMED[name].arguments, nests=NAMED[name].nests):
                return None
            return self._apply(name, trees, self._span(tree))
        if name in FORMS:
            if not self._counted(word, len(trees), FORMS[name].arguments):
                return None
            return self._form(tree, word, FORMS[name], trees)
        return self._no_function(word, name)

    def _no_function(self, word: Token, name: str) -> ir.Expr | None:
        span = self._span(word)
        statement = self.declared.named(name)
        if statement is not None and statement.kind == "function" and name not in FUNCTION_COMPONENTS:
            return None  # its declaration has a finding of its own
        if name in FUNCTION_COMPONENTS:
            return self._refuse(misuse.component_called(word), span)
        if name in self.known():
            return self._refuse(misuse.value_called(word), span)
        return self._refuse(misuse.any_outside_laws() if name == "any" else misuse.no_function(str(word)), span)

    def _counted(
        self, word: Token, given: int, expected: tuple[str, ...], over: str = "", *, nests: bool = False
    ) -> bool:
        if given != len(expected):
            self._refuse(misuse.miscounted(word, given, expected, over, nests=nests), self._span(word))
        return given == len(expected)

    def _without_axis(self, word: Token, tree: Tree[Token]) -> ir.Expr | None:
        inner = self._expression(tree)
        if inner is None:
            return None
        return self._refuse(misuse.without_axis(word, self._text(tree), inner.scope), self._span(word))

    def _reduction(
        self, tree: Tree[Token], word: Token, name: str, trees: list[Tree[Token]], axis_word: Token
    ) -> ir.Expr | None:
        if name not in REDUCTIONS and name in CALLABLE:
            return self._refuse(misuse.reduces_nothing(word, axis_word), self._span(axis_word))
        if name not in REDUCTIONS:
            return self._refuse(misuse.no_reduction(str(word)), self._span(word))
        row = REDUCTIONS[name]
        if not self._counted(word, len(trees), ("x", "q")[: row.arguments], f" over {axis_word}"):
            return None
        axis = str(axis_word)
        values = [self._inside(axis, argument) for argument in trees]
        if axis not in REDUCED:
            return self._refuse(misuse.unknown_axis(axis), self._span(axis_word))
        if (whole := _whole(values)) is None:
            return None
        value, *rest = whole
        if axis in ("group", "others") and not self.has("groups"):
            help = "use `over batch`, or data with groups"
            wrong = misuse.wrong_data(DATA_OF["groups"], f"over {axis}", self.data, help)
            return self._refuse(wrong, self._span(axis_word))
        if axis == "others" and self.alone and not self.in_law:
            return self._refuse(misuse.no_others(), self._span(axis_word), self._group())
        if not has_axis(value.scope, axis):
            wrong = misuse.nothing_over(axis, word, self._text(trees[0]), value.scope)
            return self._refuse(wrong, self._span(trees[0]))
        if rest and not self._quantile(rest[0], trees[1]):
            return None
        return ir.Reduce(
            scope=REDUCED[axis],
            live=value.live,
            span=self._span(tree),
            function=name,
            axis=axis,
            arguments=whole,
        )

    def _group(self) -> list[tuple[Span, str]]:
        """Where the file says that a group is one completion."""
        statement = self.declared.one("group")
        return [] if statement is None else [(statement.span_of(leaf(statement)), "one completion for each prompt")]

    def _inside(self, axis: str, tree: Tree[Token]) -> ir.Expr | None:
        """An argument of a reduction over this axis."""
        before, self._axis = self._axis, axis
        try:
            return self._expression(tree)
        finally:
            self._axis = before

    def _quantile(self, q: ir.Expr, tree: Tree[Token]) -> bool:
        value, wrong = constant(q), None
        if q.scope is not Scope.CONST:
            help = "use a number or a parameter between 0 and 1"
            wrong = misuse.not_one_number("the `q` of a quantile", self._text(tree), q.scope, help)
        elif value is not None and not 0 <= value <= 1:
            wrong = misuse.no_share(value)
        if wrong is not None:
            self._refuse(wrong, self._span(tree))
        return wrong is None

    def _any(self, tree: Tree[Token], trees: list[Tree[Token]]) -> ir.Expr | None:
        words = {scope.word: scope for scope in Scope if scope is not Scope.COMPARISON}
        named = str(trees[0].children[0]) if len(trees) == 1 and trees[0].data == "name" else ""
        if named not in words:
            return self._refuse(misuse.any_of_no_scope(words), self._span(tree))
        return ir.Arbitrary(scope=words[named], span=self._span(tree))

    # --- forms --------------------------------------------------------------------------------------------------

    def _form(self, tree: Tree[Token], word: Token, row: Form, trees: list[Tree[Token]]) -> ir.Expr | None:
        values = [self._expression(argument) for argument in trees]
        if row.data and not self.has(row.data):
            return self._refuse(misuse.wrong_data(DATA_OF[row.data], str(word), self.data), self._span(word))
        if (whole := _whole(values)) is None:
            return None
        value = whole[0]
        if row.name == "own" and self._axis != "others":
            return self._refuse(misuse.misplaced(word, self._text(trees[0]), self._axis), self._span(word))
        if not row.coarsest <= value.scope <= row.takes:
            wrong = misuse.wrong_scope(word, row, self._text(trees[0]), value.scope)
            return self._refuse(wrong, self._span(trees[0]))
        if row.name == "to_go" and whole[1].scope is not Scope.CONST:
            what, text = "the discount of `to_go`", self._text(trees[1])
            wrong = misuse.not_one_number(what, text, whole[1].scope, "use a number or a parameter")
            return self._refuse(wrong, self._span(trees[1]))
        if row.name in ("greedy", "mismatched") and not self._made_of(row.name, value, word):
            return None
        gives = value.scope if row.name == "sg" else row.gives
        live = row.flows and value.live
        return ir.Call(scope=gives, live=live, span=self._span(tree), function=row.name, arguments=whole)

    def _made_of(self, form: str, value: ir.Expr, word: Token) -> bool:
        """Whether the argument of `greedy` is made of scores, that of `mismatched` of log-probs."""
        seen = self.observed(value)
        scores = {name for name, _ in self.declared.of_kind("score")}
        if form == "greedy":
            strange = [name for name in seen if name not in scores]
            good, what, code = bool(seen) and not strange, "scores", "E306"
        else:
            allowed = {*LOG_PROBS, "position", "length"}
            strange = [name for name in seen if name not in allowed]
            good, what, code = not strange and bool(set(seen) & set(LOG_PROBS)), "log-probs", "E307"
        if not good:
            self._refuse(misuse.made_of_other(code, word, what, strange), value.span)
        return good

    def observed(self, expr: ir.Expr) -> list[str]:
        """Every observable, score and reduction beyond tokens that an expression uses, through definitions."""
        found: list[str] = []
        for node in ir.nodes(expr, self.definitions):
            if isinstance(node, ir.Observed):
                found.append(node.name)
            elif isinstance(node, ir.Argument):
                found.append(self._binding.name if self._binding else node.name)
            elif isinstance(node, ir.Reduce) and node.axis != "tokens":
                found.append(f"over {node.axis}")
            elif isinstance(node, ir.Call) and node.function in FORMS.keys() - {"sg", "terminal", "to_go"}:
                found.append(node.function)
        return list(dict.fromkeys(found))
