"""A neuron's panel in a real browser: every Δ, examples, mechanism, links to it, its JSON, the line that is copied."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rareneuron.maths.significance import t_quantile
from rareneuron.present.findings import findings
from rareneuron.present.mechanism import KIND, QUANTITIES
from rareneuron.present.page_data import page_data
from rareneuron.present.page_json import embedded_json
from rareneuron.present.report import render_report, write_report
from rareneuron.runs.files import read_table, write_table
from rareneuron.runs.neurons import N_CONTEXTS, QUANTILES, read_explorer
from rareneuron.runs.run import Run, open_run
from tests.present.browser import Page
from tests.present.explorer_run import WHOLE, add_details

Opened = Callable[..., Page]
JSON_OF = """const twin = document.querySelector(arguments[0] + ' > .twin'); twin.open = true;
    twin.dispatchEvent(new Event('toggle')); return twin.querySelector('pre').textContent"""


def minus(text: str) -> float:
    return float(text.replace("−", "-"))


def test_every_token_of_a_text_has_its_exact_effect(opened: Opened) -> None:
    page = opened(details={})
    record = json.loads(page.run(JSON_OF, "#neuron-panel"))
    shown = "return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)"
    for k, context in enumerate(record["contexts"]):
        expected = [x for x in context["delta"] if x is not None]
        assert len(expected) >= len(context["tokens"]) - 1
        numbers = page.run(shown, f".contexts li:nth-child({k + 1}) .text sub")
        analysed = {int(place) for place in context["analysed"]}
        told = [minus(text) for text in numbers]
        for place, value in enumerate(context["delta"]):
            if place not in analysed:
                assert told[place] == pytest.approx(value, rel=0.06)  # two digits
        assert told[context["target"]] == pytest.approx(context["analysed"][str(context["target"])], rel=0.06)
    assert "exact Δ in nats below it" in page.text("#neuron-panel")
    page.run("document.querySelectorAll('#neuron-rows button')[arguments[0]].click()", WHOLE)  # the first without
    assert f"kept for the {WHOLE} neurons of the first ranks" in page.text("#neuron-panel")
    assert page.complaints() == []


def test_numbers_below_tokens_can_all_be_shown(opened: Opened) -> None:
    page = opened(details={})
    visible = "return [...document.querySelectorAll('.text sub')].filter((n) => n.offsetHeight > 0).length"
    some = page.run(visible)
    assert some > 0
    page.click(".legend input")
    every = page.run(visible)
    assert every == len(page.all(".text sub")) > some


def test_examples_stand_by_quantile_of_effect_and_of_activation(opened: Opened) -> None:
    page = opened(details={})
    lists = page.all(".examples")
    assert len(lists) == 2
    heads = page.run("return [...document.querySelectorAll('.examples .quantile')].map((n) => n.textContent)")
    assert heads == ["lowest", "5 %", "25 %", "median", "75 %", "95 %", "highest"] * 2
    record = json.loads(page.run(JSON_OF, "#neuron-panel"))["examples"]
    assert [e["quantile"] for e in record["by_delta"]] == list(QUANTILES)
    assert [e["delta"] for e in record["by_delta"]] == sorted(e["delta"] for e in record["by_delta"])
    assert len(page.all(".examples .target")) == 2 * len(QUANTILES)


def test_a_run_of_an_older_version_says_what_it_lacks(opened: Opened) -> None:
    page = opened(details={"older": True})
    text = page.text("#neuron-panel")
    assert "Δ at other tokens isn't measured in this run" in text
    assert "it is of an older version" in text
    assert text.count("Not measured in this run.") == 2  # mechanism, and how far its ablation moves the stream
    assert len(page.all(".contexts li")) == N_CONTEXTS
    assert page.complaints() == []


def with_columns(run: Run) -> Run:
    """The same run with what a newer version measures of every neuron."""
    path = run.path / "steps" / "512" / "effects.parquet"
    table, rng = read_table(path), np.random.default_rng(0)
    for of in QUANTITIES:
        value = rng.uniform(-0.5, 1, len(table))
        ends = {"_se": 0.1} if of.unit else {"_low": value - 0.1, "_high": value + 0.1}
        table = table.assign(**{of.column: value}, **{f"{of.column}{end}": x for end, x in ends.items()})
    kind = np.where(table["rank"] % 2 == 1, "entropy", "")
    write_table(path, table.assign(**{KIND: kind, "move": rng.uniform(0.1, 3, len(table))}))
    return run


def test_mechanism_and_neurons_like_it_are_drawn(chromium: Any, make_run: Any, without_ink: None) -> None:
    run = with_columns(add_details(make_run()))
    page = Page(chromium, write_report(run))
    table = run.effects().sort_values("rank").reset_index(drop=True)
    first = page.one("#neuron-panel .part").text
    assert "Kind: entropy." in first
    for of in QUANTITIES:
        assert of.label in first
    assert len(page.all("#neuron-panel > .part .bar-row")) == len(QUANTITIES)
    assert page.run("return document.querySelectorAll('.bar-plot .interval').length") >= len(QUANTITIES)
    heads = page.run("return [...document.querySelectorAll('#neuron-head th')].map((th) => th.dataset.key)")
    assert "kind" in heads
    record = json.loads(page.run(JSON_OF, "#neuron-panel"))
    for of in QUANTITIES:
        found = record["mechanism"][of.column]
        assert found["value"] == pytest.approx(table[of.column][0], rel=1e-3)
        half = 0.1 * t_quantile(run.manifest.data.n_contexts) if of.unit else 0.1
        assert [found["low"], found["high"]] == pytest.approx([found["value"] - half, found["value"] + half], rel=2e-3)
    distance = np.log(table["move"] / table["move"][0]).abs()
    others = table.assign(distance=distance).iloc[1:]
    others = others[(others["role"] == "other") | (others["role"] != table["role"][0])]
    assert record["alike"] == others.sort_values("distance")["neuron"].head(4).tolist()
    links = page.run("return [...document.querySelectorAll('.alike a')].map((a) => a.textContent)")
    assert links == record["alike"]
    page.run("document.querySelectorAll('#neuron-rows button')[1].click()")
    assert "Kind:" not in page.text("#neuron-panel")
    assert page.complaints() == []


def test_a_wide_layer_keeps_mechanisms_of_detailed_neurons_alone(
    chromium: Any, make_run: Any, without_ink: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_columns(add_details(make_run(), most=8))
    whole = len(embedded_json(page_data(findings(run))))
    monkeypatch.setattr("rareneuron.present.page_data.MOST_BYTES", whole - 1)
    page = Page(chromium, write_report(run))
    assert QUANTITIES[0].label in page.one("#neuron-panel .part").text
    assert "mechanism" in json.loads(page.run(JSON_OF, "#neuron-panel"))
    page.run("document.querySelectorAll('#neuron-rows button')[8].click()")
    assert "Kept for the largest neurons alone" in page.text("#neuron-panel")
    assert page.complaints() == []


@pytest.mark.slow
def test_the_report_of_a_very_wide_layer_keeps_to_five_megabytes(make_run: Any, without_ink: None) -> None:
    run = with_columns(add_details(make_run(n_neurons=28_672, steps=(512,)), most=150))
    page = render_report(run).encode()
    assert len(page) < 5_000_000
    data = page_data(findings(run))
    assert len(data["neurons"]["delta"]) == 28_672
    assert 0 < len(data["details"]["shown"]) < 150
    assert set(data["mechanism"][0]["value"]) == {str(i) for i in data["details"]["shown"]}


def test_an_address_opens_its_neuron(opened: Opened) -> None:
    page = opened(details={})
    page.run("location.hash = '#3.17'")
    page.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert page.text("#neuron-title") == "Neuron 3.17"
    page.click("#neuron-rows button")
    other = page.text("#neuron-title").removeprefix("Neuron ")
    assert page.run("return location.hash") == f"#{other}"
    assert page.one(".permalink").get_attribute("href").endswith(f"#{other}")
    page.driver.back()
    page.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert page.text("#neuron-title") == "Neuron 3.17"
    for address in ("#3.99999", "#2.17", "#claims", "#3.17x"):  # no neuron of this layer: nothing else opens
        page.run("location.hash = arguments[0]", address)
        page.driver.execute_async_script("setTimeout(arguments[0], 100)")
        assert page.text("#neuron-title") == "Neuron 3.17"
    page.driver.get("about:blank")
    page.driver.get(page.path.as_uri() + "#3.21")
    assert page.text("#neuron-title") == "Neuron 3.21"
    assert page.complaints() == []


def test_a_line_of_the_first_screen_leads_to_its_neuron(opened: Opened) -> None:
    page = opened(details={})
    name = page.all(".neuron-link")[3].text
    page.run("document.querySelectorAll('.neuron-link')[3].click()")
    page.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert page.text("#neuron-title") == f"Neuron {name}"
    page.run("document.querySelectorAll('#neuron-rows button')[0].click()")
    page.run("document.querySelectorAll('.neuron-link')[3].click()")
    page.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert page.text("#neuron-title") == f"Neuron {name}"
    assert page.complaints() == []


def test_the_line_that_switches_it_off_is_copied(opened: Opened) -> None:
    page = opened(details={})
    name = page.column(1)[0]
    line = f'with rn.ablated(model, run, units="{name}"):'
    assert page.text(".code-line code") == line
    page.run(
        "window.copied = []; Object.defineProperty(navigator, 'clipboard', { configurable: true,"
        "value: { writeText: (text) => { copied.push(text); return Promise.resolve(); } } })"
    )
    page.one(".code-line button.copy").send_keys("\ue007")
    assert page.run("return copied") == [line]
    page.run(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined });"
        "document.addEventListener('copy', () => copied.push(document.activeElement.value))"
    )
    page.one(".code-line button.copy").send_keys("\ue007")  # by a selection, where a page may not use the clipboard
    assert page.run("return copied") == [line, line]
    assert page.text(".code-line .copied") == "copied"
    assert page.complaints() == []


def test_every_part_has_a_twin_in_json(opened: Opened) -> None:
    page = opened(details={})
    sections = page.run("return [...document.querySelectorAll('section[id]')].map((n) => n.id)")
    for section in sections:
        found = json.loads(page.run(JSON_OF, f"#{section}"))
        assert found
    run = open_run(page.path.parent)
    details, first = read_explorer(run.folder()), run.effects().sort_values("rank").iloc[0]
    assert details is not None
    record = json.loads(page.run(JSON_OF, "#neuron-panel"))
    assert record["neuron"] == first["neuron"]
    assert record["delta"] == pytest.approx(first["delta_loss"], rel=1e-3)
    np.testing.assert_allclose([rho for _, rho in record["neighbours"]], details.correlation[0], rtol=1e-3)
    page.run(
        "window.saved = []; HTMLAnchorElement.prototype.click = function () { saved.push([this.download, this.href]); }"
    )
    page.click("#neuron-panel > .twin button")
    name, address = page.run("return window.saved[0]")
    assert name == f"neuron-{record['neuron']}.json"
    assert address.startswith("blob:")
    assert page.complaints() == []


CONTRASTS = r"""
const parsed = (text) => text.match(/[\d.]+/g).map(Number);
const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map((k) => a * top[k] + (1 - a) * below[k]); };
const linear = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
const light = (c) => { const [r, g, b] = c.map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const paper = (node) => { const below = node.parentElement ? paper(node.parentElement) : [255, 255, 255];
  return over(parsed(getComputedStyle(node).backgroundColor), below); };
const out = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
  if (!text || node.closest('svg, script, noscript, :disabled') || !node.checkVisibility()) continue;
  const style = getComputedStyle(node), below = paper(node);
  const [a, b] = [light(over(parsed(style.color), below)), light(below)].sort((x, y) => y - x);
  let seen = 1;
  for (let up = node; up; up = up.parentElement) seen *= Number(getComputedStyle(up).opacity);
  out.push([(a + 0.05) / (b + 0.05), seen, text.slice(0, 40), node.className]);
}
return out"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_told_from_its_ground(opened: Opened, scheme: str) -> None:
    """4.5 : 1, as WCAG 2 asks of text at level AA."""
    page = opened(details={}, scheme=scheme)
    page.click(".legend input")
    found = page.run(CONTRASTS)
    assert len(found) > 500
    assert [row for row in found if row[0] < 4.5 or row[1] < 0.6] == []
    page.run("document.querySelector('.soft').style.color = 'rgb(128 128 128 / .5)'")
    assert any(row[0] < 4.5 for row in page.run(CONTRASTS)), "the check can fail"


def test_names_of_any_length_fit_a_telephone(opened: Opened) -> None:
    page = opened(
        details={}, width=390, model="an-organisation/a-model-with_a.very-long-name-and-no-spaces-1.5b-instruct"
    )
    assert page.run("return document.documentElement.scrollWidth") <= 390
    assert page.run("return document.querySelectorAll('h1 wbr').length") >= 8
    wide = page.run(
        "return [...document.querySelectorAll('header *, #claims *, .panel *')].filter((n) => n.checkVisibility() &&"
        "!n.closest('.scroll, svg, textarea') && n.getBoundingClientRect().right > 391)"
        ".map((n) => n.className || n.tagName)"
    )
    assert wide == []
