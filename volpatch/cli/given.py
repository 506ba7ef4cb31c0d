"""What was given on the command line, as the library takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from volpatch.functions.named import FunctionSpec


def options_given(words: dict[str, Any]) -> Any:
    """Those options that were given; the library has the defaults of the others."""
    return {n: v for n, v in words.items() if v is not None and v is not False and v != ()}


def functions_given(words: dict[str, Any]) -> tuple[FunctionSpec | None, FunctionSpec | None]:
    """The function and finalize, taken out of what was given."""
    from volpatch.functions.named import FunctionSpec, parse_params

    params = words.pop("params")
    apply, factory, finalize = (words.pop(n, None) for n in ("apply", "factory", "finalize"))
    if apply is not None and factory is not None:
        raise click.UsageError("Give one of --apply and --factory: the function, or its maker.")
    name = apply or factory
    if params and name is None:
        raise click.UsageError("--param belongs to --apply or --factory; give one of them.")
    func = None
    if name is not None:
        func = FunctionSpec.parse(name, parse_params(params), factory=factory is not None)
    final = None if finalize is None else FunctionSpec.parse(finalize)
    return func, final
