"""The report: facts as recorded, whatever kind of run, and nothing that a token's text can do to the page."""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rareneuron.cli.study import study
from rareneuron.errors import RunFolderError
from rareneuron.present.blocks import Definitions
from rareneuron.present.findings import findings
from rareneuron.present.mechanism import KIND
from rareneuron.present.page_json import columns_of
from rareneuron.present.report import corpus_name, render_report, write_report
from rareneuron.present.sections.reproduce import TOOL_AUTHORS, TOOL_TITLE, command, reproduce_section
from rareneuron.present.wording import visible, without_hidden
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import read_json, read_table, read_tensors, write_json, write_table
from rareneuron.runs.neurons import read_explorer
from rareneuron.runs.run import Run, open_run
from tests.present.claimed import Made
from tests.present.explorer_run import HOSTILE as HOSTILE_TEXTS
from tests.present.explorer_run import add_details

MakeRun = Callable[..., Run]

HOSTILE = (
    "<script>alert(1)</script>",
    "\"' onload=x",
    "{{ 7 * 7 }}",
    "</svg></table>",
    "\u202egnp",
    "\x00\x1b\n\t",
    "\ufffd",
    " led",
    "\u200b",
    "&lt;",
)


class Page(HTMLParser):
    """The elements and the text of a page; every element that is opened must be closed in order."""

    VOID = ("meta", "br", "link", "input", "wbr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "text", "script"):
            self.text += data + " "


def words(html: str) -> str:
    """The page's text with single spaces."""
    return re.sub(r"\s+", " ", Page(html).text)


@pytest.mark.usefixtures("without_ink")
def test_the_report_is_written_whole_and_returns_its_path(make_run: MakeRun) -> None:
    run = make_run()
    path = write_report(run)
    assert path == run.path / "report.html"
    html = path.read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert html.rstrip().endswith("</html>")
    assert not list(run.path.glob(".*partial"))


@pytest.mark.usefixtures("without_ink")
def test_a_failed_write_leaves_the_old_report(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    write_report(run)
    before = (run.path / "report.html").read_bytes()

    def fails(path: Path, text: str, **_: object) -> int:
        path.write_bytes(text[:100].encode())
        raise ValueError("killed")

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(ValueError, match="killed"):
        write_report(run)
    assert (run.path / "report.html").read_bytes() == before
    assert not list(run.path.glob(".*partial"))


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun) -> None:
    run = make_run()
    assert render_report(run) == render_report(open_run(run.path))


def test_the_page_needs_nothing_else(make_run: MakeRun) -> None:
    html = render_report(make_run())
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"link", "img", "iframe", "object", "embed"}
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    *twins, data, program = scripts
    assert (data, program) == ({"type": "application/json", "id": "page-data"}, {}), "one script, with nothing to fetch"
    assert all(
        of == {"type": "application/json", "id": f"data-{of['data-of']}", "data-of": of["data-of"]} for of in twins
    )
    assert "svg" in tags
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset"):
                assert (value or "").startswith("#"), (tag, name, value)
    outside = [u for u in re.findall(r"url\(([^)]*)\)", html) if not u.startswith("#")]
    assert outside == []
    assert "@import" not in html


def test_the_policy_lets_our_script_run_and_nothing_else(make_run: MakeRun, without_ink: None) -> None:
    html = render_report(make_run())
    policy = next(a["content"] for tag, a in Page(html).elements if a.get("http-equiv") == "Content-Security-Policy")
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


