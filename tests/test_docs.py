"""Documentation is part of the code: its commands and its Python run, its names exist, its site builds.

Every `sh` and `python` block of every page runs here, in a folder of small stand-ins (`docs_blocks`). Commands that
need a GPU or a cluster are parsed by the command's own parser instead: `pytest -v -k parsed_only` lists them. What can
run nowhere is fenced as `text` in its page.
"""

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

import rareneuron
from rareneuron.cli import cli
from rareneuron.conclude.hypotheses import HYPOTHESES
from rareneuron.data import texts
from rareneuron.maths.phase_fit import fit_phases
from rareneuron.models.families import FAMILIES
from rareneuron.present import publish
from rareneuron.present.figures import FIGURES
from rareneuron.runs import rankings
from rareneuron.runs.config import StudyConfig
from rareneuron.study import counts as study_counts
from rareneuron.study import plan, tokens
from rareneuron.use import model as use_model
from rareneuron.use import swap as use_swap
from tests.docs_blocks import (
    NOT_CODE,
    PAGES,
    ROOT,
    RUNNABLE,
    Block,
    all_blocks,
    blocks,
    commands,
    stand_ins,
    with_small_options,
)
from tests.models.hub_server import Hub, serving
from tests.models.test_hub import reach

TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FINISHED = [  # studies of the pages whose runs are there when a block starts
    "rareneuron study",
    "rareneuron study ./my-model --data texts.txt",
    "rareneuron study ./my-model --data texts.jsonl.gz --layers all --out runs/layers",
    "rareneuron study EleutherAI/pythia-70m --steps 0,512,143000 --data texts.txt --counts pythia-unigrams.npy",
    "rareneuron study EleutherAI/pythia-410m --data texts.txt --counts pythia-unigrams.npy",
]


# --- shell


def needs_hardware(words):
    """A GPU, or a cluster."""
    return any(word.startswith("cuda") or word in ("ray", "--address") for word in words)


def shell_commands():
    """Each once, at the first page that has it."""
    seen = set()
    for block in all_blocks("sh"):
        for words in commands(block):
            if tuple(words) not in seen:
                seen.add(tuple(words))
                yield pytest.param(words, id=f"{block.page}: {' '.join(words)[:80]}")


def parse(words):
    name, *arguments = words[1:]
    cli.commands[name].make_context(name, arguments)


def run_command(words):
    """One line of a block; anything but this package's commands and make's targets has no place in one."""
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] != "rareneuron":
        raise ValueError(f"{words} is no command of this package: fence it as `text`")
    else:
        with pytest.MonkeyPatch.context() as patch:
            if words[1] == "study":  # pages take seconds a study; `rareneuron report` runs by itself
                patch.setattr(publish, "publish", lambda run: publish.Published(report=run.path / "report.html"))
            done = CliRunner().invoke(cli, with_small_options(words))
        assert done.exit_code == 0, f"{' '.join(words)}\n{done.output}\n{done.exception!r}"


def few_draws(curve, sums, rng, n_draws):
    return fit_phases(curve, sums, rng, n_draws=19)  # the fewest that can find anything


