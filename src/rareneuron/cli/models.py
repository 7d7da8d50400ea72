"""Models, their checkpoints and counts: what a study starts from."""

from pathlib import Path

import click

from rareneuron.cli.base import cli, emit, json_option


@cli.command()
@click.argument("tokenizer")
@click.argument("data")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="FILE.npy, .npz or .parquet")
@click.option("--text-field", default="text", show_default=True, help="Key or column that holds the text.")
@click.option("--max-tokens", default=50_000_000, show_default=True, help="Count no more than this.")
@click.option(
    "--context-length", default=256, show_default=True, help="Window length, which decides only the remainder."
)
@json_option
def unigrams(
    tokenizer: str, data: str, output: Path, text_field: str, max_tokens: int, context_length: int, as_json: bool
) -> None:
    """Count how often each token of TOKENIZER (a model folder or Hub id) stands in DATA."""
    from rareneuron.pipeline.unigrams import count_corpus

    total, seen, size = count_corpus(tokenizer, data, output, text_field, max_tokens, context_length)
    emit(
        {"counts": str(output), "tokens": total, "types_seen": seen, "types": size},
        as_json,
        lambda: f"{output}: {total:,} tokens, {seen:,} of {size:,} types seen",
    )


@cli.command()
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit on the Hub.")
@json_option
def checkpoints(model: str, revision: str | None, as_json: bool) -> None:
    """List the checkpoints of MODEL."""
    from rareneuron.models.checkpoints import UNKNOWN_STEP, label, list_checkpoints

    found = list_checkpoints(model, revision, None if revision else "all")
    rows = [{"step": None if c.step == UNKNOWN_STEP else c.step, "checkpoint": label(c)} for c in found]
    emit(
        rows,
        as_json,
        lambda: "\n".join(f"{'?' if r['step'] is None else r['step']:>8}  {r['checkpoint']}" for r in rows),
    )


@cli.command()
@json_option
def families(as_json: bool) -> None:
    """The architectures that can be studied, and how."""
    from rareneuron.models.families import FAMILIES

    rows = [
        {
            "model_type": f.model_type,
            "norm": f.norm,
            "gated": f.mlp_gate is not None,
            "engines": ["patching"] if f.patching_only else ["closed-form", "patching"],
            "reason": f.patching_only,
        }
        for f in FAMILIES.values()
    ]
    lines = [
        f"{f.model_type:<14}{f.norm:<7}"
        + (f"patching only: {f.patching_only}" if f.patching_only else "closed-form, patching")
        for f in FAMILIES.values()
    ]
    emit(rows, as_json, lambda: "\n".join(lines))


@cli.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("series"), show_default=True, help="Series folder."
)
@click.option("--steps", type=int, help="Train no further than this step; for trying the recipe.")
@json_option
def train(out: Path, steps: int | None, as_json: bool) -> None:
    """Train the embedded series again: hours on a CPU. The same command continues an interrupted training."""
    from rareneuron.embedded.recipe import Recipe, first_steps, train_series

    recipe = Recipe() if steps is None else first_steps(Recipe(), steps)
    folder = str(train_series(recipe, out))
    emit({"series": folder, "steps": list(recipe.checkpoints)}, as_json, lambda: folder)