def page_data_of(html: str) -> Any:
    """What the page's script reads."""
    found = re.findall(r'<script type="application/json" id="page-data">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    assert not set("<>&") & set(found[0])
    assert found[0].isascii()
    return json.loads(found[0])


@pytest.mark.usefixtures("without_ink")
def test_the_scripts_data_are_the_runs(make_run: MakeRun) -> None:
    run = add_details(make_run(steps=(0, 8, 512)), most=20)
    data, effects = page_data_of(render_report(run)), run.effects().sort_values("index")
    assert [step["name"] for step in data["steps"]] == ["0", "8", "512"]
    for column, name in (("delta", "delta_loss"), ("size", "abs_delta_loss"), ("w_out", "W_out_norm"), ("kl", "kl")):
        np.testing.assert_allclose(data["neurons"][column], effects[name], rtol=1e-3)
    n_contexts = run.manifest.data.n_contexts
    half = stats.t.ppf(0.975, n_contexts - 1) * effects["delta_loss_se"]
    np.testing.assert_allclose(data["neurons"]["low"], effects["delta_loss"] - half, rtol=2e-3, atol=1e-7)
    by_rank = effects.sort_values("rank")
    assert data["steps"][-1]["curve"][0] == by_rank["rank"].tolist()
    assert data["steps"][-1]["curve"][3] == by_rank["index"].tolist()
    details, tokens = data["details"], run.tokens()
    assert details["shown"] == by_rank["index"].head(20).tolist()
    for row, neuron in enumerate(details["shown"]):
        assert details["path"]["rank"][row] == [int(run.effects(s)["rank"][neuron]) for s in (0, 8, 512)]
    stored = read_explorer(run.path / "steps" / "512")
    windows = read_tensors(run.path / "contexts.safetensors")["windows"]
    assert stored is not None
    for row in range(20):
        for k, context in enumerate(details["contexts"][row]):
            token = tokens.iloc[int(stored.top_token[row, k])]
            target = windows[token["context"], token["position"] + 1]
            number = details["texts"][context["text"]][context["at"]]
            assert details["vocabulary"][number] == without_hidden(HOSTILE_TEXTS[target])
            assert context["places"] == [context["at"]]
            assert context["delta"] == [pytest.approx(float(stored.near_delta[row, k, 0]), rel=1e-3)]


@pytest.mark.usefixtures("without_ink")
def test_a_long_series_is_thinned_and_says_so(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rareneuron.present.page_data.MOST_STEPS", 3)
    monkeypatch.setattr("rareneuron.present.report.MOST_STEPS", 3)
    html = render_report(make_run(steps=(0, 1, 2, 4, 8)))
    assert [step["name"] for step in page_data_of(html)["steps"]] == ["0", "2", "8"]
    assert "Of 5 checkpoints it stops at 3" in words(html)


@pytest.mark.usefixtures("without_ink")
def test_every_verdict_stands_once_and_opens(claimed: Callable[..., Run], make_run: MakeRun) -> None:
    assert "The run folder holds no verdicts." in words(render_report(make_run()))
    told = (
        ("Groups act <together>", "not supported", None, "They don't."),
        ("The plateau grows", "supported", 0.004, "From 3 to 40 neurons."),
    )
    made = [
        Made(name=title, title=title, verdict=verdict, p_holm=p, sentence=sentence)
        for title, verdict, p, sentence in told
    ]
    html = render_report(claimed(tuple(made)))
    text = words(html)
    assert "Of 2 about this model: 1 supported, 1 not supported." in text
    assert text.index("The plateau grows supported p 0.0040") < text.index("Groups act <together> not supported no p")
    for of in made:
        assert text.count(of.sentence) == 1
        assert text.count(f"{of.title} {of.verdict}") == 1
    opens = [
        attributes["class"] for tag, attributes in Page(html).elements if tag == "details" and "class" in attributes
    ]
    assert opens == ["supported", "not-supported"]
    assert html.index('id="overview"') < html.index('id="claims"') < html.index('id="neurons"')


@pytest.mark.usefixtures("without_ink")
def test_the_first_screen_has_the_largest_neurons_with_their_words(make_run: MakeRun) -> None:
    run = add_details(make_run())
    table, details = run.effects().sort_values("rank"), read_explorer(run.folder())
    assert details is not None
    html = render_report(run)
    rows = re.findall(r'<tr role="row" id="[^"]*">.*?</tr>', html, re.DOTALL)
    assert len(rows) == 10
    for (_, row), shown in zip(table.iterrows(), rows, strict=False):
        assert f'href="#{row["neuron"]}"' in shown
        text = words(shown)
        for i in details.written[details.shown.tolist().index(row["index"])][:3]:
            assert visible(details.texts[int(i)].strip(" ") or details.texts[int(i)]) in text
    plain = words(render_report(make_run())).partition("How sure")[0]
    assert "promotes" not in plain
    assert "mean |Δ| 10⁻³ nats" in plain


@pytest.mark.usefixtures("without_ink")
def test_a_mechanism_is_shown_where_the_run_has_one(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path / "steps" / "512" / "effects.parquet"
    table = read_table(path)
    write_table(path, table.assign(**{KIND: np.where(table["rank"] == 2, "entropy", "")}))
    first = words(render_report(run)).partition("How sure")[0]
    assert first.count("entropy") == 1
    assert "kind" in first
    write_table(path, table)
    assert "kind" not in words(render_report(run)).partition("How sure")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "model": "org/some model",
            "counts": "a b.npy",
            "words": False,
            "n_tokens": 77,
            "layer": -2,
            "percentile": 12.5,
        },
        {"model": "org/m@step3", "rarity": "occurrences", "definitions": "released", "engine": "patching"},
        {"model": "org/m", "revision": "step3", "data": "t.jsonl", "dtype": "float64", "seed": 3},
    ],
)
def test_the_command_asks_for_the_same_study(changes: dict[str, Any]) -> None:
    settings = StudyConfig(**changes)
    planned = ["0", "512"] if settings.revision is None and "@" not in (settings.model or "") else ["3"]
    told = shlex.split(command(settings, planned))
    assert told[:2] == ["rareneuron", "study"]
    given = study.make_context("study", told[2:]).params
    asked = {k: v for k, v in given.items() if v is not None and k not in ("config", "dry_run", "as_json")}
    if "words" in asked:
        asked["words"] = asked["words"] == "on"
    assert StudyConfig(**asked).identity() == settings.identity()
    assert asked.get("steps") == (None if planned == ["3"] else (0, 512))


