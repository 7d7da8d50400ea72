"""Refuses what an untrusted run folder could do: lead out of itself, or fill all memory when it is read.

Studies make no links in their runs, so every link is refused, for reading and for writing. Sizes are compared with
those of real runs before files are read.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rareneuron.errors import RunFolderError
from rareneuron.runs.layout import EVALUATIONS, FIGURES, STEPS, TABLES, UNITS

INNER_FOLDERS = {STEPS, UNITS, FIGURES, TABLES, EVALUATIONS}
# The most that a file of a run may hold, in bytes and rows; files of real runs have a hundredth of it.
MOST_BYTES, MOST_JSON, MOST_ROWS = 4 * 2**30, 256 * 2**20, 50_000_000


def link_in(path: Path) -> Path | None:
    """Return the first link among a file and the run's folders above it, or None; the run itself may be a link."""
    places = [path]
    if path.parent.name in INNER_FOLDERS:
        places.append(path.parent)
    elif path.parent.parent.name in INNER_FOLDERS:
        places += [path.parent, path.parent.parent]
    return next((place for place in places if place.is_symlink()), None)


def refuse_link(path: Path) -> None:
    """Refuse a symbolic link: it could lead outside the run folder."""
    if (link := link_in(path)) is not None:
        raise RunFolderError(
            f"{link} is a link to {link.readlink()}, and runs hold no links: any file could be read or written "
            "through them. Replace the link by a copy of what it leads to."
        )


def why_too_large(path: Path) -> str | None:
    """Return why a file is too large to be read, or None where it isn't."""
    size, most = path.stat().st_size, MOST_JSON if path.suffix == ".json" else MOST_BYTES
    return f"it has {size:,} bytes, and no such file needs more than {most:,}" if size > most else None


def why_unpacks_too_large(path: Path) -> str | None:
    """Return why a Parquet table, though small on disk, would fill all memory; None where it wouldn't.

    Either its own metadata says so, or it repeats long texts that are stored once; those are counted without being
    unpacked.
    """
    with pq.ParquetFile(path) as file:
        meta = file.metadata
        unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        if meta.num_rows > MOST_ROWS or unpacked > MOST_BYTES:
            return f"it claims {meta.num_rows:,} rows and {unpacked:,} bytes, and no table of a run has so many"
        strings = [f.name for f in file.schema_arrow if pa.types.is_string(f.type) or pa.types.is_binary(f.type)]
    if not strings:
        return None
    total = 0
    with pq.ParquetFile(path, read_dictionary=strings) as file:
        for batch in file.iter_batches(columns=strings):
            total += sum(unpacked_bytes(column) for column in batch.columns)
            if total > MOST_BYTES:
                return f"its texts take more than {MOST_BYTES:,} bytes, and those of a run never do"
    return None


def unpacked_bytes(column: pa.Array) -> int:
    """Return the size of a column in memory; each text counts in every row that holds it."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return int(pc.sum(pc.binary_length(column.dictionary).cast("int64").take(column.indices)).as_py() or 0)
