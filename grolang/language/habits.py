"""What people write from Python, LaTeX and the trainers' code, and what it is in the language.

Tables that only messages read: `SLIPS`, patterns of text at the place where a statement does not parse, and names that
mean something elsewhere. An entry names one edit.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

#: characters that a pattern sees on either side of the place
WINDOW = 200


@dataclass(frozen=True)
class Slip:
    """A pattern of the text, `¦` at the place where the parser stops, and the edit, with the pattern's groups.

    `where` is a word of the grammar that could have stood there instead; after `!`, one that could not.
    """

    pattern: str
    help: str
    where: str = ""

    def edit(self, marked: str, accepted: frozenset[str]) -> str:
        if self.where and (self.where.lstrip("!") in accepted) == self.where.startswith("!"):
            return ""
        found = re.search(self.pattern, marked)
        return "" if found is None else found.expand(self.help)


_LIBRARY = r"\b(?:torch|np|numpy|math|nn|jnp|jax|tf|F)(?:\.nn|\.functional)*"
_KEYWORD = r"(?:method|extends|data|param|score|report|law)"

SLIPS = (
    # --- Python's statements
    Slip(r"\Adef ¦", "write `NAME = EXPRESSION`; the functions of one argument are `omega(z)` and `upsilon(a)`"),
    Slip(r"\A(?:import|from) ¦", "delete the line: every function is there without it"),
    Slip(r"\Areturn ¦", "delete the line: a definition is used by its name"),
    Slip(r"\A(?:if|while) ¦", "write `NAME = A if CONDITION else B`"),
    Slip(r"\Afor ¦", "delete the line: an expression holds for every token and every sequence"),
    Slip(r"\Aclass ¦", "begin the file with `method NAME`"),
    Slip(r"\Aprint\(.*¦", "write `report NAME = EXPRESSION`: it is logged at every step"),
    Slip(r"\A(?:extend|inherits?) ¦(\w+)", r"write `extends \1`"),
    Slip(r"\A(?:params?|parameters?|hyper\w*|hparam|const|let|var|float) ¦(\w+)", r"write `param \1`", "LPAR"),
    Slip(r"¦:=", "write `=` for `:=`"),
    Slip(r"¦([-+*/])=", r"write the whole value, once: `NAME = A \1 B`", "LPAR"),
    Slip(r"\breturn ¦", "delete `return`"),
    Slip(r"\blambda ¦(\w+) *:", r"delete `lambda \1:`"),
    Slip(r"¦elif\b|\belif ¦|\bif ¦", "write `A if CONDITION else B`: the value comes first", "STAR"),
    Slip(r"¦for\b", "write `sum(x over tokens)`: nothing is counted through", "OVER"),
    Slip(r"¦(by|in|across|along|per|on)\b", r"write `over` for `\1`", "OVER"),
    Slip(r"\b(?:sum|Σ)\w* ¦[\w(]", "write `sum(x over tokens)`, or another axis", "STAR"),
    Slip(r"\bover (the|each|all|every) ¦", r"delete `\1`"),
    Slip(r"\w\([^()=]*,\s*(?:dim|axis) *¦=", "name the axis: `mean(x over tokens)`"),
    Slip(r"(?:\w\(|,)\s*(\w+) *¦=(?!=)", r"delete `\1=`: arguments are told apart by their order", "COMPARE"),
    # --- parts and calls of other libraries
    Slip(rf"({_LIBRARY})¦\.\w", r"delete `\1.`: a function is called by its name alone"),
    Slip(r"(\w+)¦\.(?:detach|item|stop_gradient)\b", r"write `sg(\1)`"),
    Slip(r"(\w+)¦\.(sum|mean|std|max|min)\(", r"write `\2(\1 over tokens)`, or another axis"),
    Slip(r"\)¦\.(sum|mean|std|max|min)\(", r"write `\1(… over tokens)` around it, or another axis"),
    Slip(r"(\w+)¦\.(\w+)\(\)", r"write `\2(\1)`"),
    Slip(r"\A(?:extends|law .*(?:equals|to)) (\w+)¦\.gro\b", "delete `.gro`"),
    Slip(r"\Amethod \w+ *¦\((\w+)\)", r"write `extends \1` on a line of its own"),
    Slip(r"\Ascore (\w+) *= *\S.*¦", r"write `score \1` alone; a run takes it by `--score \1=FILE.py:FUNCTION`"),
    Slip(r'\A((?:data|extends|score \w+ *=|law .*(?:equals|to)) *)¦"(\w+)"', r"write `\2`, without quotes"),
    Slip(r"¦float\(", "write `inf`", "INF"),
    # --- declarations
    Slip(r"\A(?:method|data|extends|group) *¦([:=])", r"delete `\1`"),
    Slip(r"\Agroup ¦[^\W\d]", "write a number, such as `group 8`"),
    Slip(r"\Amethod \w+ ¦(\w[^\n]*?) *(?:\n|\Z)", r'write the title between quotes: `"\1"`'),
    Slip(rf"\A(?:{_KEYWORD} )?(\w+)¦-(\w+)", r"write `\1_\2`: a name has no `-`", "!STAR"),
    Slip(r"\Aparam \w+ *¦(: *\w+) *=", r"delete `\1`"),
    Slip(r"\A(?:\w+ )?\w+ *¦:", "write `=` for `:`", "EQUAL"),
    Slip(r"\Aparam (\w+) *¦(?: *\Z|in\b|[\"'])", r'write `param \1 = NUMBER in (LOW, HIGH) "help"`', "EQUAL"),
    Slip(r"\Areport ¦?\w+ *¦\(", "write `report NAME = EXPRESSION`"),
    Slip(r"\Aparam .*¦[<>]", "write bounds as `in (0, inf)`"),
    Slip(r"\Aparam .*\d *¦%", "write the share: `0.2` for `20%`"),
    Slip(r'\A\w+ *= *¦"', "delete the line: a text is no value", "NUMBER"),
    Slip(r"¦\Z", "close the bounds with `)` or `]`", "CLOSE"),
    Slip(r"\Aparam .*\w *¦,.*=", "start a new line: one `param` for each"),
    Slip(r"\Alaw \w+ *: *¦(==?)", r"write `equals` for `\1`"),
    Slip(r"\Aaggregate *= *¦\"token-mean\"", "write `mean over batch`"),
    Slip(r"\Aaggregate *= *¦\"seq-mean-token-(sum|mean)\"", r"write `\1 over tokens, mean over sequences`"),
    Slip(r"\Aaggregate\b.*¦\*", "write a divisor: `/ NUMBER`; a factor belongs into `credit`"),
    Slip(r"\Aaggregate\b.*/ *¦", "divide by one number or one parameter: `sum over tokens / 200`"),
    # --- numbers
    Slip(r"\d¦(?:_\d+)+", "write the number without `_`"),
    Slip(r"\d\.\d*¦(\.\d*)", r"a number has one point: delete `\1`"),
    # --- signs
    Slip(r"\*¦\*", "write a power with `^`: `x ^ 2`"),
    Slip(r"<¦>", "write `!=`"),
    Slip(r"\A¦(?://|/\*|%|--|\"\"|')|/¦/ *[^\W\d]", "start a comment with `#`"),
    Slip(r"/¦/", "write `/`: nothing is rounded"),
    Slip(r"¦=", "compare with `==`", "COMPARE"),
    Slip(r"\n[ \t]*¦\S", "a line that starts with blanks continues the statement above: start a new one in column 1"),
    Slip(r"¦\|", "write `abs(x)`", "!STAR"),
    Slip(r"¦([;:,{}]) *(?:\n|\Z)", r"delete `\1`", "$END"),
    Slip(r"\Aaggregate\b.*, *¦\Z", "delete the last `,`"),
    Slip(r"¦&", "write `and`"),
    Slip(r"¦\|", "write `or`"),
    Slip(r"¦!", "write `not`, or `!=`"),
    Slip(r"¦\?", "write `A if CONDITION else B`"),
    Slip(r"¦;", "start each statement on a line of its own"),
    Slip(r"¦('[^'\n]*'|[“”‘’])", 'write the text between straight quotes: `"`'),
    Slip(r'¦"(?!\w[^\n]*")', 'close the text with `"` on the same line'),
    Slip(r"¦@", "write `*`", "STAR"),
    Slip(r"\b1 *¦[\[{](.*)[\]}]", r"write `(\1)`: a comparison is 1 or 0", "STAR"),
    Slip(r"\bE *¦\[", "write `mean(x over batch)`, or another axis", "STAR"),
    Slip(r"¦\[", "values are not indexed; reduce over an axis, or use `chosen(x)`, `terminal(x)`"),
    Slip(r"¦\.", "a value has no parts; an observable is written by its name alone"),
    Slip(r"\A¦\{", "begin the file with `method NAME`"),
    Slip(r"\A¦}", "delete `}`"),
    Slip(r"¦\{", "bounds are written `(0, 1)` or `[0, 1]`", "OPEN"),
    Slip(r"¦\{", "write `(` for `{`"),
    # --- LaTeX and the signs of mathematics
    Slip(r"¦\\(?:cdot|times)\b", "write `*`"),
    Slip(r"¦\\d?frac\b", "write `(A) / (B)`"),
    Slip(r"¦\\(?:log *\\)?pi", "write `logp`, or `logp_ref`"),
    Slip(r"¦\\sigma\b", "write `sigmoid(x)`"),
    Slip(r"¦\\sum\b|¦∑", "write `sum(x over tokens)`, or another axis"),
    Slip(r"¦\\(?:mathbb|operatorname|text|mathrm)\b", "write the name alone"),
    Slip(r"¦\\(?:left|right|big|Big)", "write the bracket alone"),
    Slip(r"¦\\(\w+)", r"write `\1`, without the backslash"),
    Slip(r"¦[·×⋅∗]", "write `*`"),
    Slip(r"¦[−–—]", "write `-`"),
    Slip(r"¦÷", "write `/`"),
    Slip(r"¦≤", "write `<=`"),
    Slip(r"¦≥", "write `>=`"),
    Slip(r"¦≠", "write `!=`"),
    Slip(r"¦∞", "write `inf`"),
    Slip(r"¦√", "write `sqrt(x)`"),
    Slip(r"¦²", "write `^ 2`"),
    Slip(r"¦[^\x00-\x7f]", "names are made of Latin and Greek letters, digits and `_`"),
    # --- by what could stand there
    Slip(r"\Aparam\b.*¦", "a default is one number, such as `0.1`", "IN"),
    Slip(r"\Aaggregate\b.*¦", "for example `aggregate = sum over tokens, mean over sequences`"),
    Slip(r"¦\Z", "every `if` has an `else`: `A if CONDITION else B`", "ELSE"),
    Slip(r"¦\Z", "close the parenthesis with `)`", "RPAR"),
    Slip(r"\A¦", "start with a keyword or the name of a definition; a continued line starts with blanks"),
)


def slip(text: str, place: int, accepted: frozenset[str]) -> str:
    """The edit of the first slip that a statement's text shows at this place, else nothing."""
    left, right = text[max(0, place - WINDOW) : place], text[place : place + WINDOW]
    marked = ("…" if place > WINDOW else "") + left + "¦" + right.rstrip()
    return next((edit for row in SLIPS if (edit := row.edit(marked, accepted))), "")


