"""Docstrings of the public functions of models and data: arguments are described, and examples give what they say."""

import doctest
import inspect

import pytest

import rareneuron as rn


def failures_of(text):
    """How the examples of a docstring differ from what they say; an error where there are none."""
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(text), {}, "example", None, 0)
    assert test.examples, "no example"
    said = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    return "".join(said)


def undescribed(text, names):
    starts = {line.strip().partition(":")[0] for line in text.splitlines() if line.startswith("        ")}
    return [name for name in names if name not in starts]


@pytest.mark.parametrize("name", ["Adapter", "adapt", "load_model", "rare_types"])
def test_arguments_are_described_and_examples_hold(name):
    public = getattr(rn, name)
    assert not undescribed(public.__doc__, inspect.signature(public).parameters)
    for section in ["Args", "Source", "Example", *([] if inspect.isclass(public) else ["Returns", "Raises"])]:
        assert f"    {section}:\n" in public.__doc__
    assert not failures_of(public.__doc__)


def test_the_check_sees_a_wrong_example_and_an_argument_that_is_left_out():
    assert "Expected:\n    3\nGot:\n    2" in failures_of("Add.\n\n>>> 1 + 1\n3\n")
    assert undescribed("Add.\n\n    Args:\n        a: the first.\n", ["a", "b"]) == ["b"]
