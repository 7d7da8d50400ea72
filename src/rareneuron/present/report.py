"""The report: one HTML file that needs nothing else, with a run's numbers and where they come from.

No request, no font from elsewhere: styles, figures, data and one script are inside, so it can be mailed, printed and
read years later. The page's policy lets no other script run and nothing be loaded. Every string goes through
`without_hidden` and then jinja2's escaping, or into JSON that holds no markup; only figures, which this package draws,
go in as they are. Without scripts the slider and the explorer are missing, and the rest stands. The same run gives
the same bytes.
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rareneuron.present.blocks import Illustration, Section
from rareneuron.present.findings import Findings, findings
from rareneuron.present.page_data import MOST_STEPS, page_data
from rareneuron.present.page_json import embedded_json, twin
from rareneuron.present.sections import SECTIONS
from rareneuron.present.sections.overview import Overview, overview
from rareneuron.present.style import dark_rules
from rareneuron.present.wording import at_step, without_hidden
from rareneuron.runs.files import replacing
from rareneuron.runs.run import Run

if TYPE_CHECKING:
    import jinja2

NAME = "report.html"
BREAKS = re.compile(r"(?<=[-/_.@])(?=[^-/_.@])")


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
    data, script, first = page_data(found), asset("panels.js") + asset("explorer.js"), overview(found)
    sections = [section for build in SECTIONS if (section := build(found)) is not None]
    parts: list[Section | Overview] = [first, *sections]
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            model=found.subject.model,
            layer=found.subject.layer_name,
            facts=facts(found),
            version=found.manifest.version,
            warnings=found.manifest.warnings,
            overview=first,
            twins={of.name: twin(of.title, of.blocks) for of in parts},
            sections=sections,
            at_step=f" {at_step(found.steps[-1])}",
            style=asset("report.css"),
            dark_rules=rules_of(parts),
            script=script,
            script_hash=Markup(f"sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}"),
            data=embedded_json(data),
            n_neurons=f"{len(found.last):,}",
            details_note=details_note(data),
            slider_note=slider_note(found),
            example=f"{found.subject.layer}.{found.last.sort_values('rank')['index'].iloc[0]}",
        )
    )


def rules_of(sections: Sequence[Section | Overview]) -> Markup:
    """Return the CSS by which the figures of these sections change their colours on dark screens."""
    blocks = [block for section in sections for block in section.blocks]
    return Markup(dark_rules("".join(block.svg for block in blocks if isinstance(block, Illustration))))


def facts(found: Findings) -> list[str]:
    """Return what was measured, in a few words each."""
    data, steps = found.data, found.steps
    checkpoints = at_step(steps[0]) if len(steps) == 1 else f"{len(steps):,} checkpoints, the last {at_step(steps[-1])}"
    return [
        f"{found.subject.layer_name}, {len(found.last):,} neurons",
        f"{data.n_rare:,} rare tokens in {data.n_contexts:,} contexts of {corpus_name(data.corpus)}",
        checkpoints,
    ]


def corpus_name(corpus: str) -> str:
    """Return what a corpus is called: a file or folder by its name, since a page travels and a path doesn't."""
    return Path(corpus).name if corpus.startswith(("/", ".", "~")) else corpus


def page_environment() -> "jinja2.Environment":
    """Return the templates of pages, which escape every string, hide nothing and refuse undefined names."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rareneuron.present"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=nothing_hidden,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    return environment


def asset(name: str) -> Markup:
    """Return a file of this package that goes into the page as it is."""
    text = (files("rareneuron.present") / "templates" / name).read_text(encoding="utf-8")
    assert "</" not in text, f"{name} would end its element"
    return Markup(text)


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


def breakable(name: str) -> Markup:
    """Return a name as HTML whose lines may break behind its slashes, hyphens, underscores and dots."""
    return Markup("<wbr>").join(BREAKS.split(without_hidden(name)))


def nothing_hidden(value: Any) -> Any:
    """Return a value as jinja2 prints it: what isn't marked as HTML is text, and hides nothing."""
    return without_hidden(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
