"""The report: one HTML file that needs nothing else, with a run's numbers and where they come from.

It states facts and no verdicts. No script, no request, no font from elsewhere: styles and figures are inside, so it
can be mailed, printed and read years later. Every string goes through `without_hidden` and then jinja2's
escaping; only figures, which this package draws, go in as they are. The same run gives the same bytes.
"""

from pathlib import Path
from typing import Any

from rareneuron.pipeline.run import Run
from rareneuron.pipeline.store import replacing
from rareneuron.present.findings import findings
from rareneuron.present.sections import SECTIONS
from rareneuron.present.wording import without_hidden

NAME = "report.html"


def write_report(run: Run) -> Path:
    """Write RUN/report.html, whole or not at all, and return its path."""
    page = render_report(run)
    path = run.path / NAME
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render_report(run: Run) -> str:
    """The report as HTML."""
    import jinja2

    found = findings(run)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rareneuron.present"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=nothing_hidden,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        model=found.model,
        layer=found.layer_name,
        corpus=found.data["corpus"],
        version=found.manifest["environment"]["rareneuron"],
        warnings=found.manifest.get("warnings", []),
        sections=[build(found) for build in SECTIONS],
    )


def nothing_hidden(value: Any) -> Any:
    """What jinja2 does to each value that it prints: what isn't marked as HTML is text, and hides nothing."""
    return without_hidden(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
