"""Cuts a checkpoint's contexts into pieces, and keeps each piece's results until the checkpoint is finished.

A piece is a range of contexts worth about a minute of work. A small checkpoint has one piece, and nothing of it is
kept. Where there are more, a piece's sums of effects, and its captured tokens where forward passes are slow, lie in
`RUN/units/<step>/<sha256>.safetensors`, named by everything that decides them: weights, tokens, settings, contexts. A
killed study reads them back, and ends with the same bits; a damaged file is reported, and its piece computed again.
Sums are added in float64 in the order of contexts, whether they were just computed or read back.
Pieces are cut by counting operations, not by measured time, which would cut them differently each time.
Domain: the same bits on CPU with the same number of threads. Oracle: tests/study/test_crash.py.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rareneuron.data.selection import Selection
from rareneuron.errors import RunFolderError
from rareneuron.measure.capture import Progress, TokenBatch, TokenSource, capture, part_of
from rareneuron.measure.engines.base import EffectBlock, EngineKind, Workload
from rareneuron.measure.neurons import Observer
from rareneuron.measure.sums import as_array
from rareneuron.models.adapter import Adapter
from rareneuron.runs.files import read_tensors, remove, write_tensors

FORMAT = 2  # of kept pieces; pieces of another format are not found
PIECE_WORK = {"cpu": 6e12, "gpu": 6e15}  # operations of a minute at 100 GFLOP/s, at 100 TFLOP/s
CAPTURED_BYTES = 512 * 2**20  # of a piece whose captured tokens are kept
BY_TOKEN = ("resid", "act", "target", "context", "rare", "index")
SEEN = "explorer."


def workload(adapter: Adapter, selection: Selection, layer: int) -> Workload:
    """Return the numbers that decide what effects at these tokens cost."""
    return Workload(
        forward=2.0 * adapter.n_backbone_params * selection.windows.size,
        resumed=1 - layer % adapter.n_layers / adapter.n_layers,
        n_contexts=len(selection.windows),
        n_tokens=len(selection.context),
        n_neurons=adapter.n_neurons(layer),
        d_model=adapter.d_model,
        vocab=adapter.vocab,
    )


def cut_contexts(
    adapter: Adapter, selection: Selection, layer: int, kind: EngineKind
) -> tuple[tuple[range, ...], bool]:
    """Return the pieces of a checkpoint, and whether their captured tokens are worth keeping."""
    work, minute = workload(adapter, selection, layer), piece_work(adapter)
    keep = work.forward >= minute
    n_contexts = len(selection.windows)
    n = round((work.forward + kind.operations(work)) / minute)
    if keep:
        n = max(n, 2, -(-4 * work.n_tokens * (work.n_neurons + work.d_model) // CAPTURED_BYTES))
    cuts = np.unique(np.linspace(0, n_contexts, max(1, min(n, kind.most_pieces(work), n_contexts)) + 1).astype(int))
    return tuple(range(int(a), int(b)) for a, b in pairwise(cuts)), keep


def piece_work(adapter: Adapter) -> float:
    """Return how many operations a piece should take: about a minute's."""
    return PIECE_WORK["cpu" if adapter.model.device.type == "cpu" else "gpu"]


