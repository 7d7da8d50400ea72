"""A Hugging Face model as residual stream, activations, W_out and the rest of the network.

Seen from one layer of neurons that is all a model is; nothing below this module knows that transformers exists,
nothing above looks inside a module. Weights are checked for NaN and the closed form is put to the test (`probes`)
at every load. bfloat16 and float16 checkpoints are computed in float32 unless asked otherwise, since half
precision rounds a 12-nat loss to 8e-3.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.errors import (
    BrokenCheckpoint,
    InvalidConfig,
    ModelNotFound,
    OutOfRange,
    Unavailable,
    UnfitTokenizer,
    UnsupportedModel,
)
from rareneuron.maths.gauge import Gauge
from rareneuron.maths.readout import Readout
from rareneuron.models.anatomy import Anatomy, LayerWeights, anatomy
from rareneuron.models.families import Family
from rareneuron.models.faults import HALF, IN_FLOAT32
from rareneuron.models.gguf import damaged
from rareneuron.models.heads import use_stored_head
from rareneuron.models.hub import ModelFolder, model_folder
from rareneuron.models.loading import DTYPES, load_causal_lm, read_config, sha256_of_weights
from rareneuron.models.memory import FORM, identity, opened, plain_copy
from rareneuron.models.probes import ClosedForm, closed_form
from rareneuron.models.tokenizers import find_tokenizer, refuse_other_ids, refuse_unfit_tokenizer

PATCHING = (
    "Use `--engine patching`, which re-runs the rest of the network: slower, and right for any layer and architecture."
)


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What flows through one layer, at every position of every context."""

    resid: Float[Tensor, "context position d_model"]  # the block's output; of the last layer: the final norm's input
    act: Float[Tensor, "context position neuron"]  # the input of the MLP's output projection


