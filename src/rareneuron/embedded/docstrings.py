"""English that every installation has: the docstrings of installed Python packages, read without importing them.

Sources are parsed with `ast`, so no package code runs. A document is one module: its docstrings in source
order. Paragraphs that occurred before are dropped, since API references repeat whole paragraphs hundreds of
times and a language model would learn to recite them. Training text additionally drops every paragraph of
the analysis text, so "training never sees it" holds for copied docstrings too.
"""

import ast
import importlib.util
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from rareneuron.errors import MissingText

TRAINING_PACKAGES = (
    "torch", "transformers", "sympy", "scipy", "sklearn", "pandas", "statsmodels", "numpy", "matplotlib",
    "huggingface_hub", "datasets", "pyarrow", "accelerate", "tokenizers", "joblib", "patsy",
)  # fmt: skip
ANALYSIS_PACKAGES = ("networkx", "mpmath", "jinja2", "fsspec", "filelock", "packaging", "click", "tqdm")
"""Held out whole. All are hard dependencies of this package, so the analysis text needs no extra."""

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
    | {"_vendor", "vendor", "__pycache__"}
)
BLOCKS = ("body", "orelse", "handlers", "finalbody")  # of a statement that holds statements
SHORTEST_PARAGRAPH = 40  # characters; shorter ones ("Parameters", "Returns") may repeat freely


def standard_library() -> Path:
    """Where this Python's own sources lie."""
    return Path(sysconfig.get_paths()["stdlib"])


def package_folder(name: str) -> Path:
    """Where an importable package's sources lie, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingText(
            f"The package {name!r} is not installed, and its docstrings are part of this text. "
            "Install what the recipe was pinned with: pip install 'rareneuron[train]' -c constraints.txt"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def module_docstrings(path: Path) -> list[str]:
    """All docstrings of one source file, in source order; an unparsable file has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarnings about other people's escape sequences
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and Python 2 sources lie in some packages
        return []
    found = []
    queue: list[ast.AST] = [tree]
    while queue:  # docstrings live in bodies of modules, classes and functions, so only blocks need a visit
        node = queue.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                found.append((getattr(node, "lineno", 0), text))
        for name in BLOCKS:
            queue.extend(child for child in getattr(node, name, ()) if hasattr(child, "body"))
    return [text for _, text in sorted(found, key=lambda pair: pair[0])]


def documents(folder: Path) -> Iterator[str]:
    """One document per module below `folder`, in path order."""
    for path in sorted(folder.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts[:-1]):
            text = "\n\n".join(module_docstrings(path))
            if text:
                yield text


def language_reference() -> Iterator[str]:
    """`pydoc_data.topics`: the chapters of the language reference that `help()` prints."""
    source = (standard_library() / "pydoc_data" / "topics.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            yield from (inspect.cleandoc(ast.literal_eval(value)) for value in node.values)
            return


def without_repeats(texts: Iterable[str], seen: set[int] | None = None) -> Iterator[str]:
    """Drop paragraphs that stood in an earlier text or in `seen`, which is updated in place."""
    seen = set() if seen is None else seen
    for text in texts:
        kept = []
        for paragraph in text.split("\n\n"):
            key = " ".join(paragraph.split())
            if len(key) >= SHORTEST_PARAGRAPH:
                if hash(key) in seen:
                    continue
                seen.add(hash(key))
            kept.append(paragraph)
        if any(len(paragraph) >= SHORTEST_PARAGRAPH for paragraph in kept):
            yield "\n\n".join(kept)


def analysis_texts() -> Iterator[str]:
    """The embedded corpus: standard library, language reference and the held-out packages."""

    def everything() -> Iterator[str]:
        yield from language_reference()
        yield from documents(standard_library())
        for name in ANALYSIS_PACKAGES:
            yield from documents(package_folder(name))

    return without_repeats(everything())


def training_texts(packages: Iterable[str] = TRAINING_PACKAGES) -> Iterator[str]:
    """What the embedded series is trained on; no paragraph of `analysis_texts` is in it."""
    seen: set[int] = set()
    for _ in without_repeats(analysis_texts(), seen):
        pass
    return without_repeats((text for name in packages for text in documents(package_folder(name))), seen)
