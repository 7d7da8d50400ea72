"""A Hugging Face model as residual stream, activations, W_out and the rest of the network.

Seen from one layer of neurons that is all a model is; nothing below this module knows that transformers exists,
nothing above looks inside a module. Weights are checked for NaN and the closed form is put to the test (`probes`)
at every load. bfloat16 and float16 checkpoints are computed in float32 unless asked otherwise, since half
precision rounds a 12-nat loss to 8e-3.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rareneuron.errors import BrokenCheckpoint, InvalidConfig, UnfitTokenizer, UnsupportedModel
from rareneuron.maths.readout import Readout
from rareneuron.models.anatomy import Anatomy, LayerWeights, anatomy
from rareneuron.models.families import Family
from rareneuron.models.hub import model_folder
from rareneuron.models.loading import load_causal_lm, load_tokenizer, read_config, sha256_of_weights
from rareneuron.models.probes import ClosedForm, closed_form

PATCHING = (
    "Use `--engine patching`, which re-runs the rest of the network: slower, and right for any layer and architecture."
)


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What flows through one layer, at every position of every context."""

    resid: Float[Tensor, "context position d_model"]  # the block's output; of the last layer: the final norm's input
    act: Float[Tensor, "context position neuron"]  # the input of the MLP's output projection


class Adapter:
    """A loaded model. Layers count from 0, negative ones from the end.

    `W_in`, `W_out`, `W_gate`, `d_mlp` are the last layer's.
    """

    def __init__(self, model: Any, tokenizer: Any, provenance: Mapping[str, Any]) -> None:
        self.model = model
        self.anatomy: Anatomy = anatomy(model)
        refuse_non_finite(model)
        self._tokenizer = tokenizer
        if tokenizer is not None:
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
        """The record of its architecture."""
        return self.anatomy.family

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; an error where the model came without one."""
        if self._tokenizer is None:
            raise UnfitTokenizer(
                f"{self.provenance['source']} has no tokenizer in its folder or the one above. Put tokenizer.json and "
                "tokenizer_config.json of the model there, or load it with `load_model(..., tokenizer=...)`."
            )
        return self._tokenizer

    @property
    def n_layers(self) -> int:
        """Transformer blocks."""
        return len(self.anatomy.blocks)

    @property
    def d_mlp(self) -> int:
        """Neurons of the last layer."""
        return self.W_out.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.W_out.shape[1]

    @property
    def vocab(self) -> int:
        """Rows of the unembedding, padding included."""
        return self.anatomy.unembedding.weight.shape[0]

    @property
    def W_in(self) -> Float[Tensor, "neuron d_model"]:
        """What each neuron of the last layer reads."""
        return self.weights().W_in

    @property
    def W_out(self) -> Float[Tensor, "neuron d_model"]:
        """What each neuron of the last layer writes."""
        return self.weights().W_out

    @property
    def W_gate(self) -> Float[Tensor, "neuron d_model"] | None:
        """What gates each neuron of the last layer; None where the MLP isn't gated."""
        return self.weights().W_gate

    def weights(self, layer: int = -1) -> LayerWeights:
        """The MLP matrices of any layer."""
        return self.anatomy.weights(layer)

    def readout(self, layer: int = -1) -> Readout:
        """The rest of the network after a layer, where that is final norm and unembedding."""
        index = self.anatomy.layer_index(layer)
        if index != self.n_layers - 1:
            raise UnsupportedModel(
                f"After layer {index} come {self.n_layers - 1 - index} more blocks, so the closed form doesn't hold "
                f"there; it does for the last layer, {self.n_layers - 1}. {PATCHING}"
            )
        if not self.closed_form.ok:
            raise UnsupportedModel(f"{self.closed_form.reason}, so the closed form of Eq. 3-4 doesn't hold. {PATCHING}")
        return self.anatomy.readout()

    def capture(
        self,
        windows: Int[np.ndarray, "context position"] | Int[Tensor, "context position"],
        layer: int = -1,
        *,
        contexts_per_batch: int = 16,
    ) -> Capture:
        """Run the backbone, without the unembedding, and keep one layer's residual and activations.

        The result takes context · position · (d_model + neuron) numbers on the model's device; call it on as many
        windows as there is memory for.
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
    id_or_path: str | os.PathLike[str],
    revision: str | None = None,
    *,
    dtype: str = "float32",
    device: str = "auto",
    tokenizer: Any = None,
) -> Adapter:
    """Load a decoder-only model from a folder, a Hub id or `id@revision`, in evaluation mode.

    `device="auto"` is CUDA where there is one. `tokenizer` replaces the one beside the model.
    """
    place = device_named(device)
    where = model_folder(id_or_path, revision)
    config = read_config(where.folder)
    model = load_causal_lm(where.folder, config, dtype)
    return Adapter(
        model.to(place),
        load_tokenizer(where.folder, model.config) if tokenizer is None else tokenizer,
        {
            "source": where.source,
            "revision": where.revision,
            "commit": where.commit,
            "weights_sha256": sha256_of_weights(where.folder),
        },
    )


def device_named(name: str) -> torch.device:
    """A device that is there and computes in float64, as statistics need, which leaves the CPU and CUDA."""
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{i}" for i in range(n_gpus))]
    if name == "auto":
        return torch.device("cuda" if n_gpus else "cpu")
    if name not in there:
        reason = "" if torch.version.cuda else f"; torch {torch.__version__} is a build without CUDA"
        raise InvalidConfig(
            f"There is no device {name!r} to compute on. Here are {', '.join(there)}{reason}. Choose one of them with "
            "--device, or `auto`."
        )
    return torch.device(name)


def adapt(model: Any, tokenizer: Any = None) -> Adapter:
    """An adapter around a transformers model that is in memory already; the model is put in evaluation mode."""
    provenance = {"source": "in memory", "revision": None, "commit": None, "weights_sha256": None}
    return Adapter(model.eval(), tokenizer, provenance)


def refuse_non_finite(model: Any) -> None:
    """NaN or infinity in a weight would silently make every effect NaN."""
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            bad = int((~torch.isfinite(weight)).sum())
            raise BrokenCheckpoint(
                f"{bad} of {weight.numel()} numbers of `{name}` are NaN or infinite, so nothing computed with this "
                "checkpoint would mean anything. Download or save it again; if it was trained like this, it diverged."
            )


def refuse_unfit_tokenizer(tokenizer: Any, model: Any) -> None:
    """Every id that the tokenizer can give needs a row of the embedding."""
    largest, rows = max(tokenizer.get_vocab().values(), default=-1), model.get_input_embeddings().weight.shape[0]
    if largest >= rows:
        raise UnfitTokenizer(
            f"The tokenizer's largest id is {largest}, and the model's embedding has {rows} rows, so the two don't "
            "belong together. Give the tokenizer that the model was trained with."
        )
