"""What a folder of text holds: files that can be read, and what is left out, so that both can be said.

A folder of data rarely holds data alone. Licences, readmes and the records that libraries write beside their data are
never text of the corpus, whatever their suffix. Where the files left out are larger than those that can be read, the
corpus is probably among them, and the folder is refused: a note beside an archive isn't what was meant.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rareneuron.data.records import known_suffixes, suffix_of
from rareneuron.data.streams import UNPACK
from rareneuron.errors import MissingText, UnreadableText
from rareneuron.links import allowed_roots, leads_out

PAPERS = re.compile(
    r"(licen[cs]es?|copying|copyright|notice|readme|citation|authors|contributors|contributing|changelog|disclaimer"
    r"|terms[-_ ]of[-_ ](use|service)|requirements|robots|(md5|sha\d+|check)sums?)([-_. ].*)?",
    re.IGNORECASE,
)
RECORDS = {"state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"}  # of the library `datasets`
MOST_RECORD_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class FolderFiles:
    """The files of a folder, at all levels, in sorted order."""

    folder: Path
    read: tuple[Path, ...]
    papers: tuple[Path, ...]  # licences, readmes, a library's own records
    unknown: tuple[Path, ...]

    @property
    def description(self) -> str:
        """What is read and what is left out, by suffix and count."""
        files = f"{len(self.read):,} file{'' if len(self.read) == 1 else 's'} in {self.folder.name}"
        return f"{files} ({counted(self.read)})" + (f"; left out: {self.left_out}" if self.left_out else "")

    @property
    def left_out(self) -> str:
        """What is left out: papers by their names where they are few, other files by suffix."""
        names = [path.name for path in self.papers] if len(self.papers) <= 3 else [counted(self.papers)]
        return ", ".join([*([counted(self.unknown)] if self.unknown else []), *names])


def counted(files: Iterable[Path]) -> str:
    """Return how many files there are of each suffix."""
    found = Counter(shown_suffix(path) for path in files)
    return ", ".join(f"{n:,} {suffix}" for suffix, n in sorted(found.items(), key=lambda item: (-item[1], item[0])))


def shown_suffix(path: Path) -> str:
    """Return the suffix by which a file is read, or its own, with what it is packed in."""
    own = path.suffix.lower()
    packed = own in (*UNPACK, ".xz", ".lz4", ".zip") and len(path.suffixes) > 1
    return suffix_of(path) or ("".join(path.suffixes[-2:]).lower() if packed else own) or "without a suffix"


def files_of(folder: Path) -> FolderFiles:
    """Return the files of a folder, or refuse one that holds no text, or mostly something else."""
    everything = sorted(
        path for path in folder.rglob("*") if path.is_file() and not is_hidden(path.relative_to(folder))
    )
    refuse_links(folder, everything)
    aside = {path for path in everything if is_paper(path)} | left_by_datasets(everything)
    data = [path for path in everything if path not in aside]
    found = FolderFiles(
        folder=folder,
        read=tuple(path for path in data if suffix_of(path) is not None),
        papers=tuple(path for path in everything if path in aside),
        unknown=tuple(path for path in data if suffix_of(path) is None),
    )
    if not found.read:
        others = f"but {found.left_out}" if found.left_out else "nor any other"
        raise MissingText(
            f"{folder} holds no file of text ({others}), so there is no text to read. Name a folder of "
            f"{known_suffixes()} files, or a file, with `--data`."
        )
    refuse_mostly_unknown(found)
    return found


def refuse_mostly_unknown(found: FolderFiles) -> None:
    """Refuse a folder whose files that can't be read are larger than those that can."""
    readable, unknown = (sum(path.stat().st_size for path in files) for files in (found.read, found.unknown))
    if unknown > readable:
        raise UnreadableText(
            f"{found.folder}: {counted(found.unknown)} can't be read and is more than the {counted(found.read)} that "
            f"can ({unknown:,} bytes beside {readable:,}), so the corpus is probably what would be left out. Convert "
            f"it to one of {known_suffixes()}, or name the files to read, or their own folder, with `--data`."
        )


def is_paper(path: Path) -> bool:
    """Return whether a file is a licence, a readme or a library's record, by its name."""
    return path.name in RECORDS or (PAPERS.fullmatch(path.name) is not None and suffix_of(path) in (None, *TEXTUAL))


TEXTUAL = (".txt", *(f".txt{packing}" for packing in UNPACK))  # a corpus may well be called `authors.jsonl`


def left_by_datasets(files: Iterable[Path]) -> set[Path]:
    """Return the Arrow files that `datasets` left beside a saved set, such as results of a `map`: its texts again."""
    out: set[Path] = set()
    for record in (path for path in files if path.name == "state.json"):
        listed = data_files(record)
        beside = {path for path in files if path.parent == record.parent and path.suffix == ".arrow"}
        out |= {path for path in beside if listed and path.name not in listed}
    return out


def data_files(record: Path) -> set[str]:
    """Return the names of the files that a saved data set consists of; none where the record doesn't say."""
    try:
        found = json.loads(record.read_bytes()) if record.stat().st_size <= MOST_RECORD_BYTES else {}
        listed = found.get("_data_files") or []
        chosen = found.get("_indices_data_files") or found.get("_indices_files")
        names = {f"{item['filename']}" for item in listed}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):  # not a record of a data set
        return set()
    if chosen:
        raise UnreadableText(
            f"{record.parent} is a data set of which only some rows are meant, by a list of their own, and that isn't "
            "read. Save it again after `flatten_indices()`."
        )
    return names


def refuse_links(folder: Path, files: list[Path]) -> None:
    """Refuse links that lead out of a folder of text, but for those of a snapshot to its blobs in the Hub's cache."""
    roots = allowed_roots(folder.resolve(), "datasets")
    for path in files:
        if leads_out(path, roots):
            raise UnreadableText(
                f"{path} is a link to {path.readlink()}, outside the folder of text, and a folder from elsewhere could "
                "make any file be read so. Put a copy in its place, or name the files' own folder with `--data`."
            )


def is_hidden(path: Path) -> bool:
    """Whether a file, or a folder above it, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.parts)
