"""Facts about a checkpoint's weight files: where they lie, stamps, and whether they have changed."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rareneuron.models.audit import (
    tensor_facts,
)
from rareneuron.models.checkpoints import Checkpoint, label
from rareneuron.models.hub import ModelFolder, is_local, model_folder
from rareneuron.models.loading import sha256_of_weights, weight_files


def described(checkpoint: Checkpoint) -> ModelFolder:
    """Config and tokenizer of a checkpoint, and the commit that its revision stands for now; no weights are fetched."""
    return model_folder(checkpoint.source, checkpoint.revision, weights=False)


def weight_stamps(checkpoint: Checkpoint) -> dict[str, list[int]] | None:
    """Size and time of the last change (ns) of each weight file; None on the Hub, where the commit says it all.

    Files with the same stamps are taken for the same, so that gigabytes needn't be hashed each time a run continues.
    """
    if not is_local(checkpoint.source):
        return None
    stats = {file.name: file.stat() for file in weight_files(described(checkpoint).folder)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def changed_weights(checkpoint: Checkpoint, recorded: Mapping[str, Any]) -> str | None:
    """How a checkpoint's weights differ from those that `step.json` records; None where they don't."""
    now: str | None
    if is_local(checkpoint.source):
        if weight_stamps(checkpoint) == recorded.get("weight_stamps"):
            return None
        name, now = "weights_sha256", sha256_of_weights(described(checkpoint).folder)
    else:
        name, now = "commit", described(checkpoint).commit
    before = recorded[name]
    return None if before == now else f"{label(checkpoint)} had the {name} {before} then, and has {now} now"


def weights_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Facts about a checkpoint's tensors, for `WEIGHTS` in a step's folder."""
    found = tensor_facts(model_folder(checkpoint.source, checkpoint.revision).folder)
    return {"tensors": {name: asdict(fact) for name, fact in found.items()}}
