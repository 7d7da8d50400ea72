"""What the report's script draws: curves of every checkpoint for the step slider, and the neurons for the explorer.

Plain data, ready for JSON: numbers to four digits, since no screen shows more, and text in which nothing is hidden,
so that the script only has to put it on the page. Neurons have a row each; the largest effects have details too.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from rareneuron.maths.gauge import Gauge
from rareneuron.maths.phases import Phases
from rareneuron.maths.rank_curve import local_slope
from rareneuron.maths.significance import t_quantile
from rareneuron.present.figures import effect_distribution
from rareneuron.present.figures.layers import cells
from rareneuron.present.figures.local_slope import FEWEST
from rareneuron.present.findings import Findings
from rareneuron.present.ink import thin
from rareneuron.present.mechanism import kinds, measured
from rareneuron.present.page_json import embedded_json, short, shorts
from rareneuron.present.readable import found_or_reason
from rareneuron.present.summary import in_short
from rareneuron.present.wording import step_name, visible, without_hidden
from rareneuron.runs.files import read_tensors
from rareneuron.runs.neurons import NONE, QUANTILES, SAMPLED, Explorer, first_neurons, read_explorer, text_span
from rareneuron.runs.rankings import Found
from rareneuron.runs.run import Run

REACH, N_POINTS = effect_distribution.REACH, 120  # of a distribution
MOST_STEPS = 40  # of a longer series the first, the last and evenly between
COLUMNS = (  # of the table of effects, by the names that the script knows them by
    ("delta", "delta_loss"),
    ("se", "delta_loss_se"),
    ("size", "abs_delta_loss"),
    ("size_se", "abs_delta_loss_se"),
    ("direct", "direct_delta_loss"),
    ("common", "common_delta_loss"),
    ("common_se", "common_delta_loss_se"),
    ("common_size", "common_abs_delta_loss"),
    ("common_size_se", "common_abs_delta_loss_se"),
    ("kl", "kl"),
    ("mean_act", "mean_act"),
    ("move", "move"),
    ("w_out", "W_out_norm"),
)


def page_data(found: Findings) -> dict[str, Any]:
    """Return what the script reads, as dictionaries and lists: everything, or as much as a page may hold.

    Of wide layers, mechanisms and contexts of the smaller effects go first, then columns that others stand for.
    """
    details = read_explorer(found.run.folder())
    for thinning in THINNINGS:
        data = thinned_data(found, details, thinning)
        if len(embedded_json(data)) <= MOST_BYTES:
            break
    return data


@dataclass(frozen=True, kw_only=True)
class Thinning:
    """How much a page leaves out of what the script could show."""

    detailed: float = 1.0  # share of the neurons that have details
    all_mechanisms: bool = True  # or those of neurons with details alone
    all_columns: bool = True


MOST_BYTES = 3_800_000  # of the data; a page may have five million, and its figures and tables take less than one
THINNINGS = (
    Thinning(),
    *(Thinning(detailed=share, all_mechanisms=False) for share in (1.0, 0.5, 0.25)),
    *(Thinning(detailed=share, all_mechanisms=False, all_columns=False) for share in (0.25, 0.1, 0.0)),
)
SPARE = ("direct", "common_se", "common_size_se", "size_se", "kl", "w_out")  # columns that a page can do without


def thinned_data(found: Findings, details: Explorer | None, thinning: Thinning) -> dict[str, Any]:
    """Return what the script reads, with so much left out."""
    chosen = steps_shown(len(found.steps))
    if details is not None and thinning.detailed < 1:
        details = first_neurons(details, int(thinning.detailed * len(details.shown)))
    kept = None if thinning.all_mechanisms else [] if details is None else details.shown.tolist()
    neurons = neurons_data(found, details)
    if not thinning.all_columns:
        neurons = {name: values for name, values in neurons.items() if name not in SPARE}
    return {
        "layer": found.subject.layer,
        "has_groups": bool((found.last["role"] != "other").any()),
        "steps": steps_data(found, chosen),
        "neurons": neurons,
        "mechanism": mechanism_data(found.last.sort_values("index"), t_quantile(found.data.n_contexts), kept),
        "details": None if details is None else details_data(found, details, chosen),
    }


def steps_shown(n: int) -> list[int]:
    """Return the places of those of `n` checkpoints at which the slider stops."""
    return sorted(set(np.linspace(0, n - 1, min(n, MOST_STEPS)).round().astype(int).tolist()))


def steps_data(found: Findings, chosen: list[int]) -> list[dict[str, Any]]:
    """Return each step's rank curve, slope and distribution of effects, with the numbers beside them."""
    effects = [found.effects[i]["abs_delta_loss"].to_numpy().astype(np.float64) for i in chosen]
    logs = [np.log10(value[value > 0]) for value in effects]
    widths = [effect_distribution.width(x) for x in logs if len(x)]
    out = []
    for i, value, x in zip(chosen, effects, logs, strict=True):
        step, record = found.steps[i], found.records[i]
        phases = phases_at(found, step)
        out.append(
            {
                "name": step_name(step),
                "step": step,
                "loss_rare": short(record.loss_rare),
                "loss_common": short(record.loss_common),
                "median": short(float(np.median(value))),
                "largest": short(float(value.max())),
                "n_zero": len(value) - len(x),
                "phases": without_hidden(in_short(phases)),
                "boundaries": [phases.plateau_end, phases.decay_start] if isinstance(phases, Phases) else [None, None],
                "curve": curve(found.effects[i]),
                "slope": slope(np.log(10.0) * np.sort(x)[::-1]),
                "density": density(x, REACH * max(widths)) if len(x) else [[], []],
            }
        )
    return out


