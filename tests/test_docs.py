"""Documentation is part of the code: its commands parse, its Python runs, its names exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from rareneuron.cli import cli
from rareneuron.models.families import FAMILIES
from rareneuron.present.figures import FIGURES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def commands():
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "sh"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["rareneuron"]:
                    yield pytest.param(words[1:], id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_parses(words):
    name, *arguments = words
    cli.commands[name].make_context(name, arguments)


def test_the_check_sees_a_wrong_option():
    with pytest.raises(Exception, match="No such option"):
        cli.commands["study"].make_context("study", ["--no-such-option"])


@pytest.mark.slow
def test_readme_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in blocks(README, "python"):
        exec(compile(code, "README.md", "exec"), scope)
    assert scope["delta"].shape == (8, 32)
    assert len(scope["effects"]) == 1024
    assert "delta_loss_se" in capsys.readouterr().out


def test_every_command_and_figure_is_documented():
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in [*cli.commands, *FIGURES]:
        assert name in everything, f"{name} is in no page"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = set(re.findall(r"`?make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert named >= {"demo", "test", "lint", "fast-test"}
    assert named <= targets


def table_rows(text):
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and "---" not in cells[0] and cells[0] != "what":
            yield cells


def test_science_names_what_exists():
    rows = list(table_rows((ROOT / "docs" / "science.md").read_text(encoding="utf-8")))
    assert len(rows) >= 10
    for what, _, functions, tests, _ in rows:
        for name in re.findall(r"`([\w.]+)`", functions):
            module, _, attribute = name.rpartition(".")
            if not hasattr(importlib.import_module(f"rareneuron.{module}"), attribute):
                importlib.import_module(f"rareneuron.{name}")  # a module; fails where there is neither
        found = re.findall(r"`(tests/[\w/.]+)`", tests)
        assert found, f"{what} has no test"
        for path in found:
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_equations_so_far_are_mapped(number):
    assert f"Eq. {number}" in (ROOT / "docs" / "science.md").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_skips_have_a_row():
    """Every test that can skip is in tests/SKIPS.md."""
    rows = (ROOT / "tests" / "SKIPS.md").read_text(encoding="utf-8")
    for path in (ROOT / "tests").rglob("test_*.py"):
        source = path.read_text(encoding="utf-8")
        if path != Path(__file__) and re.search(r"skipif|pytest\.skip|importorskip|reference_data", source):
            assert str(path.relative_to(ROOT / "tests")) in rows, path


def test_the_repository_speaks_of_the_project_alone():
    forbidden = ["/" + "work/", "/" + "tmp/exp", "farm" + "-studio"]
    for page in [*PAGES, *(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = page.read_text(encoding="utf-8")
        assert not [word for word in forbidden if word in text], page


def test_families_in_the_readme_exist():
    listed = re.search(r"rareneuron families\s+# (.*)", README).group(1)
    assert set(re.findall(r"[a-z]\w+", listed)) <= set(FAMILIES)
