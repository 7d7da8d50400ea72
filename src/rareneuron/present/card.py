"""A run as Markdown for a model card or a paper's appendix: what was done, the verdicts, the numbers, how to cite.

The same numbers as in the report, less of them, and its own words on what they don't say. Text from models and corpora
is escaped, so that a name is never markup.
"""

from collections.abc import Sequence

from rareneuron.errors import NotMeasured, RunFolderError
from rareneuron.maths.claims import Claim
from rareneuron.present.findings import Findings, findings
from rareneuron.present.readable import claims_or_reason
from rareneuron.present.sections.reproduce import PAPER, command, environment_text, tool_entry
from rareneuron.present.sections.summary import contrast, measurement, signs, strongest
from rareneuron.present.summary import audit_line, phases_line
from rareneuron.present.typeset import escaped_markdown
from rareneuron.present.whose import how_sure, source_of
from rareneuron.present.wording import NOTHING, significant, with_error, without_hidden
from rareneuron.runs.run import Run

MOST_NEURONS = 10  # of either group
LIMITS = (
    "Effects are of one neuron at a time at the targets named above; they don't say what a neuron does elsewhere.",
    "“Not supported” means that these data don't show it, not that it is false; the p of a claim is corrected for the "
    "number of claims (Holm), and its null is named in the report.",
    "Random groups are drawn within one layer of one trained model: another training may differ.",
)


def card(run: Run) -> str:
    """Return the card of a run's last checkpoint."""
    found = findings(run)
    parts = [
        f"## Rare-token neurons of {text(found.subject.model)}",
        "",
        text(f"{measurement(found)} {signs(found)}"),
        "",
        *(text(warning) + "\n" for warning in found.manifest.warnings),
        "### Findings",
        "",
        *verdict_rows(run),
        "",
        text(f"{phases_line(run).removesuffix('.')}."),
        "",
        text(strongest(found) + (f" {contrast(found.last)}" if found.has_common else "")),
        "",
        *group_rows(run),
        "### Limits",
        "",
        *(f"- {text(limit)}" for limit in LIMITS),
        *([f"- {text(counts_note(found))}"] if counts_note(found) else []),
        "",
        "### Provenance",
        "",
        *facts(found),
        "",
        "```sh",
        without_hidden(command(found.config, found.manifest.planned)),
        "```",
        "",
        "### Cite",
        "",
        "```bibtex",
        PAPER,
        tool_entry(found.manifest.version),
        "```",
        "",
    ]
    return "\n".join(parts)


def text(words: str) -> str:
    """Return words as Markdown that hides nothing and marks nothing up."""
    return escaped_markdown(without_hidden(words))


def table_lines(heads: Sequence[str], n_words: int, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as GitHub reads it: columns of words, then of numbers."""
    rule = ["---"] * n_words + ["--:"] * (len(heads) - n_words)
    body = [[text(cell) for cell in row] for row in (heads, *rows)]
    return [f"| {' | '.join(row)} |" for row in (body[0], rule, *body[1:])]


def verdict_rows(run: Run) -> list[str]:
    """Return a row for each claim, or say why there are none."""
    claims = claims_or_reason(run)
    if isinstance(claims, str):
        return [text(claims)]
    rows = [(c.title, c.verdict, significant(c.effect), interval(c), significant(c.p_holm, 2)) for c in claims]
    return table_lines(("claim", "verdict", "effect", "95 %", "p (Holm)"), 2, rows)


def interval(claim: Claim) -> str:
    """Return the interval of a claim's effect."""
    if claim.effect_low is None or claim.effect_high is None:
        return NOTHING
    return f"{significant(claim.effect_low)} … {significant(claim.effect_high)}"


def group_rows(run: Run) -> list[str]:
    """Return the neurons with the largest effects of either sign, or say why there are no groups."""
    try:
        groups, table = run.groups(), run.effects()
    except (NotMeasured, RunFolderError) as error:
        return [text(f"No groups. {error}"), ""]
    rows = [
        (
            row["neuron"],
            role,
            with_error(row["delta_loss"], row["delta_loss_se"], sign=True),
            significant(row["abs_delta_loss"]),
            f"{row['rank']:,}",
        )
        for role, members in (("boosting", groups.boosting), ("suppressing", groups.suppressing))
        for _, row in table.iloc[members[:MOST_NEURONS]].iterrows()
    ]
    heads = ("neuron", "group", "mean Δ (nats per token)", "mean |Δ|", "rank")
    return [*table_lines(heads, 2, rows), ""]


def counts_note(found: Findings) -> str:
    """Say over what rarity was counted, unless it was the training set."""
    counts = found.data.counts
    if counts.of == "training set":
        return ""
    if counts.kind == "model":
        return f"What is rare was decided by {source_of(counts)}; {how_sure(counts)}."
    return f"Rarity was counted over {counts.of}, not over what the model was trained on."


def facts(found: Findings) -> list[str]:
    """Return what identifies model, text and code."""
    record = found.records[-1]
    told = [
        ("model", f"{found.subject.model}, {found.subject.layer_name}, {record.model.n_params:,} parameters"),
        ("weights", f"SHA-256 {record.model.weights_sha256}{f', {record.model.form}' if record.model.form else ''}"),
        ("text", f"{found.data.corpus}, fingerprint {found.data.fingerprint}"),
        ("definitions", found.run.definitions),
        ("seed", str(found.config.seed)),
        ("effects", audit_line(record).removeprefix("audit: ")),
        ("environment", environment_text(found.manifest.environment)),
    ]
    return [f"- **{name}**: {text(value)}" for name, value in told]
