"""Looks into the messages of an Arrow file before they are read: a batch that is packed inside may unpack to anything.

Arrow's own reader has no bound on that, and the library `datasets` doesn't pack. The layout of a message is a
flatbuffer (https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format): a table begins with the
distance back to the list of places of its fields.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from rareneuron.errors import UnreadableText

HEADER_TYPE, HEADER = 1, 2  # fields of a message
DICTIONARY, BATCH = 2, 3  # kinds of header
DATA = 1  # field of a dictionary: its batch
COMPRESSION = 3  # field of a batch


def refuse_packed_batches(path: Path, file: Any, start: int) -> None:
    """Refuse a file that has a batch packed inside. Only the messages' heads are read, the file being mapped."""
    file.seek(start)
    messages = pa.ipc.MessageReader.open_stream(file)
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        if is_packed(bytes(message.metadata)):
            raise UnreadableText(
                f"{path} is packed inside, so nothing bounds what it takes in memory, and it isn't read. Write it "
                "without compression, or as .parquet."
            )


def is_packed(head: bytes) -> bool:
    """Return whether a message is a batch, or a dictionary, whose buffers are compressed."""
    try:
        message = number(head, 0, 4)
        kind = field(head, message, HEADER_TYPE)
        table = field(head, message, HEADER)
        if not kind or not table or head[kind] not in (DICTIONARY, BATCH):
            return False
        batch = table + number(head, table, 4)
        if head[kind] == DICTIONARY:
            data = field(head, batch, DATA)
            batch = data + number(head, data, 4)
        return field(head, batch, COMPRESSION) > 0
    except IndexError as error:
        raise pa.ArrowInvalid("a message's head is damaged") from error


def field(head: bytes, table: int, index: int) -> int:
    """Return where a field of a table stands; 0 where the table doesn't have it."""
    places = table - number(head, table, 4, signed=True)
    if 4 + 2 * index >= number(head, places, 2):
        return 0
    place = number(head, places + 4 + 2 * index, 2)
    return table + place if place else 0


def number(head: bytes, at: int, size: int, *, signed: bool = False) -> int:
    """Return the number at a place, least byte first."""
    if not 0 <= at <= len(head) - size:
        raise IndexError(at)
    return int.from_bytes(head[at : at + size], "little", signed=signed)
