"""Imports go down the floors only: maths knows no models, nothing knows the command line."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "rareneuron"
FLOOR = {"errors": 0, "shown": 0, "links": 0, "cache": 0, "progress": 0, "maths": 1, "models": 2, "data": 2}
FLOOR |= {"embedded": 3, "runs": 4, "measure": 5, "conclude": 5, "study": 6, "present": 6, "use": 6, "cli": 7}
ONLY_BELOW = {"maths": {"transformers", "pandas", "matplotlib", "click"}, "data": {"matplotlib"}}
# What a room must not know although it lies below: reading and judging a run needs none of what computes it.
NEVER = {
    "runs": {"models", "embedded"},
    "conclude": {"models", "data", "embedded"},
    "present": {"models", "data", "embedded"},
    "embedded": {"runs"},
}
KEPT_BELOW = {"transformers": {"models", "embedded", "cli"}, "huggingface_hub": {"models", "data"}}


def imports(tree):
    """Every module imported anywhere in a file, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def violations(place, source):
    """Imports of `place` (its top folder or module) that go up, or sideways into another folder."""
    for name in imports(ast.parse(source)):
        top, *rest = name.split(".")
        if top == "rareneuron" and rest:
            if FLOOR[rest[0]] >= FLOOR[place] and rest[0] != place:
                yield f"{place} imports {name}"
            elif rest[0] in NEVER.get(place, ()):
                yield f"{place} must not know {name}"
        elif top in ONLY_BELOW.get(place, ()):
            yield f"{place} imports {name}"
        elif place not in KEPT_BELOW.get(top, FLOOR):
            yield f"{place} imports {name}, which only {KEPT_BELOW[top]} know"


FILES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem in FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down(path):
    place = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert not list(violations(place, path.read_text(encoding="utf-8")))


def test_every_floor_has_files():
    assert {p.relative_to(SOURCE).parts[0].removesuffix(".py") for p in FILES} == set(FLOOR)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("maths", "from rareneuron.models.adapter import load_model"),
        ("data", "def f():\n    import rareneuron.models.adapter"),
        ("study", "from rareneuron.present.report import write_report"),
        ("maths", "import pandas as pd"),
        ("measure", "from transformers import AutoModel"),
        ("conclude", "from rareneuron.measure.effects import layer_effects"),
        ("measure", "from rareneuron.conclude.trajectory import trajectory"),
        ("present", "from rareneuron.study.plan import plan_study"),
        ("present", "from rareneuron.models.families import FAMILIES"),
        ("conclude", "def f():\n    from rareneuron.models.adapter import load_model"),
        ("runs", "from rareneuron.models.checkpoints import Checkpoint"),
        ("runs", "from rareneuron.measure.engines import ENGINES"),
    ],
)
def test_the_check_sees_a_climb(place, source):
    assert list(violations(place, source))


def test_no_pickle_and_no_remote_code():
    """Nothing is pickled, and code of a repository is never run."""
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not {"pickle", "joblib", "shelve", "dill"} & {name.split(".")[0] for name in imports(tree)}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
                assert isinstance(node.value, ast.Constant), path
                assert node.value.value is False, path
