"""The command line's options for the arguments that errors of `maths` name."""

from rareneuron.errors import RareNeuronError

OPTIONS = {
    "definitions": "--definitions",
    "dtype": "--dtype",
    "memory": "--memory",
    "n_draws": "--n-random",
    "n_tokens": "--n-tokens",
    "size": "--group-size",
}  # argument of a function in maths → option of `rareneuron study`


def with_option(error: RareNeuronError) -> str:
    """Return an error's paragraph, with the option that sets the argument it asks to change."""
    option = OPTIONS.get(error.argument or "")
    return str(error) if option is None else f"{error} The option is {option}."
