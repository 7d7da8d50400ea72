"""Tests run under jaxtyping's import hook: annotated shapes are checked by beartype at call time."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import config as shape_checks
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("any machine", deadline=None)  # on a busy one an example may take as long as it likes
settings.load_profile("any machine")
# What a module under the hook is the first to import, the hook compiles anew: it looks for bytecode of its own name.
LIBRARIES = [
    *("beartype.vale", "click", "pandas", "pyarrow.parquet", "scipy.cluster.hierarchy", "scipy.optimize"),
    *("scipy.special", "scipy.stats", "spellchecker", "tomllib", "torch.distributed.tensor"),
    *("transformers.models.gpt_neox.modeling_gpt_neox", "transformers.trainer"),
]
for library in LIBRARIES:
    import_module(library)

_hook = install_import_hook("rareneuron", "beartype.beartype")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is read from or written to the cache of the user who runs the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What is written needn't outlive a power cut, which is what `fsync` is for and no test makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def through() -> Iterator[Callable[[Iterable[int]], Iterator[int]]]:
    """Go through the repetitions of a simulation: shapes are checked in the first, whose calls the others repeat."""
    before = shape_checks.jaxtyping_disable

    def repetitions(seeds: Iterable[int]) -> Iterator[int]:
        for n, seed in enumerate(seeds):
            shape_checks.update("jaxtyping_disable", before or n > 0)
            yield seed
        shape_checks.update("jaxtyping_disable", before)

    yield repetitions
    shape_checks.update("jaxtyping_disable", before)


# Fixtures that write models or run studies. Tests that use one take seconds, so all of them count as slow.
STUDIES = {"series", "llama", "config", "run_folder", "make_run", "finished", "explored", "fitted", "registered", "run"}


CHECKED: set[Path] = set()  # files of which a slow test has run
# Files of half a minute and more, the longest first.
LONGEST = [
    *("test_docs", "test_ray", "test_real_input", "test_run_folder", "test_geometry", "test_examples", "test_crash"),
    *("test_study", "test_memory", "test_cli", "test_golden", "test_groups", "test_workers", "test_report"),
    *("test_browser", "test_spectrum", "test_bad_models", "test_neuron_panel"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those with slow tests: of two workers neither is left alone with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    place = {name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.stem, len(place)), item.path not in slow))
    for item in items:
        if isinstance(item, pytest.Function) and not STUDIES.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Check shapes in fast tests and in the first slow one of a file: what follows makes the same calls on other input.

    A study makes ten thousands of checked calls, which are a quarter of its time.
    """
    is_slow = item.get_closest_marker("slow") is not None
    shape_checks.update("jaxtyping_disable", is_slow and item.path in CHECKED)
    if is_slow:
        CHECKED.add(item.path)
    try:
        return (yield)
    finally:
        shape_checks.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Reference data beside the repository; see tests/SKIPS.md."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference data, which is not at {SHARED} (tests/SKIPS.md)")
    return SHARED


# Below the hook, so that what these import is checked too.
from tests.tiny_series import (  # noqa: E402
    config,
    invoke,
    llama,
    run_folder,
    series,
    text_file,
    tokenizer,
    without_pages,
)

__all__ = ["config", "invoke", "llama", "run_folder", "series", "text_file", "tokenizer", "without_pages"]
