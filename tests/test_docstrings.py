"""Docstrings of public functions: every argument is described, and every example gives what it says."""

import doctest
import inspect

import pytest

import rareneuron as rn

DOCUMENTED = [
    *(
        "Adapter",
        "Readout",
        "ablated",
        "adapt",
        "alpha_hill",
        "delta_loss",
        "effective_dimension",
        "fit_phases",
        "geometry",
    ),
    *("load_model", "neuron_groups", "open_run", "rank_curve", "rare_types", "released_phases", "spectrum"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("evaluate_swap", "evaluate_tasks", "export_model", "run_study", "try_text")
    ),
]
SECTIONS = {"Args", "Returns", "Yields", "Raises", "Source", "Example"}


def sections_of(text):
    """The sections of a docstring: name → lines."""
    out, name = {}, None
    for line in inspect.cleandoc(text).splitlines():
        if line and not line.startswith(" "):
            name = line.removesuffix(":") if line.removesuffix(":") in SECTIONS else None
        elif name is not None:
            out.setdefault(name, []).append(line)
    return out


def undescribed(text, names):
    """Arguments that have no line of their own."""
    starts = [line.strip().partition(":")[0] for line in sections_of(text).get("Args", [])]
    return [name for name in names if name not in starts]


def failures_of(text, name="example"):
    """What of a docstring's examples doesn't come out as it says; an error where there are none."""
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(text), {}, name, None, 0)
    assert test.examples, f"{name} has no example"
    said = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    return "".join(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where examples run: the study that several begin with is computed by the first and read by the others."""
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_argument_is_described_and_examples_hold(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    documented = getattr(rn, name)
    gives = "Yields" if inspect.isgeneratorfunction(inspect.unwrap(documented)) else "Returns"
    needed = SECTIONS - {"Yields", "Returns"} | {gives}
    needed -= {"Returns", "Raises"} if inspect.isclass(documented) else set()
    assert needed <= sections_of(documented.__doc__).keys()
    assert not undescribed(documented.__doc__, inspect.signature(documented).parameters)
    assert not failures_of(documented.__doc__, name)


def test_the_check_sees_a_wrong_example_and_an_argument_that_is_left_out():
    text = """Add two numbers.

    Args:
        a: the first.

    Example:
        >>> 1 + 1
        3
    """
    assert undescribed(text, ["a", "b"]) == ["b"]
    assert "Expected:\n    3\nGot:\n    2" in failures_of(text)
