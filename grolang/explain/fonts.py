"""The font for formulas, within the page: few systems bring one that browsers can draw tall signs with.

`math.woff` is a part of Latin Modern Math 1.959 (B. Jackowski, P. Strzelczyk, P. Pianowski; GUST Font License, see
math.woff.txt) under another name, as that license asks of a changed font. `python -m grolang.explain.fonts
latinmodern-math.otf` makes it anew (with fonttools).
"""

from __future__ import annotations

import base64
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

NAME = "Grolang Math"
_SIGNS = "−′·⋅×∑∇∈∖≤≥≠∧∨¬∞√∂ℓℒℋℎ∣ı𝚤𝚥…ˆ¯˜𝟏∗\u2062\u2063\u2061\u0302\u0303\u0304\u0305ϵαβγδεζηθικλμνξοπρστυφχψω"


@cache
def style() -> str:
    """A style sheet with the font in it."""
    data = base64.b64encode(files("grolang.explain").joinpath("math.woff").read_bytes()).decode()
    source = f'url("data:font/woff;base64,{data}") format("woff")'
    return f'@font-face {{ font-family: "{NAME}"; src: {source}; }}\nmath {{ font-family: "{NAME}", math; }}\n'


def make(original: str) -> None:
    """Cut the signs of notation.py, and what they grow to, out of a whole font."""
    from fontTools import subset

    kept = {*range(0x20, 0x7F), *range(0x1D434, 0x1D468), *range(0x1D6FC, 0x1D71C), *map(ord, _SIGNS)}
    options = subset.Options(flavor="woff", layout_features=[], hinting=False, desubroutinize=True)
    font = subset.load_font(original, options)
    cut = subset.Subsetter(options)
    cut.populate(unicodes=kept)
    cut.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 4, 6):
            record.string = NAME if record.nameID != 6 else NAME.replace(" ", "")
    subset.save_font(font, str(Path(__file__).with_name("math.woff")), options)


if __name__ == "__main__":
    make(sys.argv[1])
