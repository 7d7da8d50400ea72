"""What the embedded series' last checkpoint knows of rare words, beside what counting knows, at the same targets.

Two texts: training documents that were held out, and the analysis text, from packages that training never saw. Prints
mean losses in nats at rare and at common targets. Needs the packages of training: pip install 'rareneuron[train]'.

    python benchmarks/series_losses.py --n-tokens 2000
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rareneuron.data.corpus import token_windows
from rareneuron.data.selection import Selection
from rareneuron.embedded.baselines import probabilities
from rareneuron.embedded.docstrings import training_texts
from rareneuron.embedded.recipe import Recipe
from rareneuron.maths.readout import token_loss
from rareneuron.measure.capture import capture
from rareneuron.models.adapter import Adapter, load_model
from rareneuron.runs.config import StudyConfig
from rareneuron.study.plan import plan_study
from rareneuron.study.tokens import choose_tokens, study_corpus


def losses(adapter: Adapter, selection: Selection, training: np.ndarray) -> pd.DataFrame:
    """Return one row per analysed token: losses by the model and by n-grams of the training text."""
    out = pd.DataFrame({"rare": selection.rare})
    readout, of_model = adapter.readout(), np.empty(len(selection.rare))
    for batch in capture(adapter, selection):
        of_model[batch.index] = token_loss(readout(batch.resid), batch.target).double().cpu().numpy()
    out["model"] = of_model
    for order, name in ((1, "unigram"), (2, "bigram"), (3, "trigram")):
        p = probabilities(training, selection.windows, adapter.vocab, order)
        out[name] = -np.log(p[selection.context, selection.position])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-tokens", type=int, default=2_000)
    options = parser.parse_args()
    recipe, config = Recipe(), StudyConfig(n_tokens=options.n_tokens, out="runs/series-losses")
    texts = list(training_texts(recipe.packages))
    held_out = texts[:: recipe.held_out_every]
    kept = [text for i, text in enumerate(texts) if i % recipe.held_out_every]
    adapter = load_model(plan_study(config).checkpoints[-1].source)
    training = token_windows(kept, adapter.tokenizer, recipe.context_length).ids
    counts = np.bincount(training[:, 1:].ravel(), minlength=adapter.vocab)
    rows = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "held_out.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in held_out))
        for name, settings in (("held out", replace(config, data=str(file))), ("analysis", config)):
            selection = choose_tokens(settings, study_corpus(settings), adapter).selection
            found = losses(adapter, selection, training)
            seen = counts[selection.target]
            for kind, rare in (("rare", True), ("common", False)):
                chosen = found["rare"] == rare
                means = found[chosen].drop(columns="rare").mean()
                of_kind = {"text": name, "targets": kind, "n": int(chosen.sum())}
                rows.append(of_kind | means.to_dict() | {"median count in training": float(np.median(seen[chosen]))})
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format))
    print(f"uniform guess: {np.log(adapter.vocab):.2f}; training: {training.size:,} tokens")


if __name__ == "__main__":
    main()
