"""Spoils every kind of file that rareneuron reads from strangers, and reports the readers that don't cope.

Claim: whatever a model folder, corpus, count file, settings file or run folder holds, a reader returns, or raises a
`RareNeuronError`, within 20 seconds. Trick: hypothesis draws changes to sound files (bytes, and JSON by its structure,
so that sizes and names are reached); a run's JSON is sealed again with the right checksum. Hypothesis shrinks what
fails. `benchmarks/fuzz_readers.py` adds the bound on memory and runs for as long as you like.
"""

import bz2
import gzip
import io
import json
import shutil
import signal
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rareneuron.data.counts import Unigrams
from rareneuron.data.rarity import load_counts
from rareneuron.data.texts import open_corpus
from rareneuron.errors import RareNeuronError
from rareneuron.models.checkpoints import list_checkpoints
from rareneuron.models.loading import load_causal_lm, read_config, read_header
from rareneuron.models.shape import model_shape
from rareneuron.models.suspicions import tensor_facts
from rareneuron.models.tokenizers import load_tokenizer
from rareneuron.present.findings import Findings
from rareneuron.present.sections.checkpoints import audit_text, checkpoint_row
from rareneuron.present.sections.provenance import provenance_section
from rareneuron.present.sections.targets import rule, stage_table
from rareneuron.present.summary import audit_line
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.files import damage, read_table, read_tensors, text_digest, write_json, write_table, write_tensors
from rareneuron.runs.run import Run, open_run
from rareneuron.runs.store import RunStore
from rareneuron.runs.unigrams import Origin, read_unigrams, write_unigrams
from rareneuron.study.merge import missing_steps, settings_of
from tests.run_records import RUN, STEP

PER_EXAMPLE = 20.0  # seconds
WORDS = ["time", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"]
SIZE = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "gpt2": {"n_inner": 24},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "qwen3": {"head_dim": 8, "num_key_value_heads": 1},
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 1},
}

HOSTILE = st.one_of(
    st.sampled_from(
        [
            *(0, -1, 1, 2**31 - 1, 2**31, 10**6, 10**12, 10**400, -(10**12), 1e308, 1e-308, float("nan"), float("inf")),
            *("", "../x", "/etc/passwd", "\0", "x" * 5000, "owner/kernel", "auto", "None", "\ud800", "{{ 1 }}"),
            *([], {}, [[]], [None] * 1000, {"a": {"b": {}}}, True, False, None),
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.lists(st.integers(), max_size=5),
)

SHOWN = pd.DataFrame({"neuron": ["1.0"], "rank": [1], "abs_delta_loss": [0.1]})


@dataclass(frozen=True)
class Target:
    """One kind of file: the sound one, how it is spoiled, and what reads it."""

    name: str
    file: Path
    spoiled: st.SearchStrategy[bytes]
    read: Callable[[], Any]


class TooSlow(BaseException):
    """A reader took longer than it may; not an `Exception`, so that no reader can catch it by mistake."""


def changed_bytes(sound: bytes) -> st.SearchStrategy[bytes]:
    """A few bytes written over, put in, taken out or repeated, or the end cut off."""

    @st.composite
    def strategy(draw: Any) -> bytes:
        content = bytearray(sound)
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(content)))
            match draw(st.sampled_from(("over", "in", "out", "cut", "again"))):
                case "over":
                    new = draw(st.binary(min_size=1, max_size=16))
                    content[at : at + len(new)] = new
                case "in":
                    content[at:at] = draw(st.binary(max_size=64))
                case "out":
                    del content[at : at + draw(st.integers(1, 64))]
                case "cut":
                    del content[at:]
                case "again":
                    content[at:at] = content[at : at + 64] * draw(st.integers(1, 50))
        return bytes(content)

    return strategy()


