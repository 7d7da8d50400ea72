"""What stands first: the largest neurons with their words, the curve, and how sure all that is."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from rareneuron.maths.claims import Check
from rareneuron.maths.significance import few_contexts
from rareneuron.present.blocks import Block, Definitions, Illustration, Largest, LargestNeuron, Notice
from rareneuron.present.engines import engine_words
from rareneuron.present.figures import FIGURES
from rareneuron.present.findings import Findings
from rareneuron.present.mechanism import kinds
from rareneuron.present.readable import claims_or_reason, counted
from rareneuron.present.sections.curve import illustration
from rareneuron.present.sections.summary import signs
from rareneuron.present.wording import at_step, scale_of, significant, unit_of, visible, with_error
from rareneuron.runs.neurons import NONE, Explorer, read_explorer
from rareneuron.runs.records import DataRecord

SHOWN = 10
PROMOTED, TARGETS = 3, 2  # words of a neuron in its line


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The first screen, whose parts stand side by side where there is room."""

    name: ClassVar[str] = "overview"
    title: str
    notices: tuple[Block, ...]
    largest: Largest
    curve: Block
    sure: Definitions

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return all that it shows."""
        return (*self.notices, self.largest, self.curve, self.sure)


def overview(found: Findings) -> Overview:
    """Return the first screen."""
    return Overview(
        title=f"The {min(SHOWN, len(found.last))} largest neurons {at_step(found.steps[-1])}",
        notices=notices(found),
        largest=largest(found),
        curve=folded(illustration(FIGURES["rank-curve"], found)),
        sure=Definitions(items=tuple(how_sure(found))),
    )


def folded(block: Block) -> Block:
    """Return a figure whose caption opens by a click."""
    return replace(block, folded=True) if isinstance(block, Illustration) else block


def notices(found: Findings) -> tuple[Block, ...]:
    """Say what a reader must know before any number."""
    told = []
    if not found.is_finished:
        told.append(
            f"The study has not come to its end: this report covers the {len(found.steps)} checkpoints that are "
            "finished. Run the same study again to continue it."
        )
    if found.data.n_rare < found.data.n_requested:
        told.append(fewer_than_asked(found.data))
    few = few_contexts(found.data.n_contexts)
    if few is not None:
        told.append(f"{few}.")
    return tuple(Notice(text=text) for text in told)


def fewer_than_asked(data: DataRecord) -> str:
    """Say why there are fewer rare tokens than were asked for."""
    used = (
        "all of them are used"
        if data.n_rare == data.n_available
        else f"{data.n_rare:,} are used, since a context gives {data.per_context} at most (--per-context)"
    )
    return f"{data.n_requested:,} rare tokens were asked for and the corpus holds {data.n_available:,}: {used}."


def largest(found: Findings) -> Largest:
    """Return the neurons with the largest mean |Δ|, with what they promote and where they matter most."""
    table = found.last.sort_values("rank").head(SHOWN)
    table = table.assign(words=kinds(table))
    scale, most = scale_of(table["abs_delta_loss"]), table["abs_delta_loss"].max() or 1.0
    details = read_explorer(found.run.folder())
    targets = found.tokens["target"].to_numpy()
    rows = []
    for _, row in table.iterrows():
        promotes, at = ((), ()) if details is None else words_of(details, int(row["index"]), targets)
        rows.append(
            LargestNeuron(
                name=row["neuron"],
                size=significant(row["abs_delta_loss"] / 10.0**scale),
                part=round(100 * float(row["abs_delta_loss"]) / most, 1),
                delta=with_error(row["delta_loss"] / 10.0**scale, row["delta_loss_se"] / 10.0**scale, sign=True),
                boosts=bool(row["delta_loss"] > 0),
                promotes=promotes,
                targets=at,
                mechanism=row["words"],
            )
        )
    caption = (
        f"Neurons by mean |Δ|, the change in loss at rare tokens without the neuron, of {len(found.last):,}. Mean Δ "
        "above 0: it boosts them; ± one standard error."
    )
    return Largest(caption=caption, unit=unit_of(scale), rows=tuple(rows))


def words_of(details: Explorer, neuron: int, targets: np.ndarray) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tokens that a neuron promotes most, and the targets at which its effect is largest."""
    place = np.flatnonzero(details.shown == neuron)
    if not len(place):
        return (), ()
    written = [] if details.written is None else details.written[place[0]][:PROMOTED].tolist()
    top = details.top_token[place[0]]
    at = dict.fromkeys(word(details.texts[int(targets[token])]) for token in top[top != NONE])
    return tuple(dict.fromkeys(word(details.texts[i]) for i in written)), tuple(at)[:TARGETS]


def word(text: str) -> str:
    """Return a token as a word of a list, without the space before it; a token of spaces keeps them."""
    return visible(text.strip(" ") or text)


def how_sure(found: Findings) -> list[tuple[str, str]]:
    """Say what the numbers rest on: sampling, another text, computation, verdicts."""
    told = [("Sampling", signs(found))]
    told += [("Another text", text) for text in [another_text(found)] if text]
    told += [("Computation", computation(found)), ("Claims", counted_claims(found))]
    return told


def another_text(found: Findings) -> str | None:
    """Say whether another half of the text would rank neurons alike and choose the same groups."""
    if isinstance(claims_or_reason(found.run), str):
        return None
    checks: dict[str, Check] = {check.name: check for check in getattr(found.run.claims(), "checks", ())}
    told = []
    ranks, groups = checks.get("split-half"), checks.get("split-half-groups")
    if ranks is not None and ranks.value is not None:
        told.append(f"halves of the text rank neurons alike with reliability {interval(ranks)}")
    if groups is not None and groups.value is not None:
        told.append(f"both choose {interval(groups)} of a group")
    return f"{'; '.join(told)[0].upper()}{'; '.join(told)[1:]}." if told else None


def interval(check: Check) -> str:
    """Return a value with its interval."""
    assert check.value is not None
    assert check.low is not None
    assert check.high is not None
    return f"{check.value:.2f} ({check.low:.2f} … {check.high:.2f})"


def computation(found: Findings) -> str:
    """Say how exact the effects are."""
    record = found.records[-1]
    if record.audit is None:
        return f"{engine_words(record.engine).in_short[0].upper()}{engine_words(record.engine).in_short[1:]}."
    return (
        f"{record.audit.n_pairs:,} effects {engine_words(record.engine).audited}: largest error "
        f"{significant(record.audit.max_error, 2)} nats."
    )


def counted_claims(found: Findings) -> str:
    """Say how many claims have which verdict."""
    claims = claims_or_reason(found.run)
    if isinstance(claims, str):
        return claims
    return f"Of {len(claims)} about this model: {counted(claims)}."
