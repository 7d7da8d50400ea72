"""The card: Markdown that says what the report says, escapes what it quotes, and cites."""

import re

import pytest

from rareneuron.present.card import LIMITS, card
from rareneuron.present.sections.reproduce import PAPER, command
from rareneuron.runs.files import read_json, write_json
from rareneuron.runs.run import open_run

from .test_compare import changed, with_claims


def sections(text):
    return re.findall(r"^#+ (.*)$", text, re.M)


def test_the_parts_of_a_card(make_run):
    run = with_claims(make_run(), a="supported", b="not supported")
    text = card(run)
    assert sections(text) == ["Rare-token neurons of embedded series", "Findings", "Limits", "Provenance", "Cite"]
    assert "| Claim a | supported | – | – | – |" in text
    assert PAPER in text
    assert "@software{rareneuron" in text
    assert command(run.manifest.config, []) in text
    assert all(limit.split("|")[0] in text for limit in LIMITS)
    assert "ab" * 32 in text, "the weights' hash"
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text)


def test_groups_are_cut_to_the_largest_of_either_sign(make_run):
    text = card(make_run())
    rows = re.findall(r"^\| (3\.\d+) \| (boosting|suppressing) \|", text, re.M)
    assert [role for _, role in rows] == ["boosting"] * 5 + ["suppressing"] * 5
    run = make_run()
    assert {name for name, _ in rows[:5]} == set(run.effects()["neuron"].iloc[run.groups().boosting])


@pytest.mark.parametrize("cause", ["no claims", "no groups", "patching", "own counts"])
def test_what_is_missing_is_said(make_run, cause):
    run = {
        "no claims": make_run,
        "no groups": lambda: make_run(unavailable="Only three neurons boost here."),
        "patching": lambda: make_run(engine="patching", common=False),
        "own counts": lambda: make_run(counts_of="small corpus"),
    }[cause]()
    said = {
        "no claims": "The run folder holds no verdicts",
        "no groups": "No groups. Only three neurons boost here.",
        "patching": "the patching engine is itself the standard",
        "own counts": "Rarity was counted over small corpus, not over what the model was trained on",
    }[cause]
    assert said in card(run)


def test_names_are_text(make_run):
    run = changed(make_run(), "config", model="a|b`c\n```\n# not a heading <script>")
    manifest = read_json(run.path / "run.json")
    manifest["warnings"] = ["[x](y) | `code`"]
    write_json(run.path / "run.json", manifest)
    text = card(open_run(run.path))
    assert len(re.findall(r"^```", text, re.M)) == 4, "two fences, and none from the name"
    assert sections(text)[0].startswith("Rare-token neurons of a\\|b")
    assert "not a heading" not in [s.strip() for s in sections(text)[1:]]
    assert "\\[x](y) \\| \\`code\\`" in text
