"""The report in a real browser, opened as a file with the network off: it loads, sorts, filters, moves and opens.

Skipped, loudly, where there is no Chromium with its driver (tests/SKIPS.md); `.ci/run` installs them.
"""

import re
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.colors import to_hex

from rareneuron.present.report import write_report
from rareneuron.present.style import DARK, LIGHT, dark_colours
from rareneuron.runs.run import Run
from tests.present.browser import Page
from tests.present.explorer_run import HOSTILE

MakeRun = Callable[..., Run]


def test_it_loads_alone_and_shows_the_first_neuron(opened: Callable[..., Page]) -> None:
    page = opened(details={})
    assert page.text("#neuron-count") == "1–20 of 60 neurons"
    assert page.column(3)[:3] == ["1", "2", "3"]
    assert page.text("#neuron-title") == f"Neuron {page.column(1)[0]}"
    assert len(page.all("#chart-curve polyline")) == 3
    assert page.complaints() == []


def test_a_stranger_is_noticed_and_refused(opened: Callable[..., Page]) -> None:
    """The checks above can fail: an error, a request, a script that isn't ours."""
    page = opened(details={})
    assert page.complaints() == []
    page.run(
        "const image = document.createElement('img'); image.src = 'http://example.org/x.png';"
        "const script = document.createElement('script'); script.textContent = 'window.harmed = 1';"
        "document.body.append(image, script); console.error('noticed')"
    )
    said = " ".join(page.complaints())
    assert "noticed" in said
    assert said.count("Content Security Policy") >= 2
    assert page.run("return window.harmed") is None


def test_the_table_sorts_by_every_column(opened: Callable[..., Page]) -> None:
    page = opened(details={"gated": True})
    heads = page.run("return [...document.querySelectorAll('#neuron-head th')].map((th) => th.dataset.key)")
    assert heads == [
        "name", "role", "rank", "delta", "interval", "size", "direct", "common_size", "ratio", "w_in", "w_gate",
        "w_out",
    ]  # fmt: skip
    for key in heads:
        page.click(f"#neuron-head [data-key={key}] button")
        first = page.column(1)
        way = page.one(f"#neuron-head [data-key={key}]").get_attribute("aria-sort")
        assert len(page.all("#neuron-head [aria-sort]")) == 1
        page.click(f"#neuron-head [data-key={key}] button")
        assert {way, page.one(f"#neuron-head [data-key={key}]").get_attribute("aria-sort")} == {
            "ascending",
            "descending",
        }
        assert key in ("role", "ratio", "w_out", "interval") or page.column(1) != first  # those hold ties here
    page.click("#neuron-head [data-key=delta] button")
    values = [float(text.replace("−", "-").replace("+", "")) for text in page.column(4)]
    assert values == sorted(values, reverse=True)
    assert page.complaints() == []


def test_the_table_filters_by_role_and_text(opened: Callable[..., Page]) -> None:
    page = opened(details={})
    total = 0
    for role in ("boosting", "suppressing"):
        page.typed("#filter-role", role)
        assert set(page.column(2)) == {role}
        total += len(page.column(2))
    assert total == 12
    page.typed("#filter-role", "negative")
    assert all(cell.startswith("−") for cell in page.column(4))
    page.typed("#filter-role", "all")
    page.typed("#filter-text", "3.17")
    assert page.column(1) == ["3.17"]
    page.typed("#filter-text", "WINDOW.HARMED")
    n = page.text("#neuron-count")
    assert n.endswith("neurons")
    assert not n.startswith("1–1 of 1 ")
    page.typed("#filter-text", "no such token")
    assert page.text("#neuron-count") == "No neuron passes these filters."
    assert page.column(1) == []
    page.typed("#filter-text", "")
    page.click("#page-last")
    assert page.text("#neuron-count") == "41–60 of 60 neurons"
    assert page.one("#page-on").get_attribute("disabled")
    assert page.complaints() == []