def phases_at(found: Findings, step: int | None) -> Found | str:
    """Return a step's phases, or why it has none; by released definitions those of boosting neurons."""
    definitions = found.run.definitions
    return found_or_reason(found.run, step, "all" if definitions == "paper" else "boosting", definitions)


def curve(effects: pd.DataFrame) -> list[list[Any]]:
    """Return ranks, mean |Δ|, errors and indices of neurons; of many neurons some, evenly spaced in log rank."""
    by_rank = effects.sort_values("rank")
    line = thin(by_rank[by_rank["abs_delta_loss"] > 0])
    return [
        line["rank"].tolist(),
        shorts(line["abs_delta_loss"]),
        shorts(line["abs_delta_loss_se"]),
        line["index"].tolist(),
    ]


def slope(y: np.ndarray) -> list[list[Any]]:
    """Return κ over rank, where it is defined; `y` is log mean |Δ| by rank."""
    if len(y) < FEWEST:
        return [[], []]
    found = local_slope(y)
    there = np.isfinite(found.kappa)
    return [shorts(np.exp(found.log_rank[there])), shorts(found.kappa[there])]


def density(x: np.ndarray, margin: float) -> list[list[Any]]:
    """Return the share of neurons per decade of mean |Δ|."""
    grid = np.linspace(x.min() - margin, x.max() + margin, N_POINTS)
    return [shorts(10.0**grid), shorts(effect_distribution.density(x, grid))]


def neurons_data(found: Findings, details: Explorer | None) -> dict[str, list[Any]]:
    """Return the columns of the table of neurons, in neuron order, without those that the run lacks."""
    table = found.last.sort_values("index")
    out: dict[str, list[Any]] = {"role": table["role"].tolist(), "rank": table["rank"].tolist()}
    table, gauge = determined(table, found.gauge), found.gauge
    out |= {name: shorts(table[column]) for name, column in COLUMNS if column in table}
    t = t_quantile(found.data.n_contexts)
    out["low"] = shorts(table["delta_loss"] - t * table["delta_loss_se"])
    out["high"] = shorts(table["delta_loss"] + t * table["delta_loss_se"])
    if "common_abs_delta_loss" in table:
        with np.errstate(divide="ignore", invalid="ignore"):
            out["ratio"] = shorts(table["abs_delta_loss"].to_numpy() / table["common_abs_delta_loss"].to_numpy())
    if any(words := kinds(table)):
        out["kind"] = words
    if found.run.has_layers() and len(layers := ranks_of_all_layers(found)):
        out["rank_of_all"] = layers
    if details is not None:
        if not gauge.scale:
            out["w_in"] = shorts(details.W_in_norm)
        if details.W_gate_norm is not None and not gauge.gate_scale:
            out["w_gate"] = shorts(details.W_gate_norm)
    return out


def ranks_of_all_layers(found: Findings) -> list[int]:
    """Return each neuron's rank among those of all layers; nothing where a study of layers left this one out."""
    table = found.run.layers()
    here = table[(table["kind"] == "neuron") & (table["layer"] == found.subject.layer)].sort_values("index")
    return here["rank"].astype(int).tolist() if len(here) == len(found.last) else []


