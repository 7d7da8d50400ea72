"""What a run folder from strangers may not do: lead out of itself, or unpack to all memory.

No study makes a link in its run, so any is refused, to be read through or written through. Sizes are compared with what
such files hold, before they are read.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rareneuron.errors import RunFolderError

INNER_FOLDERS = {"steps", "units", "figures", "tables"}
# What a file of a run may hold, in bytes and rows; those of real runs have a hundredth of it.
MOST_BYTES, MOST_JSON, MOST_ROWS = 4 * 2**30, 256 * 2**20, 50_000_000


def link_in(path: Path) -> Path | None:
    """A link among a file and the folders of the run above it; the run itself may be one."""
    places = [path]
    if path.parent.name in INNER_FOLDERS:
        places.append(path.parent)
    elif path.parent.parent.name in INNER_FOLDERS:
        places += [path.parent, path.parent.parent]
    return next((place for place in places if place.is_symlink()), None)


def refuse_link(path: Path) -> None:
    """A way out of the run folder, which one from elsewhere may have."""
    if (link := link_in(path)) is not None:
        raise RunFolderError(
            f"{link} is a link to {link.readlink()}, and a run holds none: any file could be read or written so. Put a "
            "copy of what it leads to in its place."
        )


def too_large(path: Path) -> str | None:
    """Why a file is larger than any of its kind; None where it isn't."""
    size, most = path.stat().st_size, MOST_JSON if path.suffix == ".json" else MOST_BYTES
    return f"it has {size:,} bytes, and no such file needs more than {most:,}" if size > most else None


def unpacks_too_large(path: Path) -> str | None:
    """Why a Parquet table of a few bytes would fill all memory; None where it wouldn't.

    By its own account, or by long texts that are stored once and repeated; those are counted without being unpacked.
    """
    with pq.ParquetFile(path) as file:
        meta = file.metadata
        unpacked = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        if meta.num_rows > MOST_ROWS or unpacked > MOST_BYTES:
            return f"it claims {meta.num_rows:,} rows and {unpacked:,} bytes, which no table of a run has"
        strings = [f.name for f in file.schema_arrow if pa.types.is_string(f.type) or pa.types.is_binary(f.type)]
    if not strings:
        return None
    total = 0
    with pq.ParquetFile(path, read_dictionary=strings) as file:
        for batch in file.iter_batches(columns=strings):
            total += sum(unpacked_bytes(column) for column in batch.columns)
            if total > MOST_BYTES:
                return f"its texts take more than {MOST_BYTES:,} bytes, which those of no run do"
    return None


def unpacked_bytes(column: pa.Array) -> int:
    """Of texts, each at the length that it has in every row."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return int(pc.sum(pc.binary_length(column.dictionary).cast("int64").take(column.indices)).as_py() or 0)
