"""What is wrong with an expression, in words. Who finds it (expressions.py) says where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grolang.language.findings import listed, suggested
from grolang.language.functions import CALLABLE, REDUCTIONS, Form
from grolang.language.habits import meant
from grolang.language.scopes import REDUCED, Scope


@dataclass(frozen=True)
class Misuse:
    """A finding without its place."""

    code: str
    message: str
    help: str
    label: str = ""


@dataclass(frozen=True)
class Holds:
    """The kinds of data that hold something, and the code where a method's data does not."""

    kinds: tuple[str, ...]
    code: str

    @property
    def text(self) -> str:
        return listed(f"data {kind}" for kind in self.kinds)


#: what a function or an observable needs, and which data has it
DATA_OF = {
    "pairs": Holds(("preference",), "E401"),
    "labels": Holds(("preference", "unpaired"), "E401"),
    "groups": Holds(("preference", "prompts"), "E402"),
    "prompts": Holds(("prompts",), "E404"),
    "demonstrations": Holds(("demonstrations",), "E401"),
}


# --- names -----------------------------------------------------------------------------------------------------


def too_large(number: str) -> Misuse:
    return Misuse("E505", f"`{number}` is too large a number", f"write `{'-' if number.startswith('-') else ''}inf`")


def function_component(name: str) -> Misuse:
    help = "use its argument's definition, or name the value in a definition of its own"
    return Misuse("E205", f"`{name}` is a function component, not a value", help)


def no_reward(name: str) -> Misuse:
    return Misuse("E201", f"`{name}` is used, but the method gives no reward", "add `reward = …`")


def function_as_value(name: str) -> Misuse:
    return Misuse("E205", f"`{name}` is a function, not a value", f"call it: `{name}(…)`")


def keyword_as_value(name: str) -> Misuse:
    help = meant(name) or f"a keyword cannot be a name: call yours `my_{name}`"
    return Misuse("E205", f"`{name}` is a keyword, not a value", help)


def unknown(name: str, known: Iterable[str], around: set[str], *, drawn: bool) -> Misuse:
    """`around` are the definitions that the name stands within; `drawn`: a score may supply it."""
    score = f", or `score {name}`" if drawn else ""
    otherwise = f"define it: `{name} = …`, or `param {name} = …`{score}"
    help = meant(name, around) or suggested(name, known, otherwise)
    return Misuse("E201", f"there is no `{name}`", help, "not known")


def wrong_data(needs: Holds, word: str, data: Sequence[str], help: str = "") -> Misuse:
    message = f"`{word}` needs {needs.text}; this method learns from `data {' + '.join(data)}`"
    mixed = {*data, *needs.kinds} == {"prompts", "demonstrations"}  # the one mixture
    write = "`data prompts + demonstrations`" if mixed else needs.text
    return Misuse(needs.code, message, help or f"write {write}, or do without `{word}`")


# --- calls -----------------------------------------------------------------------------------------------------


def component_called(word: str) -> Misuse:
    help = "only the estimator calls it; name the value in a definition of its own"
    return Misuse("E205", f"`{word}` is a component and cannot be called", help)


def value_called(word: str) -> Misuse:
    return Misuse("E205", f"`{word}` is a value, not a function", f"write `{word} * (…)` to multiply")


def any_outside_laws() -> Misuse:
    help = "`any(scope)` is an arbitrary value, in laws alone: `law N: invariant when X = any(scope)`"
    return Misuse("E205", "`any` stands in laws only", help)


def any_of_no_scope(scopes: Iterable[str]) -> Misuse:
    return Misuse("E206", "`any` takes the name of a scope", f"write `any(SCOPE)`, SCOPE one of {listed(scopes)}")


def no_function(word: str) -> Misuse:
    help = meant(word) or suggested(word, CALLABLE, "the reference lists every function")
    return Misuse("E205", f"there is no function `{word}`", help, "not known")


def miscounted(word: str, given: int, expected: tuple[str, ...], over: str, *, nests: bool) -> Misuse:
    form = f"{word}({', '.join(expected)}{over})"
    if given > len(expected) and nests:
        form = f"{word}({word}(a, b), c)"
    plural = "" if len(expected) == 1 else "s"
    return Misuse("E206", f"`{word}` takes {len(expected)} argument{plural}, not {given}", f"write `{form}`")


