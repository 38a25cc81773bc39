"""Trees to typed expressions: every name resolved, every scope known, every misuse found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lark import Token, Tree

from grolang.language import ir
from grolang.language.components import COMPONENTS, FUNCTION_COMPONENTS, Component
from grolang.language.declarations import Declarations, canonical, leaf
from grolang.language.findings import Findings, listed, suggested
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
from grolang.language.habits import meant
from grolang.language.scopes import REDUCED, Scope, has_axis, joined
from grolang.language.source import Source, Span
from grolang.language.syntax import Statement, branches, operator, tree_of

#: what a group function needs, and which data has it
DATA_OF = {
    "pairs": ("`data preference`", {"preference"}),
    "labels": ("`data preference` or `data unpaired`", {"preference", "unpaired"}),
    "groups": ("`data preference` or `data prompts`", {"preference", "prompts"}),
    "prompts": ("`data prompts`", {"prompts"}),
    "demonstrations": ("`data demonstrations`", {"demonstrations"}),
}


#: findings after which no nearest name is looked for: it is the slowest part, and nobody reads so far
MANY = 20


@dataclass(frozen=True)
class Binding:
    """The argument of a function component while its body is read."""

    name: str
    component: str
    scope: Scope


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
        statement = self.declared.table.get(("name", name))
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
        statement = self.declared.table.get(("name", name))
        return str(leaf(statement)) if statement else name

    def known(self) -> set[str]:
        """Every name that an expression may use here."""
        names = {name for kind, name in self.declared.table if kind == "name"} | set(OBSERVABLES) | {"inf"}
        names |= set(COMPONENTS)
        return names | ({self._binding.name} if self._binding else set())

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
            self.findings.add(
                "E505", f"`{tree.children[0]}` is too large a number", self._span(tree), help="write `inf`"
            )
            return None
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
                code = "E402" if row.data == "groups" else "E401"
                self._wrong_data(code, f"`{spelled}` needs {DATA_OF[row.data][0]}", span)
                return None
            return ir.Observed(scope=row.scope, live=row.live, span=span, name=name)
        statement = self.declared.table.get(("name", name))
        if statement is not None and statement.kind == "param":
            return ir.Parameter(scope=Scope.CONST, span=span, name=name)
        if statement is not None and statement.kind == "score":
            return ir.Observed(scope=Scope.SEQUENCE, span=span, name=name)
        if self._binding and self._binding.component == "upsilon" and name == "advantage":
            return ir.Argument(scope=self._binding.scope, span=span, name="upsilon")
        if name in FUNCTION_COMPONENTS or (statement is not None and statement.kind == "function"):
            help = "use its argument's definition, or name the value in a definition of its own"
            self.findings.add("E205", f"`{spelled}` is a function component, not a value", span, help=help)
            return None
        if statement is not None or name in COMPONENTS:
            return self._component(name, spelled, span)
        self._unknown(spelled, span)
        return None

    def _component(self, name: str, spelled: str, span: Span) -> ir.Expr | None:
        assert self._statement is not None
        given = ("name", name) in self.declared.table or name in self.declared.broken
        if name == "reward" and not given and self._statement.place is None:
            help = "add `reward = …`"
            self.findings.add("E201", f"`{spelled}` is used, but the method gives no reward", span, help=help)
            return None
        return self._named(name, span)

    def _unknown(self, spelled: str, span: Span) -> None:
        if canonical(spelled) in self.declared.broken:
            return  # the statement that declares it has a finding of its own
        if canonical(spelled) in CALLABLE or spelled in SPELLINGS:
            help = f"call it: `{spelled}(…)`"
            self.findings.add("E205", f"`{spelled}` is a function, not a value", span, help=help)
            return
        if spelled in KEYWORDS:
            help = meant(spelled) or f"a keyword cannot be a name: call yours `my_{spelled}`"
            self.findings.add("E205", f"`{spelled}` is a keyword, not a value", span, help=help)
            return
        around = {name for name, _ in self._stack}  # a value of these would be defined through itself
        known = self.known() - around if len(self.findings) < MANY else ()
        drawn = f", or `score {spelled}`" if "prompts" in self.data else ""
        otherwise = f"define it: `{spelled} = …`, or `param {spelled} = …`{drawn}"
        help = meant(spelled, around) or suggested(spelled, known, otherwise)
        self.findings.add("E201", f"there is no `{spelled}`", span, label="not known", help=help)

    def has(self, data: str) -> bool:
        """Whether the method's data holds pairs, labels, groups, …"""
        return not self.data or bool(DATA_OF[data][1] & set(self.data))

    def _wrong_data(self, code: str, message: str, span: Span, help: str = "") -> None:
        message += f"; this method learns from `data {' + '.join(self.data)}`"
        self.findings.add(code, message, span, help=help or "change the `data` line, or do without it")

    # --- operators ----------------------------------------------------------------------------------------------

    def read_if_else(self, tree: Tree[Token]) -> ir.Expr | None:
        then, condition, otherwise = branches(tree)
        return self._apply("choose", [condition, then, otherwise], self._span(tree))

    def read_comparison(self, tree: Tree[Token]) -> ir.Expr | None:
        """`a < b < c` holds where both do, as in Python."""
        values = [self._expression(part) for part in branches(tree)]
        signs = [str(sign) for sign in tree.children[1::2]]
        span = self._span(tree)
        held: ir.Expr | None = None
        for index, sign in enumerate(signs):
            pair = self._call(BINARY[sign].name, values[index : index + 2], span)
            held = pair if index == 0 else self._call("and", [held, pair], span)
        return held

    def _apply(self, function: str, trees: Iterable[Tree[Token]], span: Span) -> ir.Expr | None:
        return self._call(function, [self._expression(tree) for tree in trees], span)

    def _call(self, function: str, arguments: Iterable[ir.Expr | None], span: Span) -> ir.Expr | None:
        made = tuple(arguments)
        whole = tuple(argument for argument in made if argument is not None)
        if len(whole) < len(made) or self._unlike(whole, span):
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
        text = self._statement.source.quoted(tokens[0].span)
        message = f"`own` compares sequences; `{text}` has one value per token"
        help = f"say how its tokens count: `sum({text} over tokens)`"
        self.findings.add("E308", message, tokens[0].span, label="token", help=help)
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
            self._without_axis(word, trees[0])
            return None
        if name in NAMED:
            if not self._counted(word, len(trees), NAMED[name].arguments):
                return None
            return self._apply(name, trees, self._span(tree))
        if name in FORMS:
            if not self._counted(word, len(trees), FORMS[name].arguments):
                return None
            return self._form(tree, word, FORMS[name], trees)
        self._no_function(word, name)
        return None

    def _no_function(self, word: Token, name: str) -> None:
        span = self._span(word)
        statement = self.declared.table.get(("name", name))
        if statement is not None and statement.kind == "function" and name not in FUNCTION_COMPONENTS:
            return  # its declaration has a finding of its own
        if name in FUNCTION_COMPONENTS:
            help = "only the estimator calls it; name the value in a definition of its own"
            self.findings.add("E205", f"`{word}` is a component and cannot be called", span, help=help)
        elif name in self.known():
            self.findings.add(
                "E205", f"`{word}` is a value, not a function", span, help=f"write `{word} * (…)` to multiply"
            )
        elif name == "any":
            help = "`any(scope)` is an arbitrary value, in laws alone: `law N: invariant when X = any(scope)`"
            self.findings.add("E205", "`any` stands in laws only", span, help=help)
        else:
            help = meant(str(word)) or suggested(str(word), CALLABLE, "the reference lists every function")
            self.findings.add("E205", f"there is no function `{word}`", span, label="not known", help=help)

    def _counted(self, word: Token, given: int, expected: tuple[str, ...], over: str = "") -> bool:
        if given == len(expected):
            return True
        form = f"{word}({', '.join(expected)}{over})"
        if given > len(expected) and expected == ("a", "b"):  # `min` and `max`
            form = f"{word}({word}(a, b), c)"
        plural = "" if len(expected) == 1 else "s"
        message = f"`{word}` takes {len(expected)} argument{plural}, not {given}"
        self.findings.add("E206", message, self._span(word), help=f"write `{form}`")
        return False

    def _without_axis(self, word: Token, tree: Tree[Token]) -> None:
        inner = self._expression(tree)
        if inner is not None:
            axis = "tokens" if inner.scope is Scope.TOKEN else "batch"
            help = f"write `{word}({self._text(tree)} over {axis})`, or another axis"
            self.findings.add("E304", f"`{word}` does not say over which axis", self._span(word), help=help)

    def _reduction(
        self, tree: Tree[Token], word: Token, name: str, trees: list[Tree[Token]], axis_word: Token
    ) -> ir.Expr | None:
        if name not in REDUCTIONS:
            if name in CALLABLE:
                help = f"write it without `over {axis_word}`"
                self.findings.add("E304", f"`{word}` does not reduce over an axis", self._span(axis_word), help=help)
            else:
                otherwise = f"the reductions are {listed(REDUCTIONS)}"
                help = meant(str(word)) or suggested(str(word), REDUCTIONS, otherwise)
                self.findings.add(
                    "E205", f"there is no reduction `{word}`", self._span(word), label="not known", help=help
                )
            return None
        row = REDUCTIONS[name]
        if not self._counted(word, len(trees), ("x", "q")[: row.arguments], f" over {axis_word}"):
            return None
        axis = str(axis_word)
        values = [self._inside(axis, argument) for argument in trees]
        if axis not in REDUCED:
            help = suggested(axis, REDUCED, f"the axes are {listed(REDUCED)}")
            self.findings.add("E207", f"there is no axis `{axis}` to reduce over", self._span(axis_word), help=help)
            return None
        if any(value is None for value in values):
            return None
        value, *rest = [value for value in values if value is not None]
        if axis in ("group", "others") and not self.has("groups"):
            self._wrong_data(
                "E402", f"`over {axis}` needs groups", self._span(axis_word), "use `over batch`, or data with groups"
            )
            return None
        if axis == "others" and self.alone and not self.in_law:
            self._no_others(self._span(axis_word))
            return None
        if not has_axis(value.scope, axis):
            self._no_axis(word, trees[0], value, axis)
            return None
        if rest and not self._quantile(rest[0], trees[1]):
            return None
        return ir.Reduce(
            scope=REDUCED[axis],
            live=value.live,
            span=self._span(tree),
            function=name,
            axis=axis,
            arguments=(value, *rest),
        )

    def _no_others(self, span: Span) -> None:
        statement = self.declared.one("group")
        notes = [] if statement is None else [(statement.span_of(leaf(statement)), "one completion for each prompt")]
        help = "write `group 2` or more, or reduce `over batch`"
        self.findings.add("E406", "a group of one has no others", span, label="nothing is left", notes=notes, help=help)

    def _inside(self, axis: str, tree: Tree[Token]) -> ir.Expr | None:
        """An argument of a reduction over this axis."""
        before, self._axis = self._axis, axis
        try:
            return self._expression(tree)
        finally:
            self._axis = before

    def _no_axis(self, word: Token, tree: Tree[Token], value: ir.Expr, axis: str) -> None:
        verbs = {"sum": "sum", "max": "take the largest of", "min": "take the smallest of"}
        action = (verbs | {"quantile": "take a quantile of"}).get(str(word), f"take the {word} of")
        what = {"tokens": "tokens", "group": "the group", "others": "the others", "batch": "the batch"}[axis]
        example = "a token value such as `logp`" if axis == "tokens" else "a sequence value such as a score"
        act = "sum" if word == "sum" else "reduce"
        self.findings.add(
            "E301",
            f"nothing to {action} over {what}: `{self._text(tree)}` {value.scope.phrase}",
            self._span(tree),
            label=value.scope.word,
            help=f"write `{self._text(tree)}`, or {act} {example}",
        )

    def _quantile(self, q: ir.Expr, tree: Tree[Token]) -> bool:
        if q.scope is not Scope.CONST:
            help = "use a number or a parameter between 0 and 1"
            message = f"the `q` of a quantile must be one number; `{self._text(tree)}` {q.scope.phrase}"
            self.findings.add("E302", message, self._span(tree), label=q.scope.word, help=help)
            return False
        value = constant(q)
        if value is not None and not 0 <= value <= 1:
            help = "0.5 is the median"
            self.findings.add(
                "E505", f"the `q` of a quantile lies between 0 and 1, not {value:g}", self._span(tree), help=help
            )
            return False
        return True

    def _any(self, tree: Tree[Token], trees: list[Tree[Token]]) -> ir.Expr | None:
        words = {scope.word: scope for scope in Scope if scope is not Scope.COMPARISON}
        named = str(trees[0].children[0]) if len(trees) == 1 and trees[0].data == "name" else ""
        if named not in words:
            help = f"write `any(SCOPE)`, SCOPE one of {listed(words)}"
            self.findings.add("E206", "`any` takes the name of a scope", self._span(tree), help=help)
            return None
        return ir.Arbitrary(scope=words[named], span=self._span(tree))

    # --- forms --------------------------------------------------------------------------------------------------

    def _form(self, tree: Tree[Token], word: Token, row: Form, trees: list[Tree[Token]]) -> ir.Expr | None:
        values = [self._expression(argument) for argument in trees]
        if row.data and not self.has(row.data):
            code = "E404" if row.data == "prompts" else "E401"
            self._wrong_data(code, f"`{word}` needs {DATA_OF[row.data][0]}", self._span(word))
            return None
        if any(value is None for value in values):
            return None
        whole = [value for value in values if value is not None]
        value = whole[0]
        if row.name == "own" and self._axis != "others":
            self._misplaced(word, trees[0])
            return None
        if not row.coarsest <= value.scope <= row.takes:
            self._wrong_scope(word, row, trees[0], value)
            return None
        if row.name == "to_go" and whole[1].scope is not Scope.CONST:
            message = f"the discount of `to_go` must be one number; `{self._text(trees[1])}` {whole[1].scope.phrase}"
            help = "use a number or a parameter"
            self.findings.add("E302", message, self._span(trees[1]), label=whole[1].scope.word, help=help)
            return None
        if row.name in ("greedy", "mismatched") and not self._made_of(row.name, value, word):
            return None
        gives = value.scope if row.name == "sg" else row.gives
        live = row.flows and value.live
        return ir.Call(scope=gives, live=live, span=self._span(tree), function=row.name, arguments=tuple(whole))

    def _misplaced(self, word: Token, tree: Tree[Token]) -> None:
        """`own` where no sequence is held against the others of its group."""
        text = self._text(tree)
        where = f"within `over {self._axis}`" if self._axis in REDUCED else "here"
        message = f"`{word}({text})` means nothing {where}: it belongs within `… over others`"
        help = f"write the whole comparison there, such as `mean({word}({text}) > {text} over others)`"
        self.findings.add("E308", message, self._span(word), help=help)

    def _wrong_scope(self, word: Token, row: Form, tree: Tree[Token], value: ir.Expr) -> None:
        text = self._text(tree)
        if value.scope is Scope.TOKEN:
            help = f"say how its tokens count: `{word}(sum({text} over tokens))`"
        elif value.scope is Scope.COMPARISON:
            help = "reduce the comparison first: `sum(… over others)`"
        elif row.takes is Scope.TOKEN:
            help = f"`{word}` runs along the tokens: give it a token value, such as `terminal({text})`"
        else:
            help = f"write `{text}`: it is the same for every sequence of the group"
        expected = row.takes.word
        message = f"`{word}` takes one value per {expected}; `{text}` {value.scope.phrase}"
        self.findings.add("E302", message, self._span(tree), label=value.scope.word, help=help)

    def _made_of(self, form: str, value: ir.Expr, word: Token) -> bool:
        """Whether the argument of `greedy` is made of scores, that of `mismatched` of log-probs."""
        seen = self.observed(value)
        scores = {name for name, _ in self.declared.of_kind("score")}
        if form == "greedy":
            strange = [name for name in seen if name not in scores]
            good, what, code = bool(seen) and not strange, "scores only", "E306"
        else:
            allowed = {*LOG_PROBS, "position", "length"}
            strange = [name for name in seen if name not in allowed]
            good, what, code = not strange and bool(set(seen) & set(LOG_PROBS)), "log-probs only", "E307"
        if good:
            return True
        why = f"it uses {listed(strange, last='and')}" if strange else "it uses none"
        self.findings.add(
            code,
            f"`{word}` takes an expression made of {what}; {why}",
            value.span,
            help=f"leave what is not {what.removesuffix(' only')} outside of `{word}(…)`",
        )
        return False

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


def constant(expr: ir.Expr) -> float | None:
    """The value of a number, with or without a sign."""
    if isinstance(expr, ir.Number):
        return expr.value
    if isinstance(expr, ir.Call) and expr.function == "negate":
        inner = constant(expr.arguments[0])
        return None if inner is None else -inner
    return None
