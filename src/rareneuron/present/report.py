"""The report: one HTML file that needs nothing else, with a run's numbers and where they come from.

No request, no font from elsewhere: styles, figures, data and one script are inside, so it can be mailed, printed and
read years later. The page's policy lets no other script run and nothing be loaded. Every string goes through
`without_hidden` and then jinja2's escaping, or into JSON that holds no markup; only figures, which this package draws,
go in as they are. Without scripts the slider and the explorer are missing, and the rest stands. The same run gives
the same bytes.
"""

import hashlib
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rareneuron.present.blocks import Illustration, Section
from rareneuron.present.figures.claims import VERDICTS
from rareneuron.present.findings import Findings, findings
from rareneuron.present.page_data import MOST_STEPS, embedded_json, page_data
from rareneuron.present.readable import claims_or_reason
from rareneuron.present.sections import SECTIONS
from rareneuron.present.style import dark_rules
from rareneuron.present.wording import significant, without_hidden
from rareneuron.runs.files import replacing
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import jinja2

NAME = "report.html"


def write_report(run: Run, found: Findings | None = None) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path; `found` is what `findings` gave of it."""
    page = render_report(run, found)
    path = run.path / NAME
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render_report(run: Run, found: Findings | None = None) -> str:
    """Return the report as HTML; `found` is what `findings` gave of the run."""
    found = found or findings(run)
    data, script, verdicts = page_data(found), asset("explorer.js"), verdicts_of(run)
    sections = [section for build in SECTIONS if (section := build(found)) is not None]
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            model=found.subject.model,
            layer=found.subject.layer_name,
            corpus=found.data.corpus,
            version=found.manifest.version,
            warnings=found.manifest.warnings,
            verdicts=verdicts,
            verdict_counts=verdict_counts(verdicts),
            sections=sections,
            told_below="claims" in {section.name for section in sections},
            style=asset("report.css"),
            dark_rules=rules_of(sections),
            script=script,
            script_hash=Markup(f"sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}"),
            data=embedded_json(data),
            n_neurons=f"{len(found.last):,}",
            details_note=details_note(data),
            slider_note=slider_note(found),
            example=f"{found.subject.layer}.{found.last.sort_values('rank')['index'].iloc[0]}",
        )
    )


def rules_of(sections: Sequence[Section]) -> Markup:
    """Return the CSS by which the figures of these sections change their colours on dark screens."""
    blocks = [block for section in sections for block in section.blocks]
    return Markup(dark_rules("".join(block.svg for block in blocks if isinstance(block, Illustration))))


def page_environment() -> "jinja2.Environment":
    """Return the templates of pages, which escape every string, hide nothing and refuse undefined names."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("rareneuron.present"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=nothing_hidden,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def asset(name: str) -> Markup:
    """Return a file of this package that goes into the page as it is."""
    text = (files("rareneuron.present") / "templates" / name).read_text(encoding="utf-8")
    assert "</" not in text, f"{name} would end its element"
    return Markup(text)


def verdicts_of(run: Run) -> list[dict[str, str]]:
    """Return a line for each claim, supported ones first; no lines for a run without claims."""
    claims = claims_or_reason(run)
    if isinstance(claims, str):
        return []
    ordered = sorted(claims, key=lambda claim: list(VERDICTS).index(claim.verdict))
    return [
        {
            "title": claim.title,
            "verdict": claim.verdict,
            "sentence": claim.sentence,
            "p": "" if claim.p_holm is None else f"p = {significant(claim.p_holm, 2)}",
        }
        for claim in ordered
    ]


def verdict_counts(verdicts: list[dict[str, str]]) -> str:
    """Say how many claims have which verdict."""
    counts = Counter(row["verdict"] for row in verdicts)
    told = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
    return (
        f"{len(verdicts)} claims about this model, each tested against a null; p is corrected for their number (Holm). "
        f"{', '.join(told).capitalize()}. “Not supported” means that these data don't show it, not that it is false."
    )


def details_note(data: dict[str, Any]) -> str:
    """Say which neurons have details, unless all do."""
    details = data["details"]
    if details is None or len(details["shown"]) == len(data["neurons"]["rank"]):
        return ""
    return f" Contexts and tokens are kept for the {len(details['shown']):,} with the largest mean |Δ|."


def slider_note(found: Findings) -> str:
    """Say at how many checkpoints the slider stops, unless it stops at all."""
    if len(found.steps) <= MOST_STEPS:
        return ""
    return f" Of {len(found.steps)} checkpoints it stops at {MOST_STEPS}, evenly chosen."


def nothing_hidden(value: Any) -> Any:
    """Return a value as jinja2 prints it: what isn't marked as HTML is text, and hides nothing."""
    return without_hidden(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