def test_the_slider_moves_all_charts(opened: Callable[..., Page]) -> None:
    page = opened(details={})
    assert page.text("#step-name") == "step 512"
    drawn = "return document.querySelector(arguments[0] + ' .main').getAttribute('points')"
    charts = ("#chart-curve", "#chart-slope", "#chart-density")
    before = [page.run(drawn, chart) for chart in charts]
    page.one("#step-slider").send_keys("\ue012")  # the left arrow
    assert page.text("#step-name") == "step 8"
    assert page.one("#step-slider").get_attribute("aria-valuetext") == "step 8"
    assert all(page.run(drawn, chart) != old for chart, old in zip(charts, before, strict=True))
    page.click("#step-back")
    assert page.text("#step-name") == "step 0"
    assert page.one("#step-back").get_attribute("disabled")
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.text("#step-name") == "step 512"
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.text("#step-name") == "step 0"
    assert page.complaints() == []


def test_charts_read_out_and_zoom(opened: Callable[..., Page]) -> None:
    page = opened(details={})
    chart = page.one("#chart-curve svg")
    chart.send_keys("\ue011", "\ue014")  # home, right arrow
    assert page.text("#chart-curve .readout").startswith("rank 2: neuron 3.")
    ticks = "return [...document.querySelectorAll('#chart-curve .tick.x')].map((t) => t.textContent)"
    whole = page.run(ticks)
    page.run(
        """const svg = document.querySelector('#chart-curve svg'), box = svg.getBoundingClientRect();
        for (const [kind, part] of [['pointerdown', 0.3], ['pointermove', 0.5], ['pointerup', 0.6]]) {
          const at = { clientX: box.left + part * box.width, clientY: box.top + 50, button: 0, bubbles: true };
          svg.dispatchEvent(new PointerEvent(kind, at));
        }"""
    )
    assert page.run(ticks) != whole
    page.run("document.querySelector('#chart-curve svg').dispatchEvent(new MouseEvent('dblclick', { bubbles: true }))")
    assert page.run(ticks) == whole
    page.click("#chart-curve .tools button")
    assert page.run(ticks) != whole
    page.click("#chart-curve .tools button:last-child")
    assert page.run(ticks) == whole
    assert page.complaints() == []


def test_a_neuron_opens_by_keyboard_with_everything_it_has(opened: Callable[..., Page]) -> None:
    page = opened(details={})
    name = page.column(1)[1]
    page.one("#neuron-rows button").send_keys("\ue015")  # the down arrow
    assert page.run("return document.activeElement.textContent") == name
    page.driver.switch_to.active_element.send_keys("\ue007")  # enter
    assert page.text("#neuron-title") == f"Neuron {name}"
    assert page.run("return document.activeElement.id") == "neuron-title"
    assert len(page.all(".contexts li")) == 5
    assert len(page.all(".contexts .target")) == 5
    assert [len(page.all(f".two > div:nth-child({k}) .tokens li")) for k in (1, 2)] == [8, 8]
    assert len(page.all("#chart-activations .bar")) == 20
    assert len(page.all("#chart-path .dot.main")) == 3
    neighbours = page.all(".neighbours a")
    assert 4 <= len(neighbours) <= 5
    other = neighbours[0].text
    page.click(".neighbours a")
    page.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert page.text("#neuron-title") == f"Neuron {other}"
    assert page.complaints() == []


