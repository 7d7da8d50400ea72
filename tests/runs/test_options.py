"""Errors of maths speak of its arguments, and a run of the options that set them."""

import ast

import pytest

from rareneuron.errors import NotMeasured, TooFewNeurons
from rareneuron.runs.options import OPTIONS, with_option
from tests.test_floors import SOURCE


def arguments_named(source):
    """The arguments that a module's errors ask to change."""
    return {
        keyword.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        for keyword in node.exc.keywords
        if keyword.arg == "argument"
    }


def test_the_option_follows_the_paragraph():
    assert with_option(TooFewNeurons("There are few.", argument="size")) == "There are few. The option is --group-size."
    assert with_option(NotMeasured("Nothing varies.")) == "Nothing varies."


def test_every_argument_that_maths_speaks_of_has_an_option():
    found = set().union(*(arguments_named(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("maths/*.py")))
    assert {"size", "n_tokens", "n_draws"} <= found
    assert found <= OPTIONS.keys()


@pytest.mark.parametrize("source", ['raise ValueError("x", argument="depth")'])
def test_the_check_sees_an_argument(source):
    assert arguments_named(source) == {"depth"}
