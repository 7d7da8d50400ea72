"""Shows what a group of neurons does to a text: losses with and without it, which neurons matter where, how it goes on.

The effects of single neurons come from the closed form behind the last layer, and from gradients behind others, where
they are estimates of the effect through this and all earlier positions. Oracle: tests/use/test_attempt.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.errors import InvalidConfig, Unavailable
from rareneuron.maths.ablation import ablation_engine
from rareneuron.models.adapter import Adapter
from rareneuron.models.gradient import estimates
from rareneuron.models.sites import head_of, site_of
from rareneuron.runs.run import Run
from rareneuron.use.ablated import ablated
from rareneuron.use.model import run_model
from rareneuron.use.units import Units, opened_run, stored_means

MEMORY = 2**30  # bytes of the engine's tables
FADED = 3.0  # nats: the change of loss that has the full colour


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A text with and without some units: a row for each token that was predicted."""

    tokens: pd.DataFrame  # position, text, loss, loss_without, change, neurons: the largest, with their Δ
    prompt: str
    units: tuple[str, ...]
    replaced_by: str
    continuation: str  # greedy, with the units
    continuation_without: str

    def _repr_html_(self) -> str:
        """Return the text with a colour behind each token: red where its loss is larger without the units."""
        spans = []
        for row in self.tokens.to_dict(orient="records"):
            share = min(abs(row["change"]) / FADED, 1.0)
            colour = f"rgba({'200,40,40' if row['change'] > 0 else '40,90,200'},{share:.2f})"
            told = f"loss {row['loss']:.3f}, without {row['loss_without']:.3f}; {row['neurons']}"
            spans.append(f'<span style="background:{colour}" title="{escape(told)}">{escape(row["text"])}</span>')
        head = f"{len(self.units)} units replaced by {self.replaced_by}; red: the loss is larger without them"
        after = "".join(
            f"<p><b>{name}</b> {escape(text)}</p>"
            for name, text in (("goes on", self.continuation), ("goes on without", self.continuation_without))
        )
        return f'<p>{escape(head)}</p><p style="white-space:pre-wrap">{"".join(spans)}</p>{after}'


def try_text(
    run: Run | str | Path,
    text: str,
    *,
    group: str | None = None,
    units: str | Iterable[str] | Units | None = None,
    to: str = "mean",
    step: int | None = None,
    seed: int = 0,
    n_neurons: int = 3,
    n_new: int = 20,
    adapter: Adapter | None = None,
) -> Attempt:
    """Run a text through a run's model with and without some units.

    Args:
        run: A run, or its folder.
        text: What the model reads.
        group: The units to switch off; boosting by default. See `ablated`.
        units: Names such as `"29.511,2.7"` in place of a group.
        to: What replaces them: mean, zero or resample.
        step: The run's checkpoint; the last one by default.
        seed: Which of the random groups, and which places are drawn.
        n_neurons: How many neurons of the run's layer are named at each token, those of the largest |Δ|.
        n_new: How many tokens either continuation has.
        adapter: The run's model, if it is loaded already (`load_model`).

    Returns:
        A table of tokens, losses in nats, and both continuations; a notebook shows the text in colours.

    Raises:
        InvalidConfig: The text has no token that could be predicted, or is longer than the model reads.
        RunFolderError: The model has gone, or its weights have changed.

    Source:
        Eq. 3-4, at the tokens of one's own text.

    Example:
        >>> import rareneuron as rn
        >>> config = rn.StudyConfig(
        ...     steps=(4096,), n_tokens=200, max_corpus_tokens=200_000, group_size=20, n_random=200, out="runs/small"
        ... )
        >>> run = rn.run_study(config, progress=False)
        >>> found = rn.try_text(run, "Return the number of rows.", group="boosting")
        >>> len(found.units), list(found.tokens)[:4]
        (20, ['position', 'text', 'loss', 'loss_without'])
    """
    opened = opened_run(run)
    assert opened is not None, "a run is given"
    adapter = run_model(opened, step) if adapter is None else adapter
    ids = text_ids(adapter, text)
    group = "boosting" if group is None and units is None else group
    before, told = losses(adapter, ids), largest_at(opened, adapter, ids, step, n_neurons)
    continuation = continued(adapter, ids, n_new)
    with ablated(adapter.model, opened, group=group, units=units, to=to, step=step, seed=seed) as chosen:
        after, without = losses(adapter, ids), continued(adapter, ids, n_new)
    position = np.arange(1, len(ids))
    tokens = pd.DataFrame(
        {
            "position": position,
            "text": [adapter.tokenizer.decode(ids[i]) for i in position],
            "loss": before,
            "loss_without": after,
            "change": after - before,
            "neurons": told,
        }
    )
    return Attempt(
        tokens=tokens,
        prompt=text,
        units=tuple(chosen.names),
        replaced_by=to,
        continuation=continuation,
        continuation_without=without,
    )


