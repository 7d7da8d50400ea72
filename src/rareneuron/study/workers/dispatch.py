"""Has the open checkpoints of a plan computed, by the executor that the settings name."""

from contextlib import closing

from rareneuron.measure.checkpoint import compute_checkpoint
from rareneuron.models.adapter import Adapter
from rareneuron.progress import progress_bar
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.store import RunStore
from rareneuron.runs.tokens import TokenStage
from rareneuron.study.plan import Plan
from rareneuron.study.workers.processes import process_answers
from rareneuron.study.workers.tasks import refuse_failed, task_of


def compute_open(
    store: RunStore, config: StudyConfig, plan: Plan, tokens: TokenStage, first: Adapter | None, progress: bool
) -> None:
    """Compute the open checkpoints. `first` is the last checkpoint's model, if it is loaded already."""
    last = plan.checkpoints[-1]
    if config.executor == "local" and plan.n_workers <= 1:
        for checkpoint in plan.open:
            adapter, first = (first if checkpoint == last else None), None
            is_last = checkpoint == last
            compute_checkpoint(
                store, config, checkpoint, is_last=is_last, tokens=tokens, adapter=adapter, progress=progress
            )
            del adapter
        return
    del first  # workers load it themselves
    tasks = [task_of(config, checkpoint, is_last=checkpoint == last) for checkpoint in plan.open]
    with progress_bar("checkpoints", len(tasks), "checkpoint", show=progress) as bar:
        if config.executor == "ray":
            from rareneuron.study.workers.ray import ray_answers

            done = ray_answers(tasks, config)
        else:
            done = process_answers(tasks, plan.n_workers)
        with closing(done):  # Ctrl-C between two answers ends the workers too
            for answer in done:
                refuse_failed(answer)
                bar.update()