def test_a_checkpoint_of_unknown_step_is_not_asked_for_by_step() -> None:
    settings = StudyConfig(model="folder")
    assert command(settings, ["final"]) == "rareneuron study folder --n-tokens 25088"


@pytest.mark.usefixtures("without_ink")
def test_how_to_cite_agrees_with_the_citation_file(make_run: MakeRun) -> None:
    section = reproduce_section(findings(make_run()))
    items = dict(next(block.items for block in section.blocks if isinstance(block, Definitions)))
    citation = (Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8")
    assert f'title: "{TOOL_TITLE}"' in citation
    assert f"- name: {TOOL_AUTHORS}" in citation
    assert f"title = {{{TOOL_TITLE}}}" in items["cite the tool"]
    assert "version = {0.1.0}" in items["cite the tool"]
    assert re.search(r'title: "(Emergent.*)"', citation)[1] in items["cite the paper"]
    for entry in (items["cite the tool"], items["cite the paper"]):
        assert entry.count("{") == entry.count("}")
    assert items["command"].startswith("rareneuron study")
    assert "python 3.11.7" in items["environment"]


def test_ids_are_unique_and_anchors_lead_somewhere(make_run: MakeRun) -> None:
    elements = Page(render_report(make_run())).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"] for tag, a in elements if tag == "a"}
    assert links
    assert links <= {f"#{i}" for i in ids}


@pytest.mark.usefixtures("without_ink")
def test_summary_states_the_recorded_numbers(make_run: MakeRun) -> None:
    run = make_run()
    text = words(render_report(run))
    table = run.effects()
    top = table[table["delta_loss"] < 0].sort_values("rank").iloc[0]
    assert "60 neurons of layer 3 was replaced" in text
    assert text.count("Only 6 contexts stand behind these numbers, and 40 are needed") == 2  # here and at the phases
    assert "12 rare tokens (6 different targets, 6 contexts), at 2 checkpoints, step 0 to 512" in text
    assert f"suppressing neuron with the largest mean |Δ| is {top['neuron']}: mean Δ −" in text
    # every |mean Δ| is five errors from zero in the made-up run of 6 contexts, whose t is 2.57
    n_boosting = int((table["delta_loss"] > 0).sum())
    assert f"the 95 % interval of mean Δ leaves out zero for 60 of the 60 neurons ({n_boosting} above" in text
    assert "(ratio 2.0)" in text  # common effects are half of the rare ones, neuron by neuron
    assert "The unigram counts are the training set's (unigrams.npy)" in text


@pytest.mark.usefixtures("without_ink")
def test_errors_larger_than_effects_count_no_neuron(make_run: MakeRun) -> None:
    run = make_run(steps=(5,))
    path = run.path / "steps" / "5" / "effects.parquet"
    table = read_table(path)
    write_table(path, table.assign(delta_loss_se=table["delta_loss"].abs()))
    assert "mean Δ leaves out zero for 0 of the 60 neurons (0 above, 0 below)" in words(render_report(run))


@pytest.mark.usefixtures("without_ink")
def test_checkpoints_have_a_row_each(make_run: MakeRun) -> None:
    text = words(render_report(make_run(steps=(0, 143_000))))
    assert "143,000 9.250 5.500" in text
    assert "1.5 × 10⁻⁶ 9.7 × 10⁻⁸ 2.4 min" in text
    assert "seeded sample of (token, neuron) pairs (1,024 at the last checkpoint)" in text


@pytest.mark.parametrize(("step", "phrase"), [(512, "at step 512"), (None, "at the final checkpoint")])
@pytest.mark.usefixtures("without_ink")
def test_a_single_checkpoint_reads_right(make_run: MakeRun, step: int | None, phrase: str) -> None:
    text = words(render_report(make_run(steps=(step,))))
    assert f"6 contexts), {phrase}. A positive Δ" in text
    assert f"Neurons {phrase}" in text
    assert f"60 neurons · 12 rare tokens in 6 contexts of small corpus · {phrase}" in text
    assert "None" not in text


@pytest.mark.usefixtures("without_ink")
def test_patching_has_no_direct_effect_and_no_audit(make_run: MakeRun) -> None:
    closed, patched = (words(render_report(make_run(engine=e))) for e in ("closed-form", "patching"))
    assert "direct Δ" in closed
    assert "direct Δ" not in patched
    assert "Audit: none. The patching engine" in patched
    assert "Audit: none" not in closed
    assert "the MLP output is normalised" in patched


@pytest.mark.usefixtures("without_ink")
def test_unavailable_groups_give_their_reason(make_run: MakeRun) -> None:
    text = words(render_report(make_run(unavailable="There are 3 boosting neurons <and> too few.")))
    assert "There are no groups at step 0. There are 3 boosting neurons <and> too few." in text
    assert "There are no groups at step 512." in text
    assert "The groups are the" not in text


@pytest.mark.usefixtures("without_ink")
def test_without_common_targets_nothing_is_compared(make_run: MakeRun) -> None:
    text = words(render_report(make_run(common=False)))
    assert "at common targets" not in text
    assert "common: mean Δ" not in text


@pytest.mark.usefixtures("without_ink")
def test_counts_of_the_corpus_are_warned_of(make_run: MakeRun) -> None:
    page = render_report(make_run(counts_of="the corpus itself, not the training set"))
    notices = re.findall(r'<p class="notice">(.*?)</p>', page)
    assert any("the corpus itself, not the training set" in n and "nearly degenerate" in n for n in notices)


@pytest.mark.usefixtures("without_ink")
def test_warnings_stand_at_the_top(make_run: MakeRun) -> None:
    html = render_report(make_run(warnings=["Steps 0 and 1 have identical weights: <b>."]))
    assert html.index("Steps 0 and 1 have identical weights: &lt;b&gt;.") < html.index('id="summary"')


@pytest.mark.usefixtures("without_ink")
def test_an_unfinished_study_says_so(make_run: MakeRun) -> None:
    assert "has not come to its end: this report covers the 2 checkpoints" in words(
        render_report(make_run(finished=False))
    )
    assert "not come to its end" not in words(render_report(make_run()))


@pytest.mark.usefixtures("without_ink")
def test_a_run_without_checkpoints_is_refused(make_run: MakeRun) -> None:
    run = make_run(steps=())
    with pytest.raises(RunFolderError, match="no finished checkpoint"):
        write_report(run)
    assert not (run.path / "report.html").exists()


@pytest.mark.usefixtures("without_ink")
def test_no_neuron_of_a_sign_and_no_standard_error(make_run: MakeRun) -> None:
    run = make_run(steps=(5,))
    path = run.path / "steps" / "5" / "effects.parquet"
    table = read_table(path)
    errors = {name: np.nan for name in table if name.endswith("_se")}
    write_table(path, table.assign(delta_loss=table["delta_loss"].abs(), **errors))
    text = words(render_report(run))
    assert text.count("No neuron is suppressing.") == 2  # summary and table
    assert "With a single context there is no standard error." in text
    assert re.search(r"\bnan\b", text) is None


@pytest.mark.usefixtures("without_ink")
def test_hostile_text_stays_text(make_run: MakeRun) -> None:
    tame = Page(render_report(make_run(words=tuple(f"w{i}" for i in range(len(HOSTILE))))))
    html = render_report(make_run(words=HOSTILE))
    page = Page(html)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in tame.elements], "a token's text has become markup"
    for seen in (
        "<script>alert(1)</script>",
        "\"' onload=x",
        "{{ 7 * 7 }}",
        "</svg></table>",
        "⟨U+202E⟩gnp",
        "⟨U+0000⟩⟨U+001B⟩↵⇥",
        "\ufffd",
        "␣led",
        "⟨U+200B⟩",
        "&lt;",
    ):
        assert seen in page.text
    assert not set("\x00\x1b\t\u202e\u200b") & set(html)


