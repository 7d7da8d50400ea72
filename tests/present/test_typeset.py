"""Markdown and LaTeX: a table stays a table whatever a model is called."""

import re
from collections.abc import Callable

from rareneuron.present.tables import (
    paper_table,
)
from rareneuron.present.typeset import as_latex, as_markdown
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


def test_markdown_is_a_table_whatever_the_model_is_called(make_run: MakeRun) -> None:
    run = make_run(model="a|b*c_`d`<i>\n[x](y)\u202e\ud800")
    text = as_markdown(paper_table(4, [run]))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert r"a\|b\*c_\`d\`\<i>↵\[x](y)⟨U+202E⟩⟨U+D800⟩, step 512" in lines[2]
    assert lines[3].startswith("|  |  | mean, random |"), "what repeats is left out"
    assert lines[9].startswith("|  | W_out | this run |")


def test_latex_is_balanced_and_escaped(make_run: MakeRun) -> None:
    text = as_latex(paper_table(1, [make_run(model="50%_{x}~^&#$\\")]))
    assert r"50\%\_\{x\}\textasciitilde{}\textasciicircum{}\&\#\$\textbackslash{}, step 512" in text
    assert re.search(r"[^\x00-\x7f]", text) is None
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")
    rows = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {9}
    assert all(row.endswith(r"\\") for row in rows)
    assert r"\begin{tabular}{lllrrrrrrr}" in text
    assert r"\textbar{}$\Delta$\textbar{}" in text