def text_ids(adapter: Adapter, text: str) -> Int[np.ndarray, " position"]:
    """Return a text's ids, behind the mark that begins a context; refuse a text without a token to predict."""
    ids = adapter.tokenizer(text, add_special_tokens=False)["input_ids"]
    if adapter.tokenizer.bos_token_id is not None:
        ids = [adapter.tokenizer.bos_token_id, *ids]
    if len(ids) < 2:
        raise InvalidConfig(
            f"The text {text!r} has {len(ids)} token{'' if len(ids) == 1 else 's'}, the first of which nothing "
            "predicts. Give a longer text."
        )
    longest = longest_text(adapter)
    if longest is not None and len(ids) > longest:
        raise InvalidConfig(
            f"The text has {len(ids):,} tokens, and this model was built for {longest:,}: what it says of later ones "
            "means nothing. Give a shorter text."
        )
    return np.array(ids, np.int64)


def longest_text(adapter: Adapter) -> int | None:
    """Return how many tokens the model was built for; None where it doesn't say."""
    return getattr(adapter.model.config, "max_position_embeddings", None)


def losses(adapter: Adapter, ids: Int[np.ndarray, " position"]) -> Float[np.ndarray, " target"]:
    """Return the loss of every token but the first, in nats."""
    batch = torch.from_numpy(ids)[None].to(adapter.model.device)
    with torch.inference_mode():
        log_p = adapter.model(batch, use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return (-log_p.gather(1, batch[0, 1:, None])[:, 0]).cpu().numpy()


def continued(adapter: Adapter, ids: Int[np.ndarray, " position"], n_new: int) -> str:
    """Return what the model says next, the likeliest token each time."""
    longest = longest_text(adapter)
    n_new = n_new if longest is None else min(n_new, longest - len(ids))
    if n_new < 1:
        return ""
    batch = torch.from_numpy(ids)[None].to(adapter.model.device)
    pad = adapter.tokenizer.pad_token_id
    new = adapter.model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        max_new_tokens=n_new,
        do_sample=False,
        pad_token_id=adapter.tokenizer.eos_token_id if pad is None else pad,
    )
    return str(adapter.tokenizer.decode(new[0, len(ids) :]))


def largest_at(
    run: Run, adapter: Adapter, ids: Int[np.ndarray, " position"], step: int | None, n: int
) -> Sequence[str]:
    """Return the neurons of the run's layer with the largest |Δ| at each token, with their Δ, as text."""
    layer = run.manifest.layer
    mean = torch.from_numpy(stored_means(run, (layer, "neurons"), step)).to(adapter.model.device)
    delta = single_effects(adapter, ids, layer, mean)
    top = delta.abs().topk(min(n, delta.shape[1]), dim=1).indices
    return [
        ", ".join(f"{layer}.{neuron} {delta[i, neuron]:+.3f}" for neuron in row.tolist()) for i, row in enumerate(top)
    ]


def single_effects(
    adapter: Adapter, ids: Int[np.ndarray, " position"], layer: int, mean: Tensor
) -> Float[Tensor, "target neuron"]:
    """Return Δ of every neuron of a layer at every token: in closed form, or estimated by gradient."""
    window = torch.from_numpy(ids)[None].to(adapter.model.device)
    readout = adapter.readout_behind(layer)
    if isinstance(readout, Unavailable):
        site, n = site_of(adapter.anatomy, layer), len(ids) - 1
        delta = torch.zeros(n, site.n_units, dtype=torch.float64)
        tokens = np.zeros(n, np.int64), np.arange(n)
        for found in estimates(adapter.anatomy, head_of(adapter.anatomy), [site], ids[None], tokens, [mean]):
            delta[found.index] = found.of_site[0].estimate.double().cpu()
        return delta
    W_out = adapter.weights(layer).W_out
    captured = adapter.capture(window, layer)
    act, resid = captured.act[0, :-1], captured.resid[0, :-1]
    engine = ablation_engine(readout, W_out, memory=MEMORY)
    effects = engine.effects(resid, mean - act.double(), window[0, 1:], mlp_out=readout.mlp_output(act, W_out))
    return effects.delta_loss.double().cpu()


def attempt_text(found: Attempt) -> str:
    """Return an attempt as text for a terminal: a table of tokens, then both continuations."""
    shown = found.tokens.assign(text=[repr(text) for text in found.tokens["text"]])
    few = ", ".join(found.units[:10]) + (f" and {len(found.units) - 10} more" if len(found.units) > 10 else "")
    mean = found.tokens[["loss", "loss_without", "change"]].mean()
    return "\n".join(
        [
            f"Without: {len(found.units)} units, replaced by {found.replaced_by}: {few}",
            "",
            shown.to_string(index=False, float_format="{:.3f}".format),
            "",
            f"Mean loss {mean['loss']:.3f}, without them {mean['loss_without']:.3f} nats",
            f"Goes on:  {found.continuation!r}",
            f"Without:  {found.continuation_without!r}",
        ]
    )


def attempt_record(found: Attempt) -> dict[str, Any]:
    """Return an attempt as plain values for JSON."""
    return {
        "prompt": found.prompt,
        "units": list(found.units),
        "replaced_by": found.replaced_by,
        "tokens": found.tokens.to_dict(orient="records"),
        "continuation": found.continuation,
        "continuation_without": found.continuation_without,
    }