_SPELLED = {
    "logp": "logps logprob logprobs log_prob log_probs per_token_logps policy_logps logpi log_pi log_pi_theta",
    "logp_ref": "ref_logp ref_logps ref_logprobs ref_log_prob ref_log_probs reference_logps log_pi_ref",
    "logp_old": "old_logp old_logps old_logprobs old_log_prob old_log_probs old_per_token_logps log_pi_old",
    "logp_sampler": "rollout_log_probs rollout_log_prob sampling_per_token_logps sampling_logps vllm_logps",
    "chosen(sum(logp over tokens))": "chosen_logp chosen_logps policy_chosen_logps",
    "rejected(sum(logp over tokens))": "rejected_logp rejected_logps policy_rejected_logps",
    "chosen(sum(logp_ref over tokens))": "ref_chosen_logp ref_chosen_logps reference_chosen_logps",
    "rejected(sum(logp_ref over tokens))": "ref_rejected_logp ref_rejected_logps reference_rejected_logps",
    "advantage": "advantages adv A",
    "reward": "rewards R",
    "length": "len seq_len completion_length response_length num_tokens",
    "group_size": "num_generations n_samples rollout_n num_return_sequences group",
    "sg(x)": "detach stop_gradient stop_grad stopgrad stopgradient no_grad",
    "log(x)": "ln",
    "exp(x)": "e",
    "x ^ y": "pow power",
    "x ^ 2": "square",
    "x / y": "div divide",
    "A if CONDITION else B": "where cond ifelse",
    "clip(x, lo, hi)": "clamp",
    "logsigmoid(x)": "log_sigmoid",
    "mean(x over AXIS)": "avg average E expectation masked_mean",
    "sum(x over AXIS)": "Σ total masked_sum",
    "std(x over AXIS) ^ 2": "var variance",
    "quantile(x, 0.5 over AXIS)": "median",
    "to_go(x, 1)": "cumsum returns",
    "0": "False",
    "1": "True",
}

