"""A table of words and numbers as Markdown and as LaTeX. Text stays text: names of models are no markup."""

from dataclasses import dataclass

from rareneuron.present.wording import MINUS, SUPERSCRIPT


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """One table with finished cells."""

    number: int
    title: str
    caption: str
    columns: tuple[str, ...]  # words first, then groups
    n_words: int  # columns of words
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]  # what each run is, and what must be known to compare


def as_markdown(table: PaperTable) -> str:
    """Return a heading, a caption, a table as GitHub reads it, and its notes."""
    rule = ["---"] * table.n_words + ["--:"] * (len(table.columns) - table.n_words)
    cells = [table.columns, rule, *without_repeats(table)]
    lines = [f"| {' | '.join(escaped_markdown(cell) for cell in row)} |" for row in cells]
    notes = [f"- {escaped_markdown(note)}" for note in table.notes]
    caption = escaped_markdown(table.caption)
    return "\n".join([f"## {escaped_markdown(table.title)}", "", caption, "", *lines, "", *notes, ""])


def escaped_markdown(text: str) -> str:
    """Return Markdown that shows this text as it is; names hold underscores, but never two around a word."""
    return "".join(f"\\{c}" if c in "\\|*`<[$~" else c for c in text)


LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    MINUS: "$-$",
    "–": "--",
    "×": r"$\times$",
    "“": "``",
    "”": "''",
    "α": r"$\alpha$",
    "τ": r"$\tau$",
    "λ": r"$\lambda$",
    "Δ": r"$\Delta$",
    "ρ": r"$\rho$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "␣": r"\textvisiblespace{}",
    "[": "{[}",  # at the head of a row it would be an option
    **{c: f"\\{c}" for c in "&%$#_"},
    **{chr(raised): f"$^{{{chr(plain)}}}$" for plain, raised in SUPERSCRIPT.items()},
}


def as_latex(table: PaperTable) -> str:
    """Return a `table` for booktabs, with its notes in small type under it."""
    columns = "l" * table.n_words + "r" * (len(table.columns) - table.n_words)
    head, *body = (
        f"{' & '.join(escaped_latex(cell) for cell in row)} \\\\" for row in (table.columns, *without_repeats(table))
    )
    title = table.title.partition(": ")[2]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{escaped_latex(title)}. {escaped_latex(table.caption)}}}",
            f"\\label{{tab:rareneuron-{table.number}}}",
            f"\\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(f"\\par\\footnotesize {escaped_latex(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def escaped_latex(text: str) -> str:
    """Return LaTeX that shows this text as it is, in symbols that every LaTeX has."""
    return "".join(LATEX.get(c, c) for c in text)


def without_repeats(table: PaperTable) -> list[tuple[str, ...]]:
    """Return the rows, without words that repeat those of the row above; the last word stays."""
    out, above = [], ("",) * table.n_words
    for row in table.rows:
        words, same = list(row[: table.n_words - 1]), True
        for i, word in enumerate(words):
            same = same and word == above[i]
            words[i] = "" if same else word
        out.append((*words, *row[table.n_words - 1 :]))
        above = row[: table.n_words]
    return out
