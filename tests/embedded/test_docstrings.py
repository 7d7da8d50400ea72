"""Text from sources: in order, without repeats, without running them, and none of it on both sides."""

import sys

import pytest

from rareneuron.embedded import docstrings
from rareneuron.embedded.docstrings import (
    ANALYSIS_PACKAGES,
    SHORTEST_PARAGRAPH,
    TRAINING_PACKAGES,
    analysis_texts,
    documents,
    language_reference,
    module_docstrings,
    package_folder,
    standard_library,
    training_texts,
    without_repeats,
)
from rareneuron.errors import MissingText

NESTED = '''
"""The module."""
import os

"""No docstring: it is not the first statement."""

if os:
    class First:
        """The class,

            with a second paragraph.
        """

        async def method(self):
            """The method."""
            def inner():
                """Within the method."""

        value = 1
        """No docstring either."""
try:
    pass
except ValueError:
    def rescued():
        """In a handler."""
else:
    def last():
        "Of one quote."
x = lambda: """No function with a docstring."""
def silent(): pass
'''

LONG = "This paragraph is long enough that it may stand only once in all the text."
OTHER = "Another paragraph of the same kind, which nothing else in here repeats."
THIRD = "The third of them has something of its own to say, as a paragraph should."


def module(path, text="", code=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((f'"""{text}"""\n' if text else "") + code, encoding="utf-8")
    return path


def paragraphs(texts):
    """Normalised paragraphs that may not repeat."""
    found = [" ".join(p.split()) for text in texts for p in text.split("\n\n")]
    return [p for p in found if len(p) >= SHORTEST_PARAGRAPH]


def test_docstrings_come_in_source_order(tmp_path):
    assert module_docstrings(module(tmp_path / "nested.py", code=NESTED)) == [
        "The module.",
        "The class,\n\nwith a second paragraph.",
        "The method.",
        "Within the method.",
        "In a handler.",
        "Of one quote.",
    ]


@pytest.mark.parametrize(
    "content", [b"print 'Python 2'", b"def {{ name }}(): pass", b"\x00", b"# coding: nonsense\n", b"x = '\xff'"]
)
def test_a_file_that_cannot_be_parsed_has_none(content, tmp_path):
    (tmp_path / "odd.py").write_bytes(content)
    assert module_docstrings(tmp_path / "odd.py") == []


def test_other_peoples_escape_sequences_raise_no_warning(tmp_path):
    path = module(tmp_path / "escape.py", code='"""A \\d escape."""\nx = "\\w"\n')
    assert module_docstrings(path) == [r"A \d escape."]


def test_a_document_is_a_module_and_tests_are_left_out(tmp_path):
    module(tmp_path / "b.py", "Of b.", 'def f():\n    """Of f."""\n')
    module(tmp_path / "a" / "__init__.py", "Of a.")
    module(tmp_path / "none.py", code="x = 1\n")
    for skipped in ("tests/test_b.py", "a/_vendor/c.py", "site-packages/d.py"):
        module(tmp_path / skipped, "Not this.")
    assert list(documents(tmp_path)) == ["Of a.", "Of b.\n\nOf f."]


def test_a_folder_above_the_package_may_be_called_anything(tmp_path):
    module(tmp_path / "site-packages" / "tests" / "package" / "a.py", "Of a.")
    assert list(documents(tmp_path / "site-packages" / "tests" / "package")) == ["Of a."]


def test_paragraphs_stand_once():
    spaced = LONG.replace(" ", "\n    ")
    texts = [f"Parameters\n\n{LONG}", f"Parameters\n\n{spaced}\n\n{OTHER}", LONG, f"Returns\n\n{OTHER}", THIRD]
    assert list(without_repeats(texts)) == [f"Parameters\n\n{LONG}", f"Parameters\n\n{OTHER}", THIRD]


def test_what_was_seen_elsewhere_is_dropped_and_what_is_new_remembered():
    seen = set()
    assert list(without_repeats([LONG], seen)) == [LONG]
    assert list(without_repeats([f"{LONG}\n\n{OTHER}"], seen)) == [OTHER]
    assert list(without_repeats([LONG, OTHER], seen)) == []


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    """A standard library, a held-out package and one to train on, which copied from both."""
    topics = {"assert": f"The statement.\n\n{LONG}"}
    module(tmp_path / "stdlib" / "pydoc_data" / "topics.py", code=f"topics = {topics!r}\n")
    module(tmp_path / "held_out" / "__init__.py", OTHER)
    module(tmp_path / "copycat" / "__init__.py", f"{LONG}\n\n{THIRD}", f'def f():\n    """{OTHER}"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(docstrings, "standard_library", lambda: tmp_path / "stdlib")
    monkeypatch.setattr(docstrings, "ANALYSIS_PACKAGES", ("held_out",))


def test_training_text_has_no_paragraph_of_the_analysis_text(small_world):
    assert paragraphs(analysis_texts()) == [LONG, OTHER]
    assert paragraphs(documents(package_folder("copycat"))) == [LONG, THIRD, OTHER]  # it would, were it not for that
    assert list(training_texts(["copycat"])) == [THIRD]


@pytest.mark.slow
def test_nor_with_real_packages(analysis):
    training = paragraphs(training_texts(["huggingface_hub", "tokenizers", "safetensors"]))
    held_out = paragraphs(analysis)
    assert len(training) > 1_000
    assert len(held_out) > 10_000
    assert len(set(training)) == len(training)
    assert len(set(held_out)) == len(held_out)
    assert not set(training) & set(held_out)


def test_training_and_analysis_packages_are_different_ones():
    assert not set(TRAINING_PACKAGES) & set(ANALYSIS_PACKAGES)


@pytest.mark.parametrize("name", ANALYSIS_PACKAGES)
def test_every_installation_has_the_analysis_packages(name):
    assert any(documents(package_folder(name)))


def test_the_standard_library_and_the_language_reference_are_found():
    assert (standard_library() / "ast.py").is_file()
    chapters = list(language_reference())
    assert len(chapters) > 50
    assert any("assert" in chapter for chapter in chapters)


def test_nothing_is_imported(tmp_path, monkeypatch):
    module(tmp_path / "trap" / "__init__.py", LONG, "raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="imported"):
        __import__("trap")
    assert list(documents(package_folder("trap"))) == [LONG]
    assert "trap" not in sys.modules


@pytest.mark.parametrize("name", ["no_such_package", "this"])
def test_a_package_that_is_not_there_is_named(name):
    with pytest.raises(MissingText, match=rf"'{name}' is not installed.*rareneuron\[train\]"):
        package_folder(name)