def changed_json(sound: Any) -> st.SearchStrategy[Any]:
    """Values replaced, removed, wrapped or added anywhere in a structure."""

    @st.composite
    def strategy(draw: Any) -> Any:
        content = json.loads(json.dumps(sound))
        for _ in range(draw(st.integers(1, 3))):
            place, key = content, None
            while isinstance(place, dict | list) and place:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                parent, key = place, draw(st.sampled_from(keys))
                place = place[key]
                if draw(st.booleans()):
                    break
            if key is None:
                return deepcopy(draw(HOSTILE))
            match draw(st.sampled_from(("replace", "replace", "remove", "wrap", "add"))):
                case "replace":
                    parent[key] = deepcopy(draw(HOSTILE))  # the next change may be inside it
                case "remove":
                    del parent[key]
                case "wrap":
                    parent[key] = [place] * draw(st.integers(1, 3))
                case "add" if isinstance(parent, dict):
                    parent[draw(st.text(max_size=12))] = deepcopy(draw(HOSTILE))
        return content

    return strategy()


def as_bytes(content: Any) -> bytes:
    return json.dumps(content).encode("utf-8", "surrogatepass")


def spoiled_json(file: Path) -> st.SearchStrategy[bytes]:
    sound = file.read_bytes()
    return st.one_of(changed_json(json.loads(sound)).map(as_bytes), changed_bytes(sound))


def spoiled_tensors(file: Path) -> st.SearchStrategy[bytes]:
    """The header by its structure, or any bytes."""
    sound = file.read_bytes()
    (length,) = struct.unpack("<Q", sound[:8])
    header = json.loads(sound[8 : 8 + length])

    def joined(changed: Any) -> bytes:
        new = as_bytes(changed)
        return struct.pack("<Q", len(new)) + new + sound[8 + length :]

    return st.one_of(changed_json(header).map(joined), changed_bytes(sound))


def model_targets(folder: Path) -> list[Target]:
    out = []
    for model_type, extra in FAMILIES.items():
        place = folder / model_type
        defaults = AutoConfig.for_model(model_type)
        known = {k: v for k, v in SIZE.items() if hasattr(defaults, k) or k in type(defaults).attribute_map}
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **known | extra)).save_pretrained(place)
        words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<s>", *WORDS])}, unk_token="<s>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>").save_pretrained(place)

        def load(place: Path = place) -> None:
            load_causal_lm(place, read_config(place), "float32")

        def plan(place: Path = place) -> None:
            model_shape(place)

        def encode(place: Path = place) -> None:
            tokenizer = load_tokenizer(place, None)
            if tokenizer is not None:
                len(tokenizer), tokenizer.get_vocab()

        def weights(place: Path = place) -> None:
            read_header(place)
            tensor_facts(place)
            load_causal_lm(place, read_config(place), "float32")

        def both(load: Callable[[], None] = load, plan: Callable[[], None] = plan) -> None:
            try:
                plan()
            except RareNeuronError:
                load()
                raise
            load()

        config = place / "config.json"
        out.append(Target(f"config {model_type}", config, spoiled_json(config), both))
        if model_type == "gpt2":
            file = place / "model.safetensors"
            out.append(Target("weights", file, spoiled_tensors(file), weights))
            for name, read in (("tokenizer", encode), ("tokenizer_config", encode), ("generation_config", load)):
                out.append(Target(name, place / f"{name}.json", spoiled_json(place / f"{name}.json"), read))
    sharded = folder / "sharded"
    AutoModelForCausalLM.from_pretrained(folder / "gpt2").save_pretrained(sharded, max_shard_size="4KB")
    index = sharded / "model.safetensors.index.json"
    out.append(Target("index", index, spoiled_json(index), lambda: read_header(sharded)))
    return out


def zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as file:
        file.write(content)
    return packed.getvalue().to_pybytes()


def arrow(records: pd.DataFrame) -> bytes:
    out, table = pa.BufferOutputStream(), pa.Table.from_pandas(records)
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return out.getvalue().to_pybytes()


