"""Loads the model that a run is of, and says where it isn't to be had any more, or has changed."""

from rareneuron.embedded import SERIES
from rareneuron.errors import RunFolderError
from rareneuron.models.adapter import Adapter, load_folder
from rareneuron.models.checkpoints import checkpoint_folder, list_checkpoints
from rareneuron.runs.run import Run


def run_model(run: Run, step: int | None = None, device: str | None = None) -> Adapter:
    """Load a checkpoint's model with its tokenizer, in the run's precision; refuse other weights than the run's."""
    config, wanted = run.manifest.config, run.steps[-1] if step is None else step
    source = str(SERIES) if config.model is None else run.manifest.resolved.get("model") or config.model
    series = list_checkpoints(source, config.revision, None if config.steps is None and config.model else "all")
    there = [checkpoint for checkpoint in series if checkpoint.step == wanted]
    if not there:
        raise RunFolderError(
            f"{source} has no checkpoint of step {wanted} any more, which {run.path} is of. Restore it, or give the "
            "model to `rn.ablated` yourself."
        )
    adapter = load_folder(checkpoint_folder(there[0]), dtype=config.dtype, device=device or config.device)
    recorded = run.step_record(wanted).model.weights_sha256
    if recorded not in (None, adapter.provenance["weights_sha256"]):
        raise RunFolderError(
            f"The weights of {source} have changed since {run.path} was made, so its neurons are others. Restore them, "
            "or study the model again in another folder."
        )
    return adapter