# --- axes ------------------------------------------------------------------------------------------------------


def without_axis(word: str, text: str, scope: Scope) -> Misuse:
    axis = "tokens" if scope is Scope.TOKEN else "batch"
    help = f"write `{word}({text} over {axis})`, or another axis"
    return Misuse("E304", f"`{word}` does not say over which axis", help)


def no_reduction(word: str) -> Misuse:
    help = meant(word) or suggested(word, REDUCTIONS, f"the reductions are {listed(REDUCTIONS)}")
    return Misuse("E205", f"there is no reduction `{word}`", help, "not known")


def reduces_nothing(word: str, axis: str) -> Misuse:
    return Misuse("E304", f"`{word}` does not reduce over an axis", f"write it without `over {axis}`")


def unknown_axis(axis: str) -> Misuse:
    help = suggested(axis, REDUCED, f"the axes are {listed(REDUCED)}")
    return Misuse("E207", f"there is no axis `{axis}` to reduce over", help)


def no_others() -> Misuse:
    help = "write `group 2` or more, or reduce `over batch`"
    return Misuse("E406", "a group of one has no others", help, "nothing is left")


def nothing_over(axis: str, word: str, text: str, scope: Scope) -> Misuse:
    """A value that an axis does not have."""
    verbs = {"sum": "sum", "max": "take the largest of", "min": "take the smallest of"}
    action = (verbs | {"quantile": "take a quantile of"}).get(word, f"take the {word} of")
    what = {"tokens": "tokens", "group": "the group", "others": "the others", "batch": "the batch"}[axis]
    example = "a token value such as `logp`" if axis == "tokens" else "a sequence value such as a score"
    help = f"write `{text}`, or {'sum' if word == 'sum' else 'reduce'} {example}"
    return Misuse("E301", f"nothing to {action} over {what}: `{text}` {scope.phrase}", help, scope.word)


def not_one_number(what: str, text: str, scope: Scope, help: str) -> Misuse:
    return Misuse("E302", f"{what} must be one number; `{text}` {scope.phrase}", help, scope.word)


def no_share(q: float) -> Misuse:
    return Misuse("E505", f"the `q` of a quantile lies between 0 and 1, not {q:g}", "0.5 is the median")


# --- forms -----------------------------------------------------------------------------------------------------


def tokens_compared(text: str) -> Misuse:
    """A token value in a comparison of sequences."""
    message = f"`own` compares sequences; `{text}` has one value per token"
    return Misuse("E308", message, f"say how its tokens count: `sum({text} over tokens)`", "token")


def misplaced(word: str, text: str, axis: str) -> Misuse:
    """`own` where no sequence is held against the others of its group."""
    where = f"within `over {axis}`" if axis in REDUCED else "here"
    message = f"`{word}({text})` means nothing {where}: it belongs within `… over others`"
    help = f"write the whole comparison there, such as `mean({word}({text}) > {text} over others)`"
    return Misuse("E308", message, help)


def wrong_scope(word: str, row: Form, text: str, scope: Scope) -> Misuse:
    if scope is Scope.TOKEN:
        help = f"say how its tokens count: `{word}(sum({text} over tokens))`"
    elif scope is Scope.COMPARISON:
        help = "reduce the comparison first: `sum(… over others)`"
    elif row.takes is Scope.TOKEN:
        help = f"`{word}` runs along the tokens: give it a token value, such as `terminal({text})`"
    else:
        help = f"write `{text}`: it is the same for every sequence of the group"
    message = f"`{word}` takes one value per {row.takes.word}; `{text}` {scope.phrase}"
    return Misuse("E302", message, help, scope.word)


def made_of_other(code: str, word: str, what: str, strange: list[str]) -> Misuse:
    """What must be made of scores (or of log-probs) and is not."""
    why = f"it uses {listed(strange, last='and')}" if strange else "it uses none"
    help = f"leave what is not {what} outside of `{word}(…)`"
    return Misuse(code, f"`{word}` takes an expression made of {what} only; {why}", help)