@contextmanager
def in_place_of_the_real(there):
    """The few things that are replaced while blocks run: shipped series and text, Hub, number of draws."""
    with pytest.MonkeyPatch.context() as patch, serving(Hub(there.hub)) as address:
        reach(patch, address, there.folder.parent / "cache")
        patch.setattr(plan, "SERIES", there.embedded)
        patch.setattr(use_model, "SERIES", there.embedded)
        patch.setattr(study_counts, "COUNTS", there.counts)
        patch.setattr(use_swap, "analysis_texts", lambda: iter([there.text.read_text(encoding="utf-8")]))
        patch.setattr(tokens, "analysis_texts", lambda: iter([there.text.read_text(encoding="utf-8")]))
        patch.setattr(texts, "hub_corpus", lambda name, text_field: texts.open_corpus(there.text))
        patch.setattr(rankings, "fit_phases", few_draws)
        yield patch


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Stand-ins and finished runs."""
    there = stand_ins(tmp_path_factory.mktemp("docs"))
    with in_place_of_the_real(there) as patch:
        patch.chdir(there.folder)
        for line in FINISHED:
            run_command(line.split())
    return there


@pytest.fixture
def here(place, tmp_path):
    """A copy that a block may change, as the working directory."""
    shutil.copytree(place.folder, tmp_path / "here")
    with in_place_of_the_real(place) as patch:
        patch.chdir(tmp_path / "here")
        yield


ALL_COMMANDS = list(shell_commands())


PARSED_ONLY = [case for case in ALL_COMMANDS if needs_hardware(case.values[0])]
RUN_BEFORE = [case for case in ALL_COMMANDS if " ".join(case.values[0]) in FINISHED]


@pytest.mark.parametrize("words", PARSED_ONLY)
def test_what_needs_a_gpu_or_a_cluster_is_parsed_only(words):
    parse(words)


@pytest.mark.parametrize("words", [case for case in ALL_COMMANDS if case.values[0][0] == "rareneuron"])
def test_every_command_parses(words):
    parse(words)


@pytest.mark.slow
@pytest.mark.parametrize("words", [c for c in ALL_COMMANDS if c not in PARSED_ONLY and c not in RUN_BEFORE])
def test_every_command_runs(words, here):
    if words[:2] == ["rareneuron", "study"]:
        shutil.rmtree("runs")  # begun, not continued: other pages have other settings
    run_command(words)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("rareneuron study ./my-model --no-such-option", "No such option"),
        ("rareneuron study ./my-model --device cuda --n-tokens many", "not a valid integer"),
        ("rareneuron phases", "Missing parameter: run"),
        ("rareneuron no-such-command runs/embedded", "no-such-command"),
    ],
)
def test_a_wrong_command_does_not_parse(line, complaint):
    with pytest.raises(Exception, match=complaint):
        parse(line.split())


def test_the_runs_that_are_there_are_of_the_pages():
    assert {" ".join(case.values[0]) for case in RUN_BEFORE} == set(FINISHED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("rareneuron study ./my-model --data no-such-file.txt", "no-such-file.txt"),
        ("rareneuron phases runs/my-model", "fewer than 128"),
        ("pip install rareneuron", "fence it as"),
        ("make no-such-target", "no-such-target|returned non-zero"),
    ],
)
def test_a_command_that_fails_is_seen(here, line, complaint):
    with pytest.raises(Exception, match=complaint):
        run_command(line.split())


# --- Python, TOML, and fences


def run_python(page_blocks):
    scope = {}
    for block in page_blocks:
        exec(compile("\n" * block.line + block.text, block.page, "exec"), scope)
    return scope


PYTHON_PAGES = sorted({ROOT / block.page for block in all_blocks("python")} - {ROOT / "README.md"})


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.name)
def test_python_of_a_page_runs(page, here, capsys):
    """One scope a page, as a reader would type it."""
    run_python(block for block in blocks(page) if block.language == "python")


@pytest.mark.slow
def test_a_wrong_name_in_python_is_seen(here):
    code = "import rareneuron as rn\nrn.open_run('runs/embedded').no_such_name\n"
    with pytest.raises(AttributeError, match="no_such_name"):
        run_python([Block("page", 1, "python", code)])


@pytest.mark.slow
def test_readme_python_runs_on_the_shipped_series(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = run_python(block for block in blocks(ROOT / "README.md") if block.language == "python")
    assert len(scope["effects"]) == 1024
    printed = capsys.readouterr().out
    assert "delta_loss_se" in printed
    assert scope["run"].phases().outcome in printed


def test_effects_on_arrays_of_ones_own_have_a_row_a_token_and_a_column_a_neuron():
    scope = run_python(block for block in blocks(ROOT / "docs" / "api.md") if block.language == "python")
    assert scope["delta"].shape == (8, 32)


def test_toml_holds_settings():
    found = all_blocks("toml")
    assert found
    for block in found:
        StudyConfig.from_settings(tomllib.loads(block.text), block.page)


def test_every_fence_says_what_it_is():
    """So that no block is left out for a language that no test knows."""
    languages = {block.language for page in PAGES for block in blocks(page)}
    assert languages >= {"sh", "python", "toml", "text"}
    assert languages <= RUNNABLE | NOT_CODE


def test_blocks_are_found(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    shell, nested, other = "```sh\nX=1 a \\\n  b # c\n```\n", "````text\n```sh\n```\n````\n", "```{toctree}\nx\n```\n"
    page.write_text(shell + nested + other + "- x\n  ```python\n  y\n  ```\n", encoding="utf-8")
    monkeypatch.setattr("tests.docs_blocks.ROOT", tmp_path)
    found = list(blocks(page))
    assert [(block.line, block.language) for block in found] == [(1, "sh"), (5, "text"), (13, "python")]
    assert commands(found[0]) == [["a", "b"]]


# --- what is named exists, and what exists is named


def test_every_command_figure_and_family_is_documented():
    everything = "\n".join(text for name, text in TEXTS.items() if name != "CHANGELOG.md")
    for name in [*FIGURES, *FAMILIES, *(f"rareneuron {command}" for command in cli.commands)]:
        assert name in everything, f"{name} is in no page"


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
    named = {name for text in TEXTS.values() for name in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M)}
    assert named >= {"demo", "test", "lint", "fast-test", "docs", "dist", "fuzz"}
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


def test_the_reference_lists_every_family():
    sentence = re.search(r"The architectures are (.*?)\.\n", TEXTS["docs/cli.md"], re.S)
    assert set(re.findall(r"`([a-z]\w+)`", sentence.group(1))) == set(FAMILIES)


def test_the_readme_counts_families_and_claims_as_they_are():
    assert f"{len(FAMILIES)} architectures" in README
    assert f"{len(HYPOTHESES)} [claims]" in README


def test_the_readme_fits_on_a_page_and_says_how_to_begin():
    lines = README.splitlines()
    assert len(lines) <= 80
    begin = next(i for i, line in enumerate(lines) if line.startswith("pip install rareneuron"))
    assert begin < 20
    assert any(line.startswith("rareneuron study ") for line in lines[begin : begin + 6])


def test_the_readme_and_the_tutorial_show_the_same_output():
    """The tutorial reads it line by line; both are also of a run whose settings are the defaults."""
    shown = [block.text for name in ("README.md", "docs/tutorial.md") for block in blocks(ROOT / name)]
    shown = [text for text in shown if "Report: runs/embedded/report.html" in text]
    assert len(shown) == 2
    assert shown[0] == shown[1]


# --- one width


def too_long(text, width=120):
    """Lines of prose over the width, with their numbers; code, tables and words that can't be broken are exempt."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*(`{3,}|~{3,})", line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence and len(line) > width and not line.lstrip().startswith("|") and " " in line.strip():
            yield number, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_wraps_at_one_width(page):
    assert list(too_long(page.read_text(encoding="utf-8"))) == []


