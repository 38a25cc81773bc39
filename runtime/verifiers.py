"""The built-in scores: what marks a completion without a model and without the user's code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import regex as timed

from grolang.language.diagnostics import GroError
from grolang.runtime.forms import text_of
from grolang.runtime.math_answers import SECONDS as MATH_SECONDS
from grolang.runtime.math_answers import MathAnswer
from grolang.runtime.sandbox import FENCE, Code
from grolang.runtime.sandbox import SECONDS as CODE_SECONDS

ScoreFunction = Callable[..., Any]
"""TRL's reward function: `function(prompts=…, completions=…, completion_ids=…, **columns)` gives a number each."""

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
PATIENCE = 10.0  # seconds for a pattern on all completions of a call


def final_answer(text: str) -> str:
    """What a solution ends in: the text after its last `####`, else its last number, else the text itself.

    Numbers are written one way: without thousands commas, units, trailing zeros or a sign of zero.
    """
    after = text.rsplit("####", 1)
    found = NUMBER.findall(after[-1])
    if not found:
        return " ".join(after[-1].lower().split())
    try:
        number = Decimal(found[0 if len(after) > 1 else -1].replace(",", ""))
    except InvalidOperation:
        return " ".join(after[-1].lower().split())
    return str(number.normalize() + 0)


def exact_match(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
    """1 where the completion's final answer is the row's `answer`, else 0."""
    return [
        float(final_answer(text_of(completion)) == final_answer(str(right)))
        for completion, right in zip(completions, answer, strict=True)
    ]


def length(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """Tokens of the completion, the end token included."""
    return [float(len(ids)) for ids in completion_ids]


def repetition(size: int) -> ScoreFunction:
    """The share of the completion's n-grams of tokens that were there before: 0 for none, towards 1 for a loop."""

    def share(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        found = []
        for ids in completion_ids:
            grams = [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
            found.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
        return found

    return share


def pattern(text: str) -> ScoreFunction:
    """1 where the pattern is found in the completion, else 0; `.` matches line ends."""
    try:
        compiled = timed.compile(text, timed.DOTALL)
    except timed.error as error:
        raise GroError.plain(f"the pattern of the score is no regular expression: {error}: {text}") from None

    def found(completions: Sequence[Any], **_: Any) -> list[float]:
        texts = map(text_of, completions)
        return [float(compiled.search(one, timeout=PATIENCE, concurrent=True) is not None) for one in texts]

    return found


def json_schema(path: str) -> ScoreFunction:
    """1 where the completion is JSON that fits a schema, else 0: the one of a file, or the row's `json_schema`.

    The JSON is the last fenced block of the completion, else all of it. A schema that is none is an error.
    """
    if find_spec("jsonschema") is None:
        raise GroError.plain("the score json_schema needs jsonschema", help="pip install 'grolang[json]'")
    import jsonschema
    from referencing import Registry

    def validator(schema: Any) -> Any:
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
        return kind(schema, registry=Registry())  # an empty one: no reference is looked up on the network

    def fits(checker: Any, text: str) -> float:
        blocks = FENCE.findall(text)
        try:
            return float(checker.is_valid(json.loads(blocks[-1] if blocks else text)))
        except (ValueError, RecursionError):
            return 0.0

    if not path:

        def of_rows(completions: Sequence[Any], json_schema: Sequence[Any], **_: Any) -> list[float]:
            schemas = [json.loads(schema) if isinstance(schema, str) else schema for schema in json_schema]
            return [fits(validator(one), text_of(text)) for one, text in zip(schemas, completions, strict=True)]

        return of_rows
    try:
        checker = validator(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        said = str(error).splitlines()[0]
        raise GroError.plain(f"{path} is no JSON schema: {said}", help="--score NAME=json_schema:FILE") from error
    return lambda completions, **_: [fits(checker, text_of(text)) for text in completions]


@dataclass(frozen=True)
class Builtin:
    """A built-in score: made from the text after the colon, which `option` describes; what it reads of a row."""

    make: Callable[[str], ScoreFunction]
    value: str
    option: str = ""  # in brackets where it may be left out
    reads: tuple[str, ...] = ()
    instead: bool = False  # whether the option, where it is given, stands for the columns


BUILTINS: dict[str, Builtin] = {
    "exact_match": Builtin(
        lambda _: exact_match,
        "1 where the final answer (after the last `####`, else the last number, else the text) is the row's `answer`",
        reads=("answer",),
    ),
    "math_answer": Builtin(
        lambda text: MathAnswer(_number(text, MATH_SECONDS)),
        "1 where the final answer equals the row's `answer` as mathematics, through math-verify; an answer that takes "
        "longer to compare than SECONDS (5) is not equal",
        "[SECONDS]",
        ("answer",),
    ),
    "regex": Builtin(pattern, "1 where the pattern is found", "PATTERN"),
    "json_schema": Builtin(
        json_schema,
        "1 where the completion, or its last fenced block, is JSON that fits the schema of FILE, else of the row's "
        "`json_schema`",
        "[FILE]",
        ("json_schema",),
        instead=True,
    ),
    "code": Builtin(
        lambda text: Code(_number(text, CODE_SECONDS)),
        "the share of the row's `tests` that the program in the completion passes within SECONDS (10)",
        "[SECONDS]",
        ("tests",),
    ),
    "length": Builtin(lambda _: length, "tokens of the completion, the end token included"),
    "repetition": Builtin(
        lambda text: repetition(round(_number(text, 4))),
        "the share of its N-grams of tokens (4) that were there before: a penalty for loops",
        "[N]",
    ),
}
"""Every built-in score. `score NAME = BUILTIN` takes one without its option, `--score NAME=BUILTIN:OPTION` with it."""


def _number(text: str, otherwise: float) -> float:
    """The number that an option is."""
    try:
        found = float(text or otherwise)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise GroError.plain(f"`{text}` is not a positive number", help="write for example `code:5`")
    return found