def layer_map(found: Findings, shown: Int[np.ndarray, " shown"]) -> list[dict[str, Any]] | None:
    """Return each layer's mean |Δ| in bins of rank, the last layer first, and the rank that shown neurons would have.

    None for a study of one layer, or of others.
    """
    if not found.run.has_layers() or not ranks_of_all_layers(found):
        return None
    table = found.run.layers()
    table = table[table["kind"] == "neuron"]
    here = table[table["layer"] == found.subject.layer].set_index("index")["abs_delta_loss"].loc[shown].to_numpy()
    layers = table["layer"].unique().astype(int).tolist()
    size = {layer: np.sort(table.loc[table["layer"] == layer, "abs_delta_loss"].to_numpy()) for layer in layers}
    binned, out = cells(table), []
    for layer in sorted(size, reverse=True):
        of = binned[binned["layer"] == layer]
        rank = (1 + len(size[layer]) - np.searchsorted(size[layer], here, side="right")).tolist()
        out.append({"layer": layer, "rank": rank} | {name: shorts(of[name]) for name in ("first", "last", "value")})
    return out


def mechanism_data(effects: pd.DataFrame, t: float, kept: list[int] | None = None) -> list[dict[str, Any]]:
    """Return what is known of how each neuron acts, in neuron order; nothing where the run lacks it.

    Of some neurons alone, `kept`, by their index.
    """
    out: list[dict[str, Any]] = []
    for of in measured(effects):
        value, none = effects[of.column], pd.Series(np.nan, effects.index)
        margin = t * effects.get(f"{of.column}_se", none)
        low, high = (
            effects.get(f"{of.column}_{end}", value + side * margin) for end, side in (("low", -1), ("high", 1))
        )
        numbers: dict[str, Any] = {"value": shorts(value), "low": shorts(low), "high": shorts(high)}
        if kept is not None:
            numbers = {name: {str(i): of_all[i] for i in kept} for name, of_all in numbers.items()}
        out.append({"name": of.column, "label": of.label, "about": of.about, "unit": of.unit, **numbers})
    return out


def determined(effects: pd.DataFrame, gauge: Gauge) -> pd.DataFrame:
    """Return a table of effects without what the model leaves open: the sign of n̄, its scale, the length of w_out."""
    mean = effects["mean_act"].abs() if gauge.sign else effects["mean_act"]
    if not gauge.scale:
        return effects.assign(mean_act=mean)
    return effects.assign(mean_act=mean * effects["W_out_norm"]).drop(columns="W_out_norm")


def activation_words(gauge: Gauge) -> dict[str, str]:
    """Return how the page calls an activation, what a logit is per, and whose sign it has."""
    name, unit = ("activation · ‖w_out‖", "length written") if gauge.scale else ("activation", "activation")
    sign = (
        "This model leaves the sign of an activation open; positive is the direction of the neuron's mean. "
        if gauge.sign
        else ""
    )
    return {"name": name, "unit": unit, "sign": sign}


def details_data(found: Findings, details: Explorer, chosen: list[int]) -> dict[str, Any]:
    """Return what is known of the detailed neurons; each text is kept once, and tokens refer to it by number."""
    ids = np.array(sorted(details.texts), dtype=np.int64)
    number = {int(i): k for k, i in enumerate(ids)}
    texts = Texts(found.run, number)
    contexts, shown_examples = contexts_data(texts, details), examples_data(texts, details)
    shown = details.shown
    written = details.written
    return {
        "shown": shown.tolist(),
        "no_readout": details.no_readout,
        "activation": activation_words(found.gauge),
        "vocabulary": [without_hidden(details.texts[int(i)]) for i in ids],
        "names": names_alone(details.texts, written, number),
        "texts": texts.ids,
        "contexts": contexts,
        "examples": shown_examples,
        "quantiles": list(QUANTILES),
        "n_sampled": min(SAMPLED, found.data.n_rare),
        "layer_map": layer_map(found, shown),
        "n_whole": 0 if details.text_delta is None else len(details.text_delta),
        "act_low": shorts(details.act_low),
        "act_high": shorts(details.act_high),
        "histogram": details.histogram.tolist(),
        "neighbour": details.neighbour.tolist(),
        "correlation": [shorts(row) for row in details.correlation],
        "written": None if written is None else [[number[int(i)] for i in row] for row in written],
        "written_logit": None if details.written_logit is None else [shorts(row) for row in details.written_logit],
        "path": paths(found, shown, chosen),
    }


