"""The tree of docs/architecture.md is that of src/rareneuron: every module is named, and every name exists.

In the tree's block a line that opens with a branch (`├── models/`) starts a folder; names ending in `.py`, on that line
or on the lines below it, belong to that folder. A folder without a branch of its own, such as `sections/` beside
the modules of its parent, stands for everything in it.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "rareneuron"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def tree_block(page):
    """The lines of the fenced block that begins with the package's folder, without that first line."""
    (block,) = re.findall(r"^```\w*\nsrc/rareneuron/\n(.*?)^```", page, re.M | re.S)
    return block.splitlines()


def named(lines):
    """Paths from the root of a tree: its modules, folders with a branch of their own, folders beside modules."""
    modules, folders, parts, opened = [], [], [], []
    for line in lines:
        branch = re.match(r"([│ ]*)[├└]── (\S*)", line)
        if branch:
            del opened[len(branch[1]) // 4 :]
            if branch[2].endswith("/"):
                opened.append(branch[2].rstrip("/"))
                folders.append("/".join(opened))
        rest = line[branch.end() :] if branch and branch[2].endswith("/") else line
        modules += ["/".join([*opened, name]) for name in re.findall(r"\w+\.py\b", rest)]
        parts += ["/".join([*opened, name]) for name in re.findall(r"(?<![\w/])(\w+)/(?![\w/])", rest)]
    return modules, folders, parts


def differences(lines, files):
    """What a tree lacks, names twice, or names though it isn't among `files`."""
    modules, folders, parts = named(lines)
    for name in sorted(set(modules)):
        if name not in files:
            yield f"{name} doesn't exist"
        if modules.count(name) > 1:
            yield f"{name} stands twice"
    for folder in [*folders, *parts]:
        if not any(name.startswith(f"{folder}/") for name in files):
            yield f"{folder}/ doesn't exist"
    for name in sorted(files - set(modules)):
        said = Path(name).name in ("__init__.py", "__main__.py") or any(name.startswith(f"{part}/") for part in parts)
        if not said:
            yield f"{name} isn't named"


def source_files():
    return {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")}


def test_the_tree_names_every_module_and_nothing_else():
    assert list(differences(tree_block(PAGE), source_files())) == []


TREE = """\
├── errors.py    0   what can go wrong
├── maths/       1   arrays in, results out; no files/models
│   ├── one.py   Eq. 1
│   └── inner/   two.py (said here) ·
│                three.py
└── present/     2   figures/ (one file each) · page.py
""".splitlines()
THERE = {"errors.py", "maths/__init__.py", "maths/one.py", "maths/inner/two.py", "maths/inner/three.py"}
THERE |= {"present/page.py", "present/figures/curve.py"}


def test_a_tree_is_read_with_its_folders():
    modules, folders, parts = named(TREE)
    assert set(modules) == THERE - {"maths/__init__.py", "present/figures/curve.py"}
    assert folders == ["maths", "maths/inner", "present"]
    assert parts == ["present/figures"]
    assert list(differences(TREE, THERE)) == []


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (THERE | {"maths/new.py"}, "maths/new.py isn't named"),
        (THERE | {"maths/inner/page.py"}, "maths/inner/page.py isn't named"),  # a name elsewhere doesn't count
        (THERE - {"errors.py"}, "errors.py doesn't exist"),
        (THERE - {"present/figures/curve.py"}, "present/figures/ doesn't exist"),
    ],
)
def test_the_check_sees_a_tree_that_differs(files, complaint):
    assert list(differences(TREE, files)) == [complaint]


def test_the_check_sees_a_name_that_stands_twice():
    assert list(differences([*TREE, "                  page.py again"], THERE)) == ["present/page.py stands twice"]