_MEANT = {word: here for here, words in _SPELLED.items() for word in words.split()}
_SAID = {
    "None": "leave the line out, or write `0`",
    "mask": "leave it out: padding takes part in nothing",
    "kl": "write it out: `logp - logp_ref` of a token, `sum(logp - logp_ref over tokens)` of a sequence",
    "softmax": "write it out: `exp(x) / sum(exp(x) over AXIS)`",
}


def meant(name: str, without: Collection[str] = ()) -> str:
    """The edit for a name that means something elsewhere, unless that is one of these; else nothing."""
    here = _MEANT.get(name, "")
    return f"write `{here}`" if here and here not in without else _SAID.get(name, "")


#: names that people declare where the method has another statement
DECLARED = {
    "loss": 'claim it: `law gradient: loss …`; `grolang lift "…"` gives the parts of a loss',
    "num_generations": "write `group 8`",
    "group_size": "write `group 8`",
}

#: kinds of data by other names
KINDS_MEANT = {
    word: f"write `data {kind}`"
    for kind, words in {
        "preference": "pair pairs paired pairwise comparison comparisons ranked dpo",
        "unpaired": "binary thumbs feedback kto",
        "prompts": "prompt prompt_only online rl rollouts",
        "demonstrations": "demonstration demos sft supervised instructions completions",
    }.items()
    for word in words.split()
}