def names_alone(
    texts: dict[int, str], written: Int[np.ndarray, "shown written"] | None, number: dict[int, int]
) -> dict[str, str]:
    """Return the tokens of the lists that read differently alone than in running text, by their number."""
    ids = [] if written is None else np.unique(written).tolist()
    alone = {i: visible(texts[i]) for i in ids}
    return {str(number[i]): text for i, text in alone.items() if text != without_hidden(texts[i])}


class Texts:
    """The pieces of text that a page shows, each once; `ids` has the numbers of their tokens."""

    def __init__(self, run: Run, number: dict[int, int]) -> None:
        tokens = run.tokens()
        self.context, self.position = tokens["context"].to_numpy(), tokens["position"].to_numpy()
        self.windows = read_tensors(run.path / "contexts.safetensors")["windows"]
        self.number = number
        self.ids: list[list[int]] = []
        self._pieces: dict[int, tuple[int, int]] = {}  # by token: piece and where it begins

    def piece(self, token: int) -> tuple[int, int]:
        """Return the number of the text around a token's target, and the position at which it begins."""
        if token not in self._pieces:
            span = text_span(int(self.position[token]), self.windows.shape[1])
            self._pieces[token] = (len(self.ids), span.start)
            window = self.windows[self.context[token], span.start : span.stop]
            self.ids.append([self.number[int(i)] for i in window])
        return self._pieces[token]

    def place(self, token: int) -> tuple[int, int]:
        """Return the number of the text around a token's target, and the target's place in it."""
        piece, start = self.piece(token)
        return piece, int(self.position[token]) + 1 - start


def contexts_data(texts: Texts, details: Explorer) -> list[list[dict[str, Any]]]:
    """Return each neuron's contexts: piece, target, Δ of the analysed tokens in it, and Δ of all where that is known.

    A token of the table is shown by its target, at its position + 1; places are counted from the piece's beginning.
    """
    out = []
    for row, (top, near, delta) in enumerate(
        zip(details.top_token, details.near_token, details.near_delta, strict=True)
    ):
        of_neuron = []
        for k, (token, others, values) in enumerate(zip(top.tolist(), near, delta, strict=True)):
            if token == NONE:
                continue
            piece, start = texts.piece(token)
            there = others[others != NONE]
            order = np.argsort(texts.position[there], kind="stable")
            found = {
                "text": piece,
                "at": texts.place(token)[1],
                "places": (texts.position[there][order] + 1 - start).tolist(),
                "delta": shorts(values[others != NONE][order]),
            }
            if details.text_delta is not None and row < len(details.text_delta):
                found["all"] = shorts(details.text_delta[row, k, : len(texts.ids[piece])])
            of_neuron.append(found)
        out.append(of_neuron)
    return out


def examples_data(texts: Texts, details: Explorer) -> list[list[list[list[Any]]]] | None:
    """Return each neuron's examples by quantile of Δ, then of the activation: piece, target, Δ, activation."""
    if details.example_token is None or details.example_delta is None or details.example_act is None:
        return None
    out = []
    for tokens, deltas, acts in zip(details.example_token, details.example_delta, details.example_act, strict=True):
        of_neuron = []
        for token, delta, act in zip(tokens, deltas, acts, strict=True):
            places = [texts.place(int(i)) for i in token]
            of_neuron.append([[*place, *of] for place, *of in zip(places, shorts(delta), shorts(act), strict=True)])
        out.append(of_neuron)
    return out


def paths(found: Findings, shown: Int[np.ndarray, " shown"], chosen: list[int]) -> dict[str, list[list[Any]]]:
    """Return mean Δ, mean |Δ| and rank of each detailed neuron at the checkpoints of the slider."""
    tables = [found.effects[i].sort_values("index").iloc[shown] for i in chosen]
    return {
        "delta": [shorts(row) for row in np.stack([t["delta_loss"] for t in tables], 1)],
        "size": [shorts(row) for row in np.stack([t["abs_delta_loss"] for t in tables], 1)],
        "rank": np.stack([t["rank"] for t in tables], 1).tolist(),
    }
