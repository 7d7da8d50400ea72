"""The section on phases: every outcome has its words, and so has every reason."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from rareneuron.maths.phases import Phases
from rareneuron.maths.released import ReleasedPhases
from rareneuron.present.report import render_report
from rareneuron.present.sections.phases import meaning
from rareneuron.runs.run import Run

MakeRun = Callable[..., Run]


@pytest.mark.usefixtures("without_ink")
def test_the_report_tells_phases_after_the_rank_curve(planted: MakeRun) -> None:
    run = planted()
    html = render_report(run)
    assert html.index('id="overview"') < html.index('id="phases"') < html.index('id="checkpoints"')
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", html))
    found = run.phases()
    end, share = found.plateau_end, f"{100 * (found.plateau_share or 0):.1f} %"
    assert f"Step 512: three phases. The first {end} neurons, {share} of the layer, lie above" in text
    assert "At common targets: no plateau (" in text
    assert "so the plateau is that of rare ones." in text
    assert "all neurons boosting suppressing common targets" in text
    assert f"κ {found.kappa:.3f} ({found.intervals['kappa'][0]:.3f} … {found.intervals['kappa'][1]:.3f}) " in text
    assert re.search(rf"plateau, to rank {end} \(\d+ … \d+\), {share} .* – decay, from rank", text)
    assert "Phases unknown" not in text
    kappa = run.phases(0).kappa
    null = f"Step 0, before any training, is the null (all): it gives κ = {kappa:.3f}, three phases; step 512 gives"
    assert null in text


@pytest.mark.usefixtures("without_ink")
def test_the_report_says_which_phases_are_unknown(make_run: MakeRun) -> None:
    html = render_report(make_run(common=False))
    notices = re.findall(r'<p class="notice">(.*?)</p>', html)
    assert any(
        "Phases unknown: all neurons, boosting, suppressing. The run folder holds no phases" in n for n in notices
    )
    assert any("Phases unknown: common targets. No common target" in n for n in notices)


@pytest.mark.parametrize(
    ("outcome", "plateau", "common", "said"),
    [
        ("three phases", 24, 24, "so it isn't about rare ones alone."),
        ("no decay", 24, None, "the last ones not clearly below it. At common targets:"),
        ("no plateau", None, None, "the first neurons don't stand out above it."),
        ("no power law", None, 24, "nothing that a plateau or a decay could be measured against."),
    ],
)
def test_every_outcome_has_its_words(
    layer: tuple[pd.DataFrame, dict[str, Any]], outcome: Any, plateau: int | None, common: int | None, said: str
) -> None:
    found: Phases = replace(layer[1]["all"], outcome=outcome, plateau_end=plateau)
    text = meaning(found, replace(layer[1]["all"], plateau_end=common), "Step 5")
    assert text.startswith(f"Step 5: {outcome}")
    assert said in text
    assert ("rare ones" in text) == (plateau is not None), "without a plateau there is nothing to set beside another"
    assert "common" not in meaning(found, "no common target", "Step 5")


@pytest.mark.usefixtures("without_ink")
def test_the_report_of_released_definitions_says_so_and_has_no_verdict(planted: MakeRun) -> None:
    run = planted(definitions="released")
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", render_report(run)))
    found = run.phases(512, "boosting")
    assert isinstance(found, ReleasedPhases)
    assert "Definitions: “released”, what the authors&#39; released scripts compute" in text
    assert f"κ, log rank 3.5 … 4.5 {found.kappa:.3f} β {found.beta:.3f}" in text
    assert "Phases unknown: suppressing. The curve has 171 neurons" in text
    assert "Definitions: “released” for phases" in text
    assert not [outcome for outcome in ("no plateau", "no decay", "no power law") if outcome in text]
    assert "Definitions: “paper”. κ and R²" in render_report(planted())