def text_targets(folder: Path) -> list[Target]:
    folder.mkdir()
    texts = [" ".join(WORDS) + f" {i} ünë." for i in range(20)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    table = io.BytesIO()
    pd.DataFrame({"id": range(20), "text": texts}).to_parquet(table)
    sound = {"c.txt": "\n".join(texts).encode(), "c.jsonl": lines, "c.parquet": table.getvalue()}
    records = pd.DataFrame({"id": range(20), "text": texts})
    sound |= {"c.json": records.to_json(orient="records").encode(), "c.csv": records.to_csv(index=False).encode()}
    sound |= {
        "c.tsv": ("\ufeff" + records.to_csv(index=False, sep="\t")).encode("utf-16-le"),
        "c.arrow": arrow(records),
    }
    sound |= {f"{name}.gz": gzip.compress(sound[name]) for name in ("c.txt", "c.jsonl")}
    sound |= {"c.jsonl.zst": zstd(lines), "c.json.bz2": bz2.compress(sound["c.json"])}
    out = []
    for name, content in sound.items():
        file = folder / name
        file.write_bytes(content)
        spoiled = changed_bytes(content)
        if (inside := Path(name).stem) in sound:
            pack = {".gz": gzip.compress, ".zst": zstd, ".bz2": bz2.compress}[Path(name).suffix]
            spoiled = st.one_of(spoiled, changed_bytes(sound[inside]).map(pack))
        out.append(Target(name, file, spoiled, lambda file=file: sum(map(len, open_corpus(file)))))
    saved = folder / "saved"
    saved.mkdir()
    (saved / "data.arrow").write_bytes(sound["c.arrow"])
    state = saved / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}], "_indices_files": None}))
    out.append(Target("state.json", state, spoiled_json(state), lambda: sum(map(len, open_corpus(saved)))))
    return out


def other_targets(folder: Path) -> list[Target]:
    folder.mkdir()
    out, counts = [], np.arange(23)
    np.save(folder / "u.npy", counts)
    np.savez_compressed(folder / "u.npz", counts=counts)
    pd.DataFrame({"token": counts, "count": counts}).to_parquet(folder / "u.parquet")
    for name in ("u.npy", "u.npz", "u.parquet"):
        file = folder / name
        out.append(
            Target(f"counts {name}", file, changed_bytes(file.read_bytes()), lambda file=file: load_counts(file, 23))
        )
    file, p = folder / "u.safetensors", np.arange(1, 24) / 276
    origin = Origin(weights="00" * 32, tokenizer="11" * 32, text="22" * 32)
    write_unigrams(file, Unigrams(source="model", p=p, se=p / 10, n_contexts=7, n_positions=70), origin)
    out.append(Target("unigrams", file, changed_bytes(file.read_bytes()), lambda file=file: read_unigrams(file)))
    file = folder / "study.toml"
    file.write_text('model = "lab/tiny"\nsteps = [0, 512]\npercentile = 50.0\nwords = true\nmemory = 4\nseed = 0\n')
    out.append(Target("settings", file, changed_bytes(file.read_bytes()), lambda: StudyConfig.from_toml(file)))
    return out


def found_in(run: Run) -> Findings:
    """What the report's sections go by, but for the tables."""
    return Findings(
        run=run, manifest=run.manifest, steps=(0,), records=(run.step_record(0),), effects=(SHOWN,), tokens=SHOWN
    )


