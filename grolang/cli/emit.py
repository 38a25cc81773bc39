"""`grolang emit`: a method as one Python file for any trainer."""

from __future__ import annotations

from grolang.cli.options import File, Force, Output, Parameters, numbers


def emit(
    file: File,
    output: Output = None,
    setting: Parameters = None,
    force: Force = False,
) -> None:
    """Print the compiled loss as one readable Python file that depends on torch alone, for any other trainer.

    Parameters stay arguments of its functions, but for those that are 0: what they multiply is left out.
    """
    from grolang.cli.files import write_new
    from grolang.cli.paint import say
    from grolang.compiler import emit as compiler
    from grolang.language import library
    from grolang.language.checker import check
    from grolang.language.parameters import bound

    source = library.find(file)
    method = bound(check(source).unwrap(), numbers(setting))
    text = compiler.emit(method, source.text)
    if output is None:
        say(text.rstrip("\n"))
    else:
        write_new(output, text, force=force)
        say(f"wrote {output}")