class Adapter:
    """A loaded model as an analysis sees it: weights, activations and readout of each layer.

    `load_model` makes one from files, `adapt` from a model in memory. Layers count from 0, negative ones from the end.
    `W_in`, `W_out`, `W_gate` and `d_mlp` are those of the last layer; `weights(layer)` and `n_neurons(layer)` are those
    of any layer. Weights are the model's own, not copies. `closed_form` has what the probes found when the adapter was
    made: whether Eq. 3-4 holds in closed form behind the last layer.

    Args:
        model: A decoder-only `transformers` model in evaluation mode.
        tokenizer: Its tokenizer, or None.
        provenance: Where the weights come from: source, revision, commit, SHA-256. Architecture, number of parameters
            and dtype are added.
        folder: Where the model's files are; None for a model in memory.

    Source:
        Eq. 3-4 need the residual stream, activations, W_out and the rest of the network; nothing else is used.

    Example:
        >>> import numpy as np
        >>> import rareneuron as rn
        >>> from rareneuron.embedded import SERIES
        >>> adapter = rn.load_model(SERIES / "step4096", device="cpu")
        >>> adapter.n_layers, adapter.d_model, adapter.d_mlp, adapter.vocab
        (3, 128, 1024, 16384)
        >>> captured = adapter.capture(np.array([[5, 6, 7, 8]]), layer=1)  # one context of four tokens
        >>> captured.resid.shape, captured.act.shape
        (torch.Size([1, 4, 128]), torch.Size([1, 4, 1024]))
        >>> adapter.weights(1).W_out.shape  # a row for each neuron
        torch.Size([1024, 128])
    """

    def __init__(
        self, model: Any, tokenizer: Any, provenance: Mapping[str, Any], *, folder: Path | None = None
    ) -> None:
        self.model = model
        self.folder = folder
        self.anatomy: Anatomy = anatomy(model)
        refuse_non_finite(model)
        self._tokenizer = tokenizer
        if tokenizer is not None:
            refuse_other_ids(tokenizer)
            refuse_unfit_tokenizer(tokenizer, model)
        self.closed_form: ClosedForm = closed_form(self.anatomy)
        self.provenance: dict[str, Any] = dict(provenance) | {
            "model_type": self.family.model_type,
            "n_params": sum(p.numel() for p in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "tied": self.anatomy.unembedding.weight is model.get_input_embeddings().weight,
        }

    @property
    def family(self) -> Family:
        """The record of the model's architecture."""
        return self.anatomy.family

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer; raises `UnfitTokenizer` where it came without one."""
        if self._tokenizer is None:
            raise UnfitTokenizer(
                f"{self.provenance['source']} has no tokenizer in its folder or the one above. Put tokenizer.json and "
                "tokenizer_config.json of the model there, or load it with `load_model(..., tokenizer=...)`."
            )
        return self._tokenizer

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return len(self.anatomy.blocks)

    @property
    def d_mlp(self) -> int:
        """Number of neurons of the last layer; `n_neurons` has those of any layer."""
        return self.n_neurons()

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.anatomy.d_model

    @property
    def vocab(self) -> int:
        """Number of rows of the unembedding, padding included."""
        return self.anatomy.unembedding.weight.shape[0]

    @property
    def n_backbone_params(self) -> int:
        """Parameters that are multiplied at every position: all but the embedding and the unembedding."""
        return self.anatomy.n_backbone_params

    @property
    def W_in(self) -> Float[Tensor, "neuron d_model"]:
        """The weights by which each neuron of the last layer reads the residual stream."""
        return self.weights().W_in

    @property
    def W_out(self) -> Float[Tensor, "neuron d_model"]:
        """The vector that each neuron of the last layer writes to the residual stream."""
        return self.weights().W_out

    @property
    def W_gate(self) -> Float[Tensor, "neuron d_model"] | None:
        """The weights that gate each neuron of the last layer; None where the MLP isn't gated."""
        return self.weights().W_gate

    def weights(self, layer: int = -1) -> LayerWeights:
        """The MLP matrices of a layer, neuron axis first."""
        return self.anatomy.weights(layer)

    def gauge(self, layer: int = -1) -> Gauge:
        """Which signs and lengths of a layer's neurons mean nothing by themselves (`maths.gauge`)."""
        return self.anatomy.gauge(layer)

    def n_neurons(self, layer: int = -1) -> int:
        """Number of neurons of a layer."""
        return len(self.weights(layer).W_out)

    def readout_behind(self, layer: int = -1) -> Readout | Unavailable:
        """The rest of the network behind a layer as data, or the reason why it can't be had.

        Behind the last layer there is a readout where the probes at loading confirmed it, whatever engine computes the
        effects. Behind earlier layers more blocks follow.
        """
        index = self.anatomy.layer_index(layer)
        if index != self.n_layers - 1:
            return Unavailable(
                f"After layer {index} come {self.n_layers - 1 - index} more blocks, so the closed form doesn't "
                f"hold there; it does for the last layer, {self.n_layers - 1}."
            )
        if not self.closed_form.ok:
            return Unavailable(f"{self.closed_form.reason}, so the closed form of Eq. 3-4 doesn't hold.")
        return self.anatomy.readout()

    def readout(self, layer: int = -1) -> Readout:
        """The rest of the network behind a layer; raises where that is more than final norm and unembedding."""
        found = self.readout_behind(layer)
        if isinstance(found, Unavailable):
            is_last = self.anatomy.layer_index(layer) == self.n_layers - 1
            raise UnsupportedModel(f"{found.why} {IN_FLOAT32 if is_last and self.model.dtype in HALF else PATCHING}")
        return found

    def capture(
        self,
        windows: Int[np.ndarray, "context position"] | Int[Tensor, "context position"],
        layer: int = -1,
        *,
        contexts_per_batch: int = 16,
    ) -> Capture:
        """Run the backbone, without the unembedding, and keep one layer's residual stream and activations.

        Args:
            windows: Token ids, [context, position].
            layer: Which layer; negative ones count from the end.
            contexts_per_batch: How many contexts go through the backbone at a time.

        Returns:
            Tensors on the model's device, context · position · (d_model + neuron) numbers: call it on as many windows
            as there is memory for.

        Raises:
            OutOfRange: The layer doesn't exist, an id has no row in the embedding, or the windows are too long.
        """
        ids = self.anatomy.token_ids(windows)
        resid, act = [], []
        for batch in ids.split(contexts_per_batch):
            with torch.inference_mode(), self.anatomy.reading(layer) as seen:
                self.anatomy.backbone(batch, use_cache=False)
            resid.append(seen["resid"])
            act.append(seen["act"].reshape(*batch.shape, -1))  # OPT runs its MLP on [context · position, ...]
        # Joined outside inference mode, so that the result is an ordinary tensor.
        return Capture(resid=torch.cat(resid), act=torch.cat(act))


def load_model(
    id_or_path: Any,
    revision: str | None = None,
    *,
    dtype: str = "float32",
    device: str = "auto",
    tokenizer: Any = None,
) -> Adapter:
    """Load a decoder-only model, in evaluation mode, and test whether the closed form of Eq. 3-4 holds for it.

    Only weights in safetensors files are read, nothing is unpickled, and no code of a repository is run. Every file is
    checked before memory is allocated for it.

    Args:
        id_or_path: A folder with config.json and *.safetensors, a GGUF file, a Hub id, or `id@revision`. An existing
            folder wins over a Hub id of the same name. Or a `transformers` model in memory, in whatever wraps it: its
            weights are copied, read through its modules where they aren't plain tensors, and it stays as it is.
        revision: Branch, tag or commit on the Hub; None for the default branch.
        dtype: What the model computes in: "float64", "float32", "bfloat16" or "float16". Half precision rounds a loss
            of 12 nats to 8e-3.
        device: "cpu", "cuda", "cuda:1", …; "auto" is CUDA where there is one.
        tokenizer: A tokenizer to use in place of the one beside the model.

    Returns:
        The adapter: weights [neuron, d_model] and activations [context, position, neuron] of every layer, and the
        readout behind the last one.

    Raises:
        ModelNotFound: There is no such folder, model or revision, or the Hub can't be reached.
        BrokenCheckpoint: Files are missing or damaged, contradict each other, or hold NaN or infinity.
        UnsupportedModel: The architecture isn't listed (`rareneuron families`), or weights are quantised.
        UnfitTokenizer: The tokenizer can't be read, has ids that the model has no row for, or was given and gives other
            ids than the file that it was read from.
        InvalidConfig: There is no such device on this machine.
        OutOfRange: There is no such dtype.

    Source:
        Eq. 3-4. What an architecture needs for it is one record in `models/families.py`; `models/probes.py` tests it.

    Example:
        >>> import rareneuron as rn
        >>> from rareneuron.embedded import SERIES
        >>> adapter = rn.load_model(SERIES / "step4096", device="cpu")
        >>> adapter.provenance["model_type"], adapter.n_layers, adapter.d_mlp
        ('gpt_neox', 3, 1024)
        >>> adapter.readout().W_U.shape  # [vocab, d_model]
        torch.Size([16384, 128])
        >>> adapter.readout_behind(layer=0).why
        "After layer 0 come 2 more blocks, so the closed form doesn't hold there; it does for the last layer, 2."
    """
    place = device_named(device)
    if not isinstance(id_or_path, str | os.PathLike):
        if revision is not None:
            raise ModelNotFound("A model in memory has no revisions. Leave the revision out.")
        return load_in_memory(id_or_path, tokenizer, dtype, place)
    return load_folder(model_folder(id_or_path, revision), dtype=dtype, device=place, tokenizer=tokenizer)


def load_folder(
    where: ModelFolder, *, dtype: str = "float32", device: str | torch.device = "auto", tokenizer: Any = None
) -> Adapter:
    """Load a model whose files are on this machine (`hub.model_folder`), as `load_model` does."""
    place = device_named(device) if isinstance(device, str) else device
    config = read_config(where.folder)
    model = load_causal_lm(where.folder, config, dtype)
    head = use_stored_head(model, where.folder)
    found = find_tokenizer(where.folder, model.config) if tokenizer is None else None
    digest = sha256_of_weights(where.folder)
    if where.weights_sha256 not in (None, digest):
        raise damaged(where.folder)
    return Adapter(
        model.to(place),
        tokenizer if found is None else found.tokenizer,
        {
            "source": where.source,
            "revision": where.revision,
            "commit": where.commit,
            "weights_sha256": digest,
            "form": where.form,
            "tokenizer": source_of(tokenizer) if found is None else found.source,
            "head": head,
        },
        folder=where.folder,
    )


def load_in_memory(model: Any, tokenizer: Any, dtype: str, place: torch.device) -> Adapter:
    """Make an adapter of a plain copy of a model in memory; its identity is a hash over all that it is."""
    if dtype not in DTYPES:
        raise OutOfRange(f"There is no dtype {dtype!r}. Use one of {', '.join(DTYPES)}; float32 is the default.")
    copied = plain_copy(opened(model))
    digest = identity(copied, tokenizer)
    provenance = {"source": "in memory", "revision": None, "commit": None, "weights_sha256": digest, "form": FORM}
    provenance["tokenizer"] = source_of(tokenizer)
    return Adapter(copied.to(place, DTYPES[dtype]), tokenizer, provenance)


def source_of(tokenizer: Any) -> str | None:
    """Say that a tokenizer's ids are its own, where one was given."""
    return None if tokenizer is None else f"{type(tokenizer).__name__}, as it was given"


def device_named(name: str) -> torch.device:
    """The device of a name; it must be there and compute in float64, as statistics need: the CPU, or CUDA."""
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{i}" for i in range(n_gpus))]
    if name == "auto":
        return torch.device("cuda" if n_gpus else "cpu")
    if name not in there:
        reason = "" if torch.version.cuda else f"; torch {torch.__version__} is a build without CUDA"
        raise InvalidConfig(
            f"There is no device {name!r} to compute on. This machine has {', '.join(there)}{reason}. Choose one of "
            "them with --device, or `auto`."
        )
    return torch.device(name)


def adapt(model: Any, tokenizer: Any = None) -> Adapter:
    """Make an adapter around a transformers model that is in memory already.

    The closed form is put to the test as it is at loading. The model is put in evaluation mode and otherwise left as
    it is: weights are shared, so an adapter of a model that is being trained is of its weights at every moment, but
    `closed_form` and the check for NaN are of those at this call.

    Args:
        model: A decoder-only `transformers` model with its language modelling head, on any device.
        tokenizer: Its tokenizer; only needed for what reads or shows text.

    Returns:
        The adapter. Its provenance says "in memory" and has no hash of the weights.

    Raises:
        UnsupportedModel: The architecture isn't listed (`rareneuron families`), or was modified.
        BrokenCheckpoint: A weight is NaN or infinite.
        UnfitTokenizer: The tokenizer has ids that the model has no row for.

    Source:
        Eq. 3-4, as for `load_model`.

    Example:
        >>> import rareneuron as rn
        >>> from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
        >>> config = GPTNeoXConfig(
        ...     vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
        ... )
        >>> adapter = rn.adapt(GPTNeoXForCausalLM(config))
        >>> adapter.closed_form.ok, adapter.W_out.shape  # a row for each neuron of the last layer
        (True, torch.Size([32, 16]))
    """
    provenance = {"source": "in memory", "revision": None, "commit": None, "weights_sha256": None}
    return Adapter(model.eval(), tokenizer, provenance)


def refuse_non_finite(model: Any) -> None:
    """Refuse a model with NaN or infinity in a weight, which would silently make every effect NaN."""
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            bad = int((~torch.isfinite(weight)).sum())
            raise BrokenCheckpoint(
                f"{bad} of {weight.numel()} numbers of `{name}` are NaN or infinite, so nothing computed with this "
                "checkpoint would mean anything. Download or save it again; if it was trained like this, it diverged."
            )
