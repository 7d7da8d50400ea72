"""How to make the run again and how to cite it: the exact command, the versions it ran with, two BibTeX entries.

The command names every setting that isn't the default. Oracle: tests/present/test_report.py reads it back with the
command line's own parser and compares settings; the tool's entry is compared with CITATION.cff.
"""

import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from rareneuron.present.blocks import Definitions, Paragraph, Section
from rareneuron.present.findings import Findings
from rareneuron.runs.config import StudyConfig
from rareneuron.runs.layout import UNKNOWN_STEP_NAME

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "pandas")
PAPER = (
    "@misc{liu2025emergent, "
    "title = {Emergent Specialization: Rare Token Neurons in Language Models}, "
    "author = {Liu, Jing and Wang, Haozheng and Li, Yueheng}, "
    "year = {2025}, eprint = {2505.12822}, archivePrefix = {arXiv}, primaryClass = {cs.AI}}"
)
TOOL_TITLE = "rareneuron: the neurons that decide how well a language model predicts rare tokens"
TOOL_AUTHORS = "The rareneuron developers"


def reproduce_section(found: Findings) -> Section:
    """Return command, environment and citations."""
    manifest = found.manifest
    version = manifest.version
    items = [
        ("command", command(found.config, manifest.planned)),
        ("environment", environment_text(manifest.environment)),
        ("cite the paper", PAPER),
        ("cite the tool", tool_entry(version)),
    ]
    return Section(
        name="reproduce",
        title="Make it again, and cite it",
        blocks=(
            Paragraph(
                text=(
                    "The same command with the same versions on the same text gives the same tokens and, but for the "
                    "rounding of another processor, the same numbers. Hashes of text, counts and weights are above."
                )
            ),
            Definitions(items=tuple(items)),
        ),
    )


def command(config: StudyConfig, planned: Sequence[str]) -> str:
    """Return the command line that asks for this study; `--out` is left to the reader."""
    words, settings = ["rareneuron", "study"], config.identity()
    if config.model is not None:
        words.append(config.model)
    if asks_for_steps(config, planned):
        words += ["--steps", ",".join(planned)]
    for field in fields(StudyConfig):
        value = settings.get(field.name, field.default)
        if field.name == "model" or value == field.default:
            continue
        if isinstance(value, bool):
            value = "on" if value else "off"
        words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def asks_for_steps(config: StudyConfig, planned: Sequence[str]) -> bool:
    """Return whether the command has to name checkpoints; a revision is a single one already."""
    if not planned or UNKNOWN_STEP_NAME in planned:
        return False
    return config.revision is None and "@" not in (config.model or "")


def environment_text(environment: dict[str, Any]) -> str:
    """Return Python and the libraries that make the numbers, as recorded."""
    told = [f"{name} {environment[name]}" for name in ("rareneuron", "python", *LIBRARIES) if environment.get(name)]
    if environment.get("commit"):
        told[0] += f" (commit {environment['commit']})"
    return ", ".join(told)


def tool_entry(version: str) -> str:
    """Return the BibTeX entry of this version."""
    return (
        f"@software{{rareneuron, title = {{{TOOL_TITLE}}}, author = {{{{{TOOL_AUTHORS}}}}}, version = {{{version}}}}}"
    )