def test_hostile_tokens_are_shown_and_do_nothing(opened: Callable[..., Page]) -> None:
    page = opened(details={})
    seen = ""
    for row in range(12):
        page.run("document.querySelectorAll('#neuron-rows button')[arguments[0]].click()", row)
        seen += page.text("#neuron-panel")
    for text in HOSTILE:
        for piece in {
            "\u202egnp": ["⟨U+202E⟩gnp"],
            "\u2066\u200f": ["⟨U+2066⟩⟨U+200F⟩"],
            "\u2028\u2029": ["⟨U+2028⟩⟨U+2029⟩"],
            "\x00\x1b\x07": ["⟨U+0000⟩⟨U+001B⟩⟨U+0007⟩"],
            "\n\n\t": ["↵↵⇥"],
            "\ud800": ["⟨U+D800⟩"],
            "\u0301": ["◌\u0301"],
            "👩\u200d💻": ["👩⟨U+200D⟩💻"],
            "  ": ["␣␣"],
            " plain": ["␣plain", " plain"],
        }.get(text, [text]):
            assert piece in seen, piece
    assert not set("\x00\x1b\x07\u202e\u2066\u200f\u2028\u2029\u200d") & set(seen)
    assert page.run("return window.harmed") is None
    assert page.run("return document.querySelectorAll('img, iframe, object').length") == 0
    assert page.run("return [...document.scripts].filter((s) => s.type !== 'application/json').length") == 1
    assert page.complaints() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"details": None}, "This run holds no contexts"),
        ({"details": {"readout": False}}, "There is no readout here"),
        ({"details": {"most": 10}}, "kept for the 10 neurons with the largest mean |Δ|"),
        ({"details": {}, "common": False, "engine": "patching"}, "Rank 60 of 60"),
        ({"details": {}, "steps": (None,)}, "Rank 60 of 60"),
        ({"details": {}, "unavailable": "Too few."}, "Rank 60 of 60"),
    ],
)
def test_runs_of_every_kind_work(opened: Callable[..., Page], changes: dict[str, Any], said: str) -> None:
    page = opened(**changes)
    page.click("#page-last")
    page.click("#neuron-rows tr:last-child")
    assert said in page.text("#neuron-panel")
    assert "NaN" not in page.text("main")
    assert "undefined" not in page.text("main")
    assert page.complaints() == []


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(opened: Callable[..., Page], width: int, scheme: str) -> None:
    page = opened(width=width, scheme=scheme, details={})
    assert page.run("return document.documentElement.scrollWidth") <= width
    lightness = "return getComputedStyle(document.body).backgroundColor"
    assert (page.run(lightness) == "rgb(255, 255, 255)") == (scheme == "light")
    assert page.complaints() == []


def test_without_scripts_all_but_the_explorer_is_there(opened: Callable[..., Page], chromium: Any) -> None:
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page = opened(details={})
        shown = page.one("main").text
        assert "JavaScript is off" in shown
        assert "Rare targets" in shown
        assert not page.one("#explorer").is_displayed()
        assert page.complaints() == []
    finally:
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_figures_change_their_colours_with_the_screen(chromium: Any, make_run: MakeRun) -> None:
    """One drawing, dark or light; paper is light whatever the screen."""
    path = write_report(make_run(n_neurons=300))
    used = """return [...new Set([...document.querySelectorAll('figure svg :is(path, text, use)')].flatMap((node) => {
        const style = getComputedStyle(node); return [style.fill, style.stroke]; }))]"""
    seen = {}
    for name, scheme, media in (("light", "light", ""), ("dark", "dark", ""), ("print", "dark", "print")):
        page = Page(chromium, path, scheme=scheme)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        seen[name] = {to_hex([int(x) / 255 for x in re.findall(r"\d+", c)[:3]]) for c in page.run(used) if "rgb" in c}
        titles = page.run("return [...document.querySelectorAll('figure > [role=img]')].map((n) => n.ariaLabel)")
        assert len(titles) == len(set(titles)) >= 5
        assert page.complaints() == []
    assert {LIGHT.paper, LIGHT.ink} <= seen["light"]
    assert {DARK.paper, DARK.ink} <= seen["dark"]
    assert {dark_colours()[colour] for colour in seen["light"] if colour in dark_colours()} <= seen["dark"]
    assert not {LIGHT.paper, LIGHT.ink} & seen["dark"]
    assert seen["print"] == seen["light"]
