"""How each word of the language is written in formulas: a row for every function, reduction, form and observable.

A row holds two spellings, one in LaTeX and one in plain Unicode for terminals. `{0}`, `{1}` stand for arguments,
`@i`, `@t`, `@g` for the indices of the sequence, the token and the group. The printer (printer.py) reads these rows;
a word without a row is written as `name(…)`, and a test says that there is none.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from grolang.explain.formula import NOTHING, Formula

#: how tightly a piece of a formula holds together, from the loosest
OPEN, CHOICE, OR, AND, NOT, COMPARED, SUM, SIGNED, BIG, PRODUCT, POWER, ATOM = range(12)


@dataclass(frozen=True)
class Spelling:
    """A template, how tightly its result holds together, and how tightly each argument must where it stands."""

    template: str
    level: int = ATOM
    places: tuple[int, ...] = (OPEN, OPEN, OPEN)


@dataclass(frozen=True)
class Notation:
    """A function of numbers in formulas."""

    latex: Spelling
    text: Spelling

    @property
    def template(self) -> Formula:
        """Both templates."""
        return Formula(self.latex.template, self.text.template)


def _both(latex: str, text: str, level: int, *places: int) -> Notation:
    return Notation(Spelling(latex, level, places), Spelling(text, level, places))


def _called(latex: str, text: str, arguments: int = 1) -> Notation:
    inner = ", ".join(f"{{{place}}}" for place in range(arguments))
    return Notation(Spelling(rf"{latex}\left({inner}\right)"), Spelling(f"{text}({inner})"))


def called(name: str, arguments: int = 1) -> Notation:
    """A function that is written by its name."""
    return _called(rf"\operatorname{{{{{name}}}}}", name, arguments)


FUNCTIONS: dict[str, Notation] = {
    "add": _both("{0} + {1}", "{0} + {1}", SUM, SUM, BIG),
    "subtract": _both("{0} - {1}", "{0} − {1}", SUM, SUM, BIG),
    "multiply": _both(r"{0}\,{1}", "{0}·{1}", PRODUCT, PRODUCT, BIG),
    "divide": Notation(Spelling(r"\frac{{{0}}}{{{1}}}", PRODUCT), Spelling("{0} / {1}", BIG, (PRODUCT, POWER))),
    "power": Notation(Spelling(r"{{{0}}}^{{{1}}}", POWER, (ATOM, OPEN)), Spelling("{0}^{1}", POWER, (ATOM, ATOM))),
    "negate": _both("-{0}", "−{0}", SIGNED, BIG),
    "less": _both("{0} < {1}", "{0} < {1}", COMPARED, SUM, SUM),
    "less_equal": _both(r"{0} \le {1}", "{0} ≤ {1}", COMPARED, SUM, SUM),
    "greater": _both("{0} > {1}", "{0} > {1}", COMPARED, SUM, SUM),
    "greater_equal": _both(r"{0} \ge {1}", "{0} ≥ {1}", COMPARED, SUM, SUM),
    "equal": _both("{0} = {1}", "{0} = {1}", COMPARED, SUM, SUM),
    "not_equal": _both(r"{0} \ne {1}", "{0} ≠ {1}", COMPARED, SUM, SUM),
    "not": _both(r"\lnot {0}", "not {0}", NOT, ATOM),
    "and": _both(r"{0} \land {1}", "{0} and {1}", AND, AND, NOT),
    "or": _both(r"{0} \lor {1}", "{0} or {1}", OR, OR, NOT),
    # condition, value where it holds, value elsewhere; in LaTeX the printer lays out every case in turn
    "choose": Notation(
        Spelling(r"\begin{{cases}} {1} & \text{{if }} {0} \\ {2} & \text{{otherwise}} \end{{cases}}", CHOICE),
        Spelling("{1} if {0} else {2}", CHOICE, (OR, OR, CHOICE)),
    ),
    "exp": _called(r"\exp", "exp"),
    "log": _called(r"\log", "log"),
    "log1p": Notation(Spelling(r"\log\left(1 + {0}\right)", ATOM, (BIG,)), Spelling("log(1 + {0})", ATOM, (BIG,))),
    "expm1": Notation(Spelling("e^{{{0}}} - 1", SUM), Spelling("exp({0}) − 1", SUM)),
    "sqrt": Notation(Spelling(r"\sqrt{{{0}}}"), Spelling("√({0})")),
    "abs": Notation(Spelling(r"\left\lvert {0}\right\rvert"), Spelling("abs({0})")),
    "sign": called("sign"),
    "sigmoid": _called(r"\sigma", "σ"),
    "logsigmoid": _called(r"\log\sigma", "log σ"),
    "softplus": called("softplus"),
    "tanh": _called(r"\tanh", "tanh"),
    "relu": called("relu"),
    "min": _called(r"\min", "min", 2),
    "max": _called(r"\max", "max", 2),
    "clip": called("clip", 3),
}


@dataclass(frozen=True)
class Reduced:
    """A reduction. `averaged`: a sum divided by the number of terms; `big`: an operator in front of its terms."""

    operator: Formula
    averaged: bool = False
    big: bool = False


REDUCTIONS: dict[str, Reduced] = {
    "sum": Reduced(Formula(r"\sum", "Σ"), big=True),
    "mean": Reduced(Formula(r"\sum", "Σ"), averaged=True, big=True),
    "std": Reduced(Formula(r"\operatorname{std}", "std")),
    "sample_std": Reduced(Formula(r"\operatorname{std}^{(n-1)}", "std⁽ⁿ⁻¹⁾")),
    "max": Reduced(Formula(r"\max", "max")),
    "min": Reduced(Formula(r"\min", "min")),
    "quantile": Reduced(Formula(r"\operatorname{quantile}", "quantile")),
}


@dataclass(frozen=True)
class Moved:
    """A form that reads its argument at another sequence: `@` is the index that it takes the place of.

    `@own` is the sequence that a reduction over the others leaves out.
    """

    index: Formula
    legend: str


FORMS: dict[str, Moved | Notation] = {
    "opposite": Moved(Formula("@'", "@′"), "the other response of the pair"),
    "chosen": Moved(Formula("w", "w"), "the pair's chosen response"),
    "rejected": Moved(Formula("l", "l"), "the pair's rejected response"),
    "greedy": Moved(Formula(r"\hat{@}", "@\u0302"), "the greedy completion of the same prompt"),
    "mismatched": Moved(Formula(r"\tilde{@}", "@\u0303"), "the completion of another prompt, under this one"),
    "own": Moved(Formula("@own", "@own"), ""),
    "terminal": Notation(
        Spelling(r"\mathbf{{1}}\left[@t = \left\lvert y_{{@i}}\right\rvert - 1\right]\,{0}", PRODUCT, (BIG,)),
        Spelling("1[@t = |y_@i| − 1]·{0}", PRODUCT, (BIG,)),
    ),
    # the printer reads {0} at a later token of the same completion, `@k`
    "to_go": Notation(
        Spelling(r"\sum_{{@k \ge @t}} {1}^{{@k - @t}}\,{0}", BIG, (BIG, ATOM)),
        Spelling("Σ_(@k≥@t) {1}^(@k−@t)·{0}", BIG, (BIG, ATOM)),
    ),
    "sg": Notation(Spelling(r"\operatorname{{sg}}\left[{0}\right]"), Spelling("sg[{0}]")),
}

#: an observable, and the legend that it needs
OBSERVABLES: dict[str, tuple[Formula, str]] = {
    "logp": (Formula(r"\log \pi_\theta(y_{@i,@t})", "log πθ(y_@i@t)"), ""),
    "logp_old": (Formula(r"\log \pi_{\mathrm{old}}(y_{@i,@t})", "log π_old(y_@i@t)"), ""),
    "logp_sampler": (Formula(r"\log \pi_{\mathrm{sampler}}(y_{@i,@t})", "log π_sampler(y_@i@t)"), ""),
    "logp_ref": (Formula(r"\log \pi_{\mathrm{ref}}(y_{@i,@t})", "log π_ref(y_@i@t)"), ""),
    "entropy": (Formula(r"\mathcal{H}_{@i,@t}", "H_@i@t"), "the policy's entropy at that token"),
    "position": (Formula("@t", "@t"), "tokens are counted from 0"),
    "length": (Formula(r"\left\lvert y_{@i}\right\rvert", "|y_@i|"), "tokens of the completion"),
    "group_size": (Formula(r"\left\lvert @g\right\rvert", "|@g|"), "sequences of the group"),
    "label": (Formula(r"\ell_{@i}", "ℓ_@i"), "+1 for a good completion, −1 for a bad one"),
    "demonstration": (Formula(r"\mathrm{demo}_{@i}", "demo_@i"), "1 for a demonstration, else 0"),
}

#: how many terms a sum has, as it is written in denominators
COUNTS = {"S": "sequences of the batch", "N": "tokens of the batch", "G": "groups of the batch"}

COMPONENTS: dict[str, Formula] = {
    "reward": Formula("R", "R"),
    "baseline": Formula("B", "B"),
    "advantage": Formula("A", "A"),
    "upsilon": Formula(r"\upsilon", "υ"),
    "measure": Formula("m", "m"),
    "anchor": Formula(r"\varepsilon^{*}", "ε*"),
    "alpha": Formula(r"\alpha", "α"),
    "omega": Formula(r"\omega", "ω"),
    "credit": Formula(r"\kappa", "κ"),
    "penalty": Formula("P", "P"),
    "z": Formula("z", "z"),
}

_LETTERS = {chr(code): unicodedata.name(chr(code)).split()[-1].lower() for code in range(0x3B1, 0x3CA) if code != 0x3C2}
#: Greek letters by their LaTeX names
GREEK = {{"lamda": "lambda"}.get(name, name): letter for letter, name in _LETTERS.items()}


def named(name: str, index: Formula = NOTHING) -> Formula:
    """A name of the author's with its index: `epsilon_high` is ε with a subscript, `ratio` an upright word."""
    base, _, rest = name.partition("_")
    base = _LETTERS.get(base, base)
    if base not in GREEK and len(base) > 1:
        base, rest = name, ""
    return Formula(_in_latex(base, _below(rest, index.latex), index.latex), _in_text(base, _below(rest, index.text)))


def _below(rest: str, index: str) -> list[str]:
    """What stands below a name's letter; once where the two are the same."""
    return list(dict.fromkeys(part for part in (rest, index) if part))


def _in_text(base: str, below: list[str]) -> str:
    return GREEK.get(base, base) + (f"_{''.join(below)}" if below else "")


def _in_latex(base: str, below: list[str], index: str) -> str:
    if base in GREEK:
        shown = "o" if base == "omicron" else rf"\{base}"
    else:
        shown = base if len(base) == 1 else rf"\mathrm{{{_escaped(base)}}}"
    parts = [part if len(part) == 1 or part == index else rf"\mathrm{{{_escaped(part)}}}" for part in below]
    return shown + (f"_{{{','.join(parts)}}}" if parts else "")


def _escaped(word: str) -> str:
    """A word within \\mathrm: letters that LaTeX would read otherwise."""
    return "".join(rf"\{_LETTERS[char]}" + "{}" if char in _LETTERS else char for char in word).replace("_", r"\_")
