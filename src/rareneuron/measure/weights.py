"""Records facts about a checkpoint's weight files and their tensors, and tells whether files have changed."""

from dataclasses import asdict
from typing import Any

from rareneuron.models.adapter import Adapter
from rareneuron.models.checkpoints import Checkpoint, checkpoint_folder, label
from rareneuron.models.hub import ModelFolder, is_local
from rareneuron.models.loading import sha256_of_weights, weight_files
from rareneuron.models.suspicions import tensor_facts
from rareneuron.runs.records import ModelRecord


def weight_stamps(where: ModelFolder) -> dict[str, list[int]] | None:
    """Return the size and time of the last change (ns) of each weight file; None on the Hub, where the commit suffices.

    Files with the same stamps count as the same, so that gigabytes needn't be hashed each time a run continues.
    """
    if not is_local(where.source):
        return None
    stats = {file.name: file.stat() for file in weight_files(where.folder)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def changed_weights(checkpoint: Checkpoint, recorded: ModelRecord) -> str | None:
    """Return how a checkpoint's weights differ from those that `step.json` records, or None where they don't."""
    name, now = "commit", checkpoint.commit
    if is_local(checkpoint.source):
        where = checkpoint_folder(checkpoint)
        if weight_stamps(where) == recorded.weight_stamps:
            return None
        name, now = "weights_sha256", sha256_of_weights(where.folder)
    before = getattr(recorded, name)
    return None if before == now else f"{label(checkpoint)} had the {name} {before} then, and has {now} now"


def weights_record(adapter: Adapter) -> dict[str, Any]:
    """Return facts about the tensors that a model was loaded from, for `weights.json` in a step's folder."""
    assert adapter.folder is not None, "a model in memory has no files"
    found = tensor_facts(adapter.folder)
    return {"tensors": {name: asdict(fact) for name, fact in found.items()}}