@pytest.mark.usefixtures("without_ink")
def test_names_from_outside_are_escaped_and_shown_too(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(model="org/<i>\u202emodel\ud800", warnings=["a\u2066b"])
    html = write_report(run).read_text(encoding="utf-8")
    assert "org/&lt;i&gt;⟨U+202E⟩model⟨U+D800⟩" in html
    assert "a⟨U+2066⟩b" in html
    assert not set("\u202e\u2066") & set(html)


@pytest.mark.usefixtures("without_ink")
@pytest.mark.parametrize(
    ("rule", "percentile", "phrase"),
    [
        ("types", 50.0, "below which 50 % of the vocabulary lie"),
        ("occurrences", 25.0, "at most 25 % of all occurrences"),
        ("elbow", None, "at the elbow"),
        ("none", None, "Rarity rule: none."),
    ],
)
def test_every_rule_has_its_words(make_run: MakeRun, rule: str, percentile: float | None, phrase: str) -> None:
    run = make_run()
    manifest = read_json(run.path / "run.json")
    manifest["data"]["rarity"] |= {"rule": rule, "percentile": percentile}
    write_json(run.path / "run.json", manifest)
    assert phrase in words(render_report(open_run(run.path)))


@pytest.mark.usefixtures("without_ink")
@pytest.mark.parametrize(("count", "warned"), [(None, False), (1, True), (2, False)])
def test_a_threshold_among_types_hardly_seen_is_warned_of(make_run: MakeRun, count: int | None, warned: bool) -> None:
    run = make_run()
    manifest = read_json(run.path / "run.json")
    manifest["data"]["rarity"] |= {"count_at_threshold": count}
    write_json(run.path / "run.json", manifest)
    said = "The count at the threshold is 1: 50 % of the types were never or once seen"
    assert (said in words(render_report(open_run(run.path)))) == warned


@pytest.mark.usefixtures("without_ink")
def test_without_the_word_filter_no_words_are_claimed(make_run: MakeRun) -> None:
    run = make_run()
    assert "whole English words" in words(render_report(run))
    manifest = read_json(run.path / "run.json")
    manifest["config"]["words"] = False
    write_json(run.path / "run.json", manifest)
    assert "whole English words" not in words(render_report(open_run(run.path)))


def test_the_report_with_every_figure_stays_small(planted: MakeRun) -> None:
    steps = tuple(range(10))
    assert len(render_report(planted(steps=steps)).encode()) < 1_000_000  # 5 MB is the limit, for 154 steps too


def test_every_section_has_a_twin_in_json(planted: MakeRun) -> None:
    html = render_report(planted())
    found = dict(re.findall(r'<script type="application/json" id="data-([^"]*)" data-of="[^"]*">(.*?)</script>', html))
    anchors = [a["id"] for tag, a in Page(html).elements if tag == "section" and "class" not in a]
    assert list(found) == anchors
    for text in found.values():
        assert not set("<>&") & set(text)
        assert text.isascii()
    parts = [part for text in found.values() for part in json.loads(text)["parts"]]
    figures = {part["figure"]: part for part in parts if "figure" in part}
    curve = figures["Effect of each neuron on rare tokens, by rank"]
    assert curve["rows"] == len(curve["columns"]["rank"]) < curve["of"]
    assert max(curve["columns"]["abs_delta_loss"]) == pytest.approx(
        max(planted().effects(step)["abs_delta_loss"].max() for step in (0, 512)), rel=1e-3
    )
    table = next(part for part in parts if part.get("columns") and part.get("caption", "").startswith("Mean loss"))
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}


def test_columns_of_a_figure_keep_its_ends_and_say_how_many_there_were() -> None:
    frame = pd.DataFrame({"rank": np.arange(1, 5001), "value": np.linspace(1, 0, 5000), "step": "8", "none": np.nan})
    found = columns_of(frame)
    assert found["of"] == 5000
    assert found["rows"] == len(found["columns"]["rank"]) < 1000
    assert (found["columns"]["rank"][0], found["columns"]["rank"][-1]) == (1, 5000)
    assert found["columns"]["step"] == "8"
    assert found["columns"]["none"] is None
    assert columns_of(None) == {}


@pytest.mark.parametrize(
    ("corpus", "name"),
    [
        ("/somewhere/texts.jsonl.gz", "texts.jsonl.gz"),
        ("./texts", "texts"),
        ("org/data", "org/data"),
        ("small corpus",) * 2,
    ],
)
def test_a_corpus_is_called_by_its_name(corpus: str, name: str) -> None:
    assert corpus_name(corpus) == name