def test_the_check_sees_a_line_that_is_too_long():
    words = "word " * 30
    assert [number for number, _ in too_long(f"# A\n\n{words}\n- {words}\n")] == [3, 4]
    assert [number for number, _ in too_long(f"```text\n{words}\n```\n{words}\n| {words} |\n")] == [4]
    assert list(too_long("x" * 150)) == []


# --- the site


class Outside(HTMLParser):
    """What a page makes a browser fetch from elsewhere: links that a reader follows are none."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            fetches = name in ("src", "srcset", "poster", "data") or (tag == "link" and name == "href")
            if (fetches and re.match(r"(https?:)?//", value or "")) or (name == "style" and remote_in_css(value)):
                self.found.append(f"{tag} {name}={value}")

    def handle_data(self, data):
        if remote_in_css(data):
            self.found.append(data[:80])


def remote_in_css(text):
    return re.search(r"@import\s+[\"']?(url)?|url\(\s*[\"']?(https?:)?//", text or "") is not None


def fetched_from_outside(site):
    found = []
    for path in site.rglob("*.html"):
        page = Outside()
        page.feed(path.read_text(encoding="utf-8"))
        found += [f"{path.name}: {what}" for what in page.found]
    return found + [path.name for path in site.rglob("*.css") if remote_in_css(path.read_text(encoding="utf-8"))]


def test_the_check_sees_what_a_page_fetches(tmp_path):
    for i, snippet in enumerate(
        [
            '<script src="https://cdn.example.org/mathjax.js"></script>',
            '<link rel="stylesheet" href="//fonts.example.org/css">',
            "<style>@import url(https://fonts.example.org/a.css);</style>",
            '<p style="background: url(https://example.org/a.png)">',
        ]
    ):
        (tmp_path / f"{i}.html").write_text(snippet, encoding="utf-8")
    (tmp_path / "a.css").write_text("a { src: url('https://example.org/a.woff') }", encoding="utf-8")
    (tmp_path / "fine.html").write_text('<a href="https://example.org">x</a><img src="a.png">', encoding="utf-8")
    assert len(fetched_from_outside(tmp_path)) == 5


def build(source, out):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", str(out / "trees")]
    return subprocess.run([*command, str(source), str(out / "html")], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT / "docs", out)
    assert done.returncode == 0, done.stderr
    return out / "html"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_outside(site):
    assert fetched_from_outside(site) == []


@pytest.mark.slow
def test_every_command_and_option_is_in_the_reference(site):
    page = (site / "cli.html").read_text(encoding="utf-8")
    for name, command in cli.commands.items():
        for option in [option for parameter in command.params for option in parameter.opts if option[0] == "-"]:
            assert f'id="cmdoption-rareneuron-{name}{re.sub("^-*", "-", option)}"' in page, f"{name} {option}"
    assert "\\" not in page  # what stands for itself in Markdown does so here


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    missing = [n for n in rareneuron.__all__ if not re.search(rf'id="rareneuron\.(errors\.)?{n}"', page)]
    assert not missing, f"docs/api.md lacks {missing}"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["# A\n\n[x](no-such-page.md)\n", "# A\n\n$\\nosuch{x}$\n"])
def test_a_wrong_page_fails_the_build(tmp_path, text):
    source = tmp_path / "docs"
    (source / "_static").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "conf.py", source)
    shutil.copytree(ROOT / "docs" / "_static", source / "_static", dirs_exist_ok=True)
    (source / "index.md").write_text(text, encoding="utf-8")
    assert build(source, tmp_path).returncode != 0