def run_targets(folder: Path) -> list[Target]:
    """A run's files as `store` reads them; JSON also with the checksum of what it was changed to."""
    step = folder / "steps" / "0"
    store = RunStore(folder)
    write_json(folder / "run.json", RUN)
    write_json(step / "step.json", STEP)
    frame = {"neuron": ["1.0", "1.1"], "delta_loss": [0.5, -0.5], "rank": [1, 2]}
    write_table(step / "effects.parquet", pd.DataFrame(frame))
    write_tensors(step / "context_sums.safetensors", {"n": np.arange(5), "delta": np.ones((3, 4), np.float32)})

    def sealed(changed: Any) -> bytes:
        if not isinstance(changed, dict):
            return as_bytes(changed)
        try:
            return as_bytes({**changed, "sha256": text_digest(changed)})
        except ValueError:  # NaN
            return as_bytes(changed)

    def manifest() -> None:
        store.finished_steps()
        found = found_in(open_run(folder))
        (
            missing_steps(found.run),
            settings_of(store),
            found.run.shown_table(),
            found.subject.layer_name,
            found.subject.model,
        )
        stage_table(found.data, words=True), rule(found.data), provenance_section(found)

    def record() -> None:
        damage(step)
        found = found_in(open_run(folder))
        audit_text(found.records[0]), audit_line(found.records[0]), provenance_section(found)
        checkpoint_row(0, found.records[0], SHOWN, 1.0)

    def spoiled_record(file: Path, sound: dict[str, Any]) -> st.SearchStrategy[bytes]:
        return st.one_of(changed_json(sound).map(sealed), spoiled_json(file))

    run, table, tensors = folder / "run.json", step / "effects.parquet", step / "context_sums.safetensors"
    return [
        Target("run.json", run, spoiled_record(run, RUN), manifest),
        Target("step.json", step / "step.json", spoiled_record(step / "step.json", STEP), record),
        Target("run table", table, changed_bytes(table.read_bytes()), lambda: read_table(table)),
        Target("run tensors", tensors, spoiled_tensors(tensors), lambda: read_tensors(tensors)),
    ]


def series_targets(folder: Path) -> list[Target]:
    """A folder's name is all that a listing reads of it."""
    folder.mkdir()
    file = folder / "name"
    file.write_bytes(b"step0")
    names = st.one_of(changed_bytes(b"step12"), st.text(max_size=20).map(lambda text: text.encode("utf-8", "ignore")))

    def listing() -> None:
        name = file.read_bytes().decode("utf-8", "ignore").replace("/", "").replace("\0", "")
        place = folder / "series" / f"s{name}"[1:101]
        if name in ("", ".", ".."):
            return
        place.mkdir(parents=True, exist_ok=True)
        try:
            list_checkpoints(folder / "series")
        finally:
            shutil.rmtree(folder / "series")

    return [Target("series", file, names, listing)]


def all_targets(folder: Path) -> list[Target]:
    """Every kind of file, written soundly into `folder`."""
    return [
        *model_targets(folder / "models"),
        *text_targets(folder / "texts"),
        *other_targets(folder / "other"),
        *run_targets(folder / "run"),
        *series_targets(folder / "list"),
    ]


@contextmanager
def time_limit(seconds: float, name: str) -> Iterator[None]:
    """Raise `TooSlow` after so many seconds; a timer that ran before, such as pytest-timeout's, runs on afterwards."""

    def late(*_: Any) -> None:
        raise TooSlow(f"{name}: more than {seconds} s")

    handler = signal.signal(signal.SIGALRM, late)
    start, (remaining, interval) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - start), 1e-3), interval)


def fuzz(target: Target, number: int, n_examples: int, found: Counter[str], limit: float = PER_EXAMPLE) -> str | None:
    """Read so many spoiled files, drawn by the seed `number`; return the traceback of the smallest failure, or None."""
    sound = target.file.read_bytes()

    @seed(number)
    @settings(
        max_examples=n_examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(target.spoiled)
    def check(content: bytes) -> None:
        target.file.write_bytes(content)
        with time_limit(limit, target.name):
            try:
                target.read()
                found["read"] += 1
            except RareNeuronError:
                found["refused"] += 1

    try:
        check()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "".join(traceback.format_exception(error))
    finally:
        target.file.write_bytes(sound)
    return None