@dataclass
class PieceStore:
    """Stores arrays under names made from all they are computed from; `identity` is what they share."""

    folder: Path
    identity: Mapping[str, Any]
    check: Callable[[], None] = lambda: None  # raises where the run folder is no longer this study's

    def path(self, kind: str, contexts: range, given: str = "") -> Path:
        """Return the path of a piece's file; `given` is a digest of its further inputs."""
        what = {"format": FORMAT, "rareneuron": version("rareneuron"), "kind": kind, "given": given}
        what |= {"contexts": [contexts.start, contexts.stop], **self.identity}
        name = sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name}.safetensors"

    def read(self, path: Path) -> dict[str, np.ndarray] | None:
        """Return the stored arrays, or None where there are none; a damaged file is reported and removed."""
        if not path.is_file():
            return None
        try:
            found = read_tensors(path)
        except RunFolderError:
            tqdm.write(f"{path} is damaged (its checksum doesn't fit): this piece is computed again.", file=sys.stderr)
            remove(path)
            return None
        return found

    def write(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Store the arrays of a piece."""
        self.check()
        write_tensors(path, arrays)


class CapturedPieces(TokenSource):
    """A checkpoint's tokens in pieces: held if they fit the memory, else read back if stored, else captured again."""

    def __init__(
        self,
        adapter: Adapter,
        selection: Selection,
        layer: int,
        *,
        memory: int,
        pieces: Sequence[range] | None = None,
        kept: PieceStore | None = None,
        whole: bool = False,
    ) -> None:
        self.adapter, self.selection, self.layer, self.whole = adapter, selection, layer, whole
        self.pieces = (range(len(selection.windows)),) if pieces is None else tuple(pieces)
        self.kept = kept
        self.fits = len(selection.context) * (adapter.n_neurons(layer) + adapter.d_model) * 4 <= memory
        self.seconds, self.n_positions = 0.0, 0
        self._held: dict[range, list[TokenBatch]] = {}

    def first_pass(self, progress: Progress) -> Iterator[TokenBatch]:
        """Capture all batches, or read back those that were captured before."""
        for contexts in self.pieces:
            for batch in (
                self._capture(contexts, progress)
                if self.kept is None
                else self._read_or_capture(contexts, self.kept, progress, is_first=True)
            ):
                if self.fits:
                    self._held.setdefault(contexts, []).append(batch)
                self.n_positions += batch.n_positions
                yield batch

    def again(self) -> Iterator[TokenBatch]:
        """Yield all batches again."""
        for contexts in self.pieces:
            yield from self.batches_of(contexts)

    def batches_of(self, contexts: range) -> Iterable[TokenBatch]:
        """Return the batches of one piece again."""
        if self.fits:
            return self._held[contexts]
        return self._capture(contexts) if self.kept is None else self._read_or_capture(contexts, self.kept)

    def _capture(self, contexts: range, progress: Progress = lambda _: None) -> Iterator[TokenBatch]:
        part, rows = part_of(self.selection, contexts)
        start = time.perf_counter()
        for batch in capture(self.adapter, part, self.layer, whole=self.whole):
            self.seconds += time.perf_counter() - start
            progress(len(np.unique(batch.context)))
            yield replace(batch, context=batch.context + contexts.start, index=rows[batch.index])
            start = time.perf_counter()

    def _read_or_capture(
        self, contexts: range, kept: PieceStore, progress: Progress = lambda _: None, *, is_first: bool = False
    ) -> list[TokenBatch]:
        path = kept.path("capture", contexts)
        found = kept.read(path)
        if found is None:
            before = self.seconds
            batches = list(self._capture(contexts, progress))
            kept.write(path, batches_as_arrays(batches) | {"seconds": np.array([self.seconds - before])})
            return batches
        progress(len(contexts))
        if is_first:
            self.seconds += found["seconds"].item()  # what it took when it was captured
        return batches_from_arrays(found, self.adapter.model.device)


def batches_as_arrays(batches: Sequence[TokenBatch]) -> dict[str, np.ndarray]:
    """Return batches as arrays, with the size of each: sums over tokens run batch by batch."""
    columns = {name: np.concatenate([as_array(getattr(b, name)) for b in batches]) for name in BY_TOKEN}
    return columns | {
        "all_act_sum": np.stack([as_array(b.all_act_sum) for b in batches]),
        "n_positions": np.array([b.n_positions for b in batches]),
        "n_tokens": np.array([len(b.index) for b in batches]),
    }


def batches_from_arrays(arrays: Mapping[str, np.ndarray], device: torch.device) -> list[TokenBatch]:
    """Return the batches that `batches_as_arrays` stored."""
    ends = np.cumsum(arrays["n_tokens"])[:-1]
    columns = {name: np.split(arrays[name], ends) for name in BY_TOKEN}
    # Copied into torch's own memory: the last bits of a matrix product depend on how its arguments are aligned.
    on_device = {name: [torch.tensor(a, device=device) for a in columns[name]] for name in ("resid", "act", "target")}
    return [
        TokenBatch(
            resid=on_device["resid"][i],
            act=on_device["act"][i],
            target=on_device["target"][i],
            context=columns["context"][i],
            rare=columns["rare"][i],
            index=columns["index"][i],
            all_act_sum=torch.from_numpy(arrays["all_act_sum"][i]).to(device),
            n_positions=int(arrays["n_positions"][i]),
        )
        for i in range(len(arrays["n_tokens"]))
    ]


class StepPieces:
    """The pieces of one checkpoint for `layer_effects`; an observer's results are stored with each."""

    def __init__(self, source: CapturedPieces, store: PieceStore, observer: Observer | None) -> None:
        self.source, self.store, self.observer = source, store, observer
        self.pieces = source.pieces
        self.is_split = len(self.pieces) > 1  # a single piece isn't stored
        self._part = observer.empty_copy() if observer is not None and self.is_split else observer

    def observe(self, block: EffectBlock) -> None:
        """Show the observer a block of the piece at hand."""
        if self._part is not None:
            self._part(block)

    def batches(self, contexts: range) -> Iterable[TokenBatch]:
        """Return the captured tokens of a piece."""
        return self.source.batches_of(contexts)

    def read(self, contexts: range, given: str) -> dict[str, np.ndarray] | None:
        """Return the stored arrays of a piece, or None; the observer absorbs its part of them."""
        if not self.is_split:
            return None
        found = self.store.read(self._path(contexts, given))
        if found is not None and self.observer is not None:
            self.observer.absorb({k.removeprefix(SEEN): v for k, v in found.items() if k.startswith(SEEN)})
        return found

    def write(self, contexts: range, given: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Store the arrays of a piece, if there are several pieces."""
        if not self.is_split:
            return
        seen: dict[str, np.ndarray] = {}
        if self._part is not None and self.observer is not None:
            seen = self._part.arrays()
            self.observer.absorb(seen)
            self._part = self.observer.empty_copy()
        self.store.write(self._path(contexts, given), {**arrays, **{SEEN + k: v for k, v in seen.items()}})

    def _path(self, contexts: range, given: str) -> Path:
        return self.store.path("effects" if self.observer is None else "effects, explorer, examples", contexts, given)
