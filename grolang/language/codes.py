"""The catalogue of codes: for each what it says, why it matters, and a bad and a good example.

`grolang explain-error CODE` prints a row, SARIF output takes its titles from here, and a test checks that each bad
example yields its code and no other, that each good one is clean, and that no code is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Code:
    """One row. `kind` is what the examples are: `.gro` files, Python, or words for a shell."""

    title: str
    what: str
    why: str
    bad: str
    good: str
    kind: Literal["gro", "python", "shell"] = "gro"
    encoding: str = "utf-8"


def _mine(*lines: str) -> str:
    return "\n".join(['method mine "Mine"', *lines]) + "\n"


def _preference(*lines: str) -> str:
    return _mine("data preference", *lines)


def _prompts(*lines: str) -> str:
    return _mine("data prompts", "score correct = exact_match", *lines)


def _coefficients(method: str, **tensors: str) -> str:
    """Python that asks a method for its coefficients on a batch of two sequences."""
    tensors = {"mask": "torch.ones(2, 3, dtype=torch.bool)"} | tensors
    lines = ["import grolang, torch", f'method = grolang.load("{method}")']
    lines += [f"{name} = {tensor}" for name, tensor in tensors.items()]
    fields = ", ".join(f"{name}={name}" for name in tensors)
    return "\n".join([*lines, f"method.coefficients(grolang.Batch({fields}))"])


_LINE = "reward = label"
_PLAIN = _preference(_LINE)
_TOKENS = ("data demonstrations", "reward = 1", "aggregate = mean over batch")
_LONG = "0." + "1" * 45
_REWARDS = '{"correct": torch.tensor([1.0, 0.0])}'
_PAIR = {"label": "torch.tensor([1, -1])", "logp": "-torch.ones(2, 3)"}

CODES: dict[str, Code] = {
    # --- E1: text ---------------------------------------------------------------------------------------------------
    "E101": Code(
        "Syntax error",
        "A statement does not follow the grammar; the message says what could have stood there.",
        "Each statement is read by itself, so the others are still checked.",
        _preference("reward = label *"),
        _preference("reward = label * 2"),
    ),
    "E102": Code(
        "Not UTF-8",
        "The file holds bytes that are no UTF-8 text; here `é` is saved as Latin-1.",
        "With a guessed encoding a Greek name could silently become another name.",
        _preference(_LINE, "# é"),
        _preference(_LINE, "# é"),
        encoding="latin-1",
    ),
    "E103": Code(
        "First statement indented",
        "The first statement starts with blanks.",
        "A line that starts with blanks continues the statement above it, and here there is none.",
        '  method mine "Mine"\ndata preference\nreward = label\n',
        _PLAIN,
    ),
    "E104": Code(
        "Past a bound",
        "A file, a nesting, a number or a chain of `extends` is larger than the language allows.",
        "The bounds keep the reading of any file, also of a stranger's, short.",
        _preference(f"param beta = {_LONG}", "reward = beta * label"),
        _preference("param beta = 0.1111", "reward = beta * label"),
    ),
    "E105": Code(
        "No method line at the top",
        "The file does not begin with `method NAME`.",
        "Logs, tables and other files call the method by this name.",
        "data preference\nreward = label\n",
        _PLAIN,
    ),
    # --- E2: names --------------------------------------------------------------------------------------------------
    "E201": Code(
        "Unknown name",
        "An expression uses a name that is neither the batch's nor declared in the file.",
        "A misspelt name must not become a new one.",
        _preference("param beta = 0.1", "reward = betta * label", "report weight = beta"),
        _preference("param beta = 0.1", "reward = beta * label"),
    ),
    "E202": Code(
        "Said twice",
        "Two statements declare the same thing.",
        "It would be a guess which of the two holds.",
        _preference(_LINE, "reward = 2 * label"),
        _preference("reward = 2 * label"),
    ),
    "E203": Code(
        "Name is taken",
        "A declaration takes the name of an observable, a function, a component or a keyword.",
        "A reader who knows the language must be able to trust its words.",
        _preference("param length = 2", _LINE),
        _preference("param max_length = 2", "reward = label / max_length"),
    ),
    "E204": Code(
        "Defined through itself",
        "A chain of definitions leads back to where it began; the message shows the circle.",
        "Such a value is not defined.",
        _preference("reward = label * scale", "scale = 1 + reward"),
        _preference("reward = label * scale", "scale = 1 + group_size"),
    ),
    "E205": Code(
        "Not a function, or not a value",
        "A value is called, a function is used without being called, or there is no such function.",
        "`w(x)` is never a product, and a function without its argument is no number.",
        _preference("reward = cliip(label, 0, 1)"),
        _preference("reward = clip(label, 0, 1)"),
    ),
    "E206": Code(
        "Wrong number of arguments",
        "A function gets fewer or more arguments than it takes.",
        "Nothing is filled in silently.",
        _preference("reward = clip(label, 1)"),
        _preference("reward = clip(label, 0, 1)"),
    ),
    "E207": Code(
        "Unknown axis or step",
        "A reduction or an aggregation names an axis or a function that there is not.",
        "The axes are fixed by the batch: tokens, sequences, groups.",
        _preference(_LINE, "aggregate = sum over token, mean over sequences"),
        _preference(_LINE, "aggregate = sum over tokens, mean over sequences"),
    ),
    "E208": Code(
        "Unknown parameter",
        "A value is given to a parameter that the method does not have.",
        "A misspelt hyper-parameter would leave the default in force, unseen.",
        'import grolang\ngrolang.load("dpo", betta=0.2)',
        'import grolang\ngrolang.load("dpo", beta=0.2)',
        kind="python",
    ),
    "E209": Code(
        "A part is missing",
        "The method gives no reward, or does not say what data it learns from.",
        "These two have no sensible default.",
        _preference(),
        _PLAIN,
    ),
    # --- E3: scopes -------------------------------------------------------------------------------------------------
    "E301": Code(
        "No such axis in this value",
        "A reduction runs over an axis that its value does not have.",
        "A sum of one thing is a sign that another value was meant; nothing is repeated silently.",
        _preference(_LINE, "report total = sum(label over tokens)"),
        _preference(_LINE, "report total = sum(logp over tokens)"),
    ),
    "E302": Code(
        "Wrong scope for a form",
        "A form such as `opposite` gets a value per token where it takes one per sequence, or the like.",
        "The tokens of two responses do not correspond; how they count has to be said.",
        _preference(_LINE, "report other = opposite(logp)"),
        _preference(_LINE, "report other = opposite(sum(logp over tokens))"),
    ),
    "E303": Code(
        "Aggregation does not fit",
        "The steps of an aggregation do not lead from the tokens up to one number.",
        "The steps are the divisors of the loss; one that is left out changes every gradient.",
        _preference(_LINE, "aggregate = sum over tokens"),
        _preference(_LINE, "aggregate = sum over tokens, mean over sequences"),
    ),
    "E304": Code(
        "No axis, or one too many",
        "A reduction does not say over which axis, or a function that is no reduction has an `over`.",
        "A bare mean has many meanings, and published methods differ in exactly this.",
        _preference(_LINE, "report level = mean(logp)"),
        _preference(_LINE, "report level = mean(logp over tokens)"),
    ),
    "E305": Code(
        "Loss per token without aggregate",
        "A law claims a loss that has one value per token, and does not say how it is averaged.",
        "The mean over all tokens and the mean of the sequences' means are different losses.",
        _mine(*_TOKENS, "law gradient: loss -logp"),
        _mine(*_TOKENS, "law gradient: loss -logp aggregate mean over batch"),
    ),
    "E306": Code(
        "`greedy` of more than scores",
        "The argument of `greedy` uses something else than scores.",
        "Only scores are computed for the greedy completion; it never passes through the policy's loss.",
        _prompts("reward = correct", "baseline = greedy(reward - length)"),
        _prompts("reward = correct", "baseline = greedy(reward)"),
    ),
    "E307": Code(
        "`mismatched` of more than log-probs",
        "The argument of `mismatched` uses something else than log-probs, or none.",
        "For the completion of another prompt only log-probs are computed.",
        _mine("data unpaired", "reward = label", "report kl = mismatched(label * sum(logp over tokens))"),
        _mine("data unpaired", "reward = label", "report kl = label * mismatched(sum(logp over tokens))"),
    ),
    "E308": Code(
        "`own` in the wrong place",
        "`own(x)` stands outside of a reduction over others, or beside a value per token.",
        "Over the others, a plain value is that of the other sequence; `own` is that of the sequence itself.",
        _prompts("reward = correct", "report rank = mean(correct > own(correct) over group)"),
        _prompts("reward = correct", "report rank = sum(correct > own(correct) over others)"),
    ),
    # --- E4: data ---------------------------------------------------------------------------------------------------
    "E401": Code(
        "Not in this data",
        "The method uses something that its data does not bring, such as `label` with `data prompts`.",
        "Sampled completions have no label; they have scores.",
        _prompts("reward = correct * label"),
        _prompts("reward = correct"),
    ),
    "E402": Code(
        "No groups",
        "A reduction over the group needs data with groups.",
        "Unpaired rows belong to nothing; `over batch` is what they have.",
        _mine("data unpaired", "reward = label", "baseline = mean(reward over group)"),
        _mine("data unpaired", "reward = label", "baseline = mean(reward over batch)"),
    ),
    "E403": Code(
        "Unknown kind of data",
        "There is no such kind of data, or the two kinds cannot be mixed.",
        "The kind fixes the columns of the rows and what a group is.",
        _mine("data preferences", "reward = 1"),
        _preference("reward = 1"),
    ),
    "E404": Code(
        "`greedy` without prompts",
        "`greedy` needs `data prompts`.",
        "Only where completions are drawn can a greedy one be drawn beside them.",
        _preference(_LINE, "report start = greedy(1)"),
        _prompts("reward = correct", "report start = greedy(correct)"),
    ),
    "E405": Code(
        "Unknown built-in score",
        "`score NAME = BUILTIN` names a score that is not built in.",
        "A score of your own has no default: leave out `= …` and supply it when the method is run.",
        _mine("data prompts", "score correct = exactmatch", "reward = correct"),
        _prompts("reward = correct"),
    ),
    "E406": Code(
        "No others in a group of one",
        "`over others` leaves the sequence itself out, and `group 1` draws one completion for each prompt.",
        "The mean of no values is not defined; every step would fail.",
        _prompts("group 1", "reward = correct", "baseline = mean(reward over others)"),
        _prompts("group 2", "reward = correct", "baseline = mean(reward over others)"),
    ),
    # --- E5: values -------------------------------------------------------------------------------------------------
    "E501": Code(
        "Parameter outside of its bounds",
        "A parameter's value lies outside of the bounds that the file gives it.",
        "The method's claims hold inside of the bounds only.",
        _preference("param beta = 0 in (0, inf)", "reward = beta * label"),
        _preference("param beta = 0.1 in (0, inf)", "reward = beta * label"),
    ),
    "E502": Code(
        "Bounds without a value between",
        "The bounds of a parameter leave no value.",
        "The lower bound comes first; `(` and `)` exclude a bound, `[` and `]` include it.",
        _preference("param beta = 0.5 in (1, 0)", "reward = beta * label"),
        _preference("param beta = 0.5 in (0, 1)", "reward = beta * label"),
    ),
    "E503": Code(
        "`upsilon` falls",
        "`upsilon` must be increasing; the message shows two advantages where it falls.",
        "A better completion would be pushed less than a worse one.",
        _preference(_LINE, "upsilon(a) = -a"),
        _preference(_LINE, "upsilon(a) = 2 * a"),
    ),
    "E504": Code(
        "Not a size of a group",
        "`group` takes a whole number, at least 1.",
        "It counts the completions that are drawn for each prompt.",
        _prompts("group 2.5", "reward = correct"),
        _prompts("group 2", "reward = correct"),
    ),
    "E505": Code(
        "Impossible number",
        "A constant or a parameter's value cannot stand where it stands: a divisor of 0, a quantile outside of [0, 1], "
        "a number past 1e308.",
        "The result would be no number, for every batch.",
        _preference(_LINE, "aggregate = sum over tokens / 0, mean over sequences"),
        _preference(_LINE, "aggregate = sum over tokens / 100, mean over sequences"),
    ),
    # --- E6: other methods and files --------------------------------------------------------------------------------
    "E601": Code(
        "No such method",
        "`extends` or a law names a method that is neither in the same folder nor built in.",
        "A name is looked up in these two places and nowhere else.",
        "method mine\nextends dppo\ndata preference\nreward = label\n",
        "method mine\nextends dpo\ndata preference\nreward = label\n",
    ),
    "E602": Code(
        "No such file",
        "The command line or `grolang.load` names something that cannot be found, read or written.",
        "A path or the name of a built-in method is expected; `grolang list` shows the names.",
        "grolang check dppo",
        "grolang check dpo",
        kind="shell",
    ),
    "E603": Code(
        "Extends itself",
        "A chain of `extends` leads back to where it began; the example is a file `bad.gro`.",
        "There would be no first statement to start from.",
        "method bad\nextends bad\ndata preference\nreward = label\n",
        "method bad\nextends dpo\ndata preference\nreward = label\n",
    ),
    # --- W7: warnings -----------------------------------------------------------------------------------------------
    "W701": Code(
        "Divisor can be 0",
        "Nothing keeps a divisor away from 0: in an expression, or a parameter that a step of `aggregate` divides by.",
        "A group whose rewards are all equal has a standard deviation of 0: one such group makes every weight NaN.",
        _preference("reward = label / std(label over group)"),
        _preference("spread = std(label over group)", "reward = label / spread if spread > 0 else 0"),
    ),
    "W702": Code(
        "Biased baseline",
        "The baseline or the divisor of an advantage uses the sequence's own sample.",
        "Then the expected gradient is not that of the expected reward (Eq. 7 of arXiv:2503.19523).",
        _prompts("reward = correct", "baseline = mean(reward over group)"),
        _prompts("reward = correct", "baseline = mean(reward over others)"),
    ),
    "W703": Code(
        "`omega` negative or without bound",
        "`omega` can be negative, or nothing bounds it from above.",
        "Below 0 it turns good into bad; without a bound a single token can rule the step.",
        _preference(_LINE, "omega(z) = tanh(z)"),
        _preference(_LINE, "omega(z) = sigmoid(z)"),
    ),
    "W704": Code(
        "Used by nothing",
        "A parameter, a score or a definition is declared, and nothing uses it.",
        "Changing it would change nothing, which is seldom what its author believes.",
        _preference("param beta = 0.1", _LINE),
        _preference("param beta = 0.1", "reward = beta * label"),
    ),
    "W705": Code(
        "Outside of a function's domain",
        "The argument of `log`, `sqrt` or the like can lie where the function is not defined.",
        "The result is NaN or infinite, and so is every weight that it touches.",
        _preference("reward = log(label)"),
        _preference("reward = log(2 + label)"),
    ),
    "W706": Code(
        "`exp` can overflow",
        "Nothing bounds the argument of `exp` from above.",
        "In float32 `exp` is infinite from 88.7 on; a sum of log-ratios gets there easily.",
        _preference("reward = label * exp(-sum(logp over tokens))"),
        _preference("reward = label * exp(min(-sum(logp over tokens), 20))"),
    ),
    "W707": Code(
        "`upsilon` not known to be increasing",
        "It was neither proved that `upsilon` is increasing nor refuted by a pair of inputs.",
        "The proof composes what is known of each function; a form that hides it can often be written plainly.",
        _preference(_LINE, "upsilon(a) = a ^ 3 - a * a * a + a"),
        _preference(_LINE, "upsilon(a) = a"),
    ),
    "W708": Code(
        "Penalty without a gradient",
        "Nothing in `penalty` is differentiated in `logp`.",
        "It would be added to the loss and change no weight.",
        _preference(_LINE, "penalty = 0.1 * entropy"),
        _preference(_LINE, "penalty = 0.1 * (logp - logp_ref) ^ 2"),
    ),
    # --- E9: while a method runs ------------------------------------------------------------------------------------
    "E900": Code(
        "Wrong data or setting",
        "Data, a setting or a tensor is not what is expected; the message says which and what was found.",
        "It has no place in a .gro file.",
        "import grolang, torch\ngrolang.Batch(mask=torch.ones(2, 3))",
        "import grolang, torch\ngrolang.Batch(mask=torch.ones(2, 3, dtype=torch.bool))",
        kind="python",
    ),
    "E901": Code(
        "A tensor is missing",
        "The batch lacks a tensor that the method uses; the message says what supplies it.",
        "A missing reference model must not count as one that agrees with the policy.",
        _coefficients("reinforce"),
        _coefficients("reinforce", scores=_REWARDS),
        kind="python",
    ),
    "E902": Code(
        "Not finite",
        "A coefficient is infinite or not a number; the message names the expression and the values that made it so.",
        "One such weight would spoil the whole model in a single step.",
        _coefficients("reinforce", scores=_REWARDS.replace("1.0", 'float("nan")')),
        _coefficients("reinforce", scores=_REWARDS),
        kind="python",
    ),
    "E903": Code(
        "A group of one",
        "`over others` needs at least two sequences in a group.",
        "The mean of no values is not defined.",
        _coefficients("rloo", group="torch.tensor([0, 1])", scores=_REWARDS),
        _coefficients("rloo", group="torch.tensor([0, 0])", scores=_REWARDS),
        kind="python",
    ),
    "E904": Code(
        "Not a pair",
        "A group of preference data needs one sequence with label +1 and one with label -1.",
        "`opposite`, `chosen` and `rejected` have no meaning otherwise.",
        _coefficients("cpl", group="torch.tensor([0, 1])", **_PAIR),
        _coefficients("cpl", group="torch.tensor([0, 0])", **_PAIR),
        kind="python",
    ),
}
