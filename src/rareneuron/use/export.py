"""Takes a model away with some units switched off for good: a plain folder, for plain transformers.

The columns by which a projection reads the units are set to zero. Replaced by a constant, a unit adds a constant vector
to the projection's output, which goes into the projection's bias, where the architecture has one: then the folder
computes exactly what `ablated` does with hooks. Oracle: tests/use/test_export.py, every architecture.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rareneuron.errors import InvalidConfig, RunFolderError
from rareneuron.links import expanded
from rareneuron.models.adapter import Adapter
from rareneuron.models.sites import Site
from rareneuron.runs.files import replacing, write_json
from rareneuron.runs.run import Run
from rareneuron.use.ablated import checked_site, replacement
from rareneuron.use.model import run_model
from rareneuron.use.units import Units, chosen_units, opened_run

PROVENANCE = "rareneuron.json"
CARD = "README.md"


def export_model(
    run: Run | str | Path,
    out: str | Path,
    *,
    group: str | None = None,
    units: str | Iterable[str] | Units | None = None,
    to: str = "mean",
    step: int | None = None,
    seed: int = 0,
    adapter: Adapter | None = None,
) -> Path:
    """Write a run's model with some units replaced by a constant, as a safetensors folder; return its path.

    Args:
        run: A run, or its folder.
        out: A folder that doesn't exist yet, or is empty.
        group: Which units; see `ablated`.
        units: Names such as `"29.511,3.h2"` in place of a group.
        to: `mean` needs projections with a bias; `zero` serves every architecture.
        step: The run's checkpoint; the last one by default.
        seed: Which of the random groups.
        adapter: The run's model, if it is loaded already; it is changed.

    Returns:
        The folder, with the model, its tokenizer, a card and `rareneuron.json`, which names run, units and weights.

    Raises:
        InvalidConfig: The mean can't be put anywhere, or `to` is neither mean nor zero.
        RunFolderError: There is something at `out`, or the run's model has gone or changed.

    Source:
        Eq. 3, with n̄ moved into the bias.

    Example:
        >>> import rareneuron as rn
        >>> config = rn.StudyConfig(
        ...     steps=(4096,), n_tokens=200, max_corpus_tokens=200_000, group_size=20, n_random=200, out="runs/small"
        ... )
        >>> run = rn.run_study(config, progress=False)
        >>> folder = rn.export_model(run, "without", group="suppressing")
        >>> rn.load_model(folder, device="cpu").n_layers
        3
    """
    opened, out = opened_run(run), expanded(out)
    assert opened is not None, "a run is given"
    if to not in ("mean", "zero"):
        raise InvalidConfig(
            f"to = {to!r} can't be written into weights, which hold constants alone. Use mean or zero, or "
            "`rn.ablated`, which replaces while the model runs."
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunFolderError(f"{out} is there already and not an empty folder. Choose another place for the model.")
    chosen = chosen_units(opened, group, units, step, seed)
    adapter = run_model(opened, step, device="cpu") if adapter is None else adapter
    edits = []
    for place, index in chosen.index.items():
        site = checked_site(adapter.anatomy, place, index)
        columns = site.columns(torch.from_numpy(index)).flatten()
        value = replacement(opened, place, to, step, columns)
        assert value is not None, "a constant"
        if to == "mean":
            refuse_without_bias(site, adapter)
        edits.append((site, columns, value))
    for site, columns, value in edits:
        switch_off(site, columns, value)
    with replacing(out) as folder:
        folder.mkdir()
        adapter.model.save_pretrained(folder)
        adapter.tokenizer.save_pretrained(folder)
        record = provenance(opened, chosen, to, step, adapter)
        write_json(folder / PROVENANCE, record)
        (folder / CARD).write_text(card(record), encoding="utf-8")
    return out


def refuse_without_bias(site: Site, adapter: Adapter) -> None:
    """Refuse a mean that no bias can hold."""
    if getattr(site.module, "bias", None) is None:
        raise InvalidConfig(
            f"The projection that reads the {site.kind} of layer {site.layer} has no bias in a "
            f"{adapter.model.config.model_type} model, so their mean has no place in a plain folder. Export with "
            '`to="zero"` (--to zero), or use `rn.ablated`, which replaces by the mean while the model runs.'
        )


@torch.no_grad()
def switch_off(site: Site, columns: Tensor, value: Tensor) -> None:
    """Set the columns of a projection to zero, and add to its bias what they would add for these inputs."""
    rows = site.W_out[columns]
    if value.any():
        bias = site.module.bias
        assert isinstance(bias, Tensor), "checked before"
        bias += (value.to(torch.float64) @ rows.double()).to(bias.dtype)
    site.W_out[columns] = 0.0


def provenance(run: Run, chosen: Units, to: str, step: int | None, adapter: Adapter) -> dict[str, Any]:
    """Return what the folder was made from."""
    record = run.step_record(step)
    return {
        "run": str(run.path.resolve()),
        "model": record.model.source,
        "weights_sha256": record.model.weights_sha256,
        "step": record.step,
        "layer": run.manifest.layer,
        "units": chosen.names,
        "replaced_by": to,
        "rareneuron": run.manifest.version,
        "dtype": str(adapter.model.dtype).removeprefix("torch."),
    }


def card(record: dict[str, Any]) -> str:
    """Return a model card in Markdown: what was changed, and how to do it again."""
    units, model = record["units"], record["model"]
    shown = ", ".join(units[:20]) + (f" and {len(units) - 20} more" if len(units) > 20 else "")
    how = (
        "set to zero"
        if record["replaced_by"] == "zero"
        else "replaced by their mean over rare targets, which was put into the biases of the projections that read them"
    )
    return (
        f"# {Path(model).name} without {len(units)} units\n\n"
        f"Weights of `{model}` (SHA-256 {record['weights_sha256']}), with {len(units)} units {how}: {shown}. "
        "Everything else is as it was. It loads in plain transformers.\n\n"
        f"Made by rareneuron {record['rareneuron']}; `{PROVENANCE}` names every unit. The licence of the original "
        "model holds for this one too.\n"
    )
