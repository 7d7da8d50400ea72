"""The bytes of a text file as UTF-8: unpacked, and whatever encoding a byte order mark declares.

Nothing is guessed. A file without a mark is UTF-8 or refused, with its line and with advice that holds whatever the
file really is. Bad bytes are never replaced: a replacement character would become a token of its own, and a rare one.
Lines are bounded, so no file fills all memory, however little it takes on disk.
"""

import bz2
import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa

from rareneuron.errors import UnreadableText

BLOCK_BYTES = 1 << 18
MOST_BYTES = 1 << 28  # in one line or text; the longest novels have a hundredth of it
SEEN = 256  # bytes around a 0 that tell UTF-16 from other things

MARKS = {  # a longer mark first, since UTF-16's begins that of UTF-32
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
OTHERS = {  # first bytes of files that a name may hide
    b"\x1f\x8b": ("a gzip file", "Let its name end in .gz"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "Let its name end in .zst"),
    b"BZh91AY&": ("a bzip2 file", "Let its name end in .bz2"),
    b"\xfd7zXZ\x00": ("an xz file", "Unpack it (`xz -d`)"),
    b"PK\x03\x04": ("a zip archive", "Unpack it"),
    b"PAR1\x15": ("a Parquet file", "Let its name end in .parquet"),
    b"ARROW1\0\0": ("an Arrow file", "Let its name end in .arrow"),
    b"%PDF": ("a PDF", "Take the text out of it"),
}


def open_zstd(path: Path) -> BufferedIOBase:
    """Open a zstd file to read what it holds, all frames one after another."""
    return BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), BLOCK_BYTES)


UNPACK: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".zst": open_zstd,
    ".bz2": bz2.BZ2File,
}


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """Open a file as a stream of UTF-8; what it holds is unpacked and decoded as it is read."""
    packed = path.suffix.lower() in UNPACK
    try:
        with open_bytes(path) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        refuse_damaged(path, error)
    except OSError as error:
        if error.errno is not None or not packed:  # the system refuses, not the library that unpacks
            raise
        refuse_damaged(path, error)


@contextmanager
def open_bytes(path: Path) -> Iterator[Any]:
    """Open a file, skip a mark of UTF-8, and turn what other marks declare into UTF-8."""
    unpack = UNPACK.get(path.suffix.lower())
    with path.open("rb") if unpack is None else unpack(path) as file:
        head = file.peek(8)[:8]
        if unpack is None:
            refuse_others(path, head)
        mark = next((mark for mark in MARKS if head.startswith(mark)), b"")
        encoding = MARKS.get(mark, "utf-8")
        if encoding == "utf-8":
            file.read(len(mark))
            yield file
        else:
            with BufferedReader(Transcoded(file, encoding, path), BLOCK_BYTES) as decoded:
                yield decoded


class Transcoded(RawIOBase):
    """A stream of another encoding with a byte order mark, as UTF-8."""

    def __init__(self, file: BufferedIOBase, encoding: str, path: Path) -> None:
        self.file, self.path, self.encoding = file, path, encoding
        self.decoder = codecs.getincrementaldecoder(encoding)()
        self.waiting = b""

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with the next bytes; 0 at the end."""
        while not self.waiting:
            block = self.file.read(BLOCK_BYTES)
            try:
                self.waiting = self.decoder.decode(block, final=not block).encode("utf-8")
            except UnicodeDecodeError as error:
                raise UnreadableText(
                    f"{self.path}: its first bytes declare {self.encoding.upper()}, and what follows is something else "
                    f"({error.reason}), or is cut short. Fetch or write it again, best as UTF-8."
                ) from error
            if not block:
                break
        n = min(len(buffer), len(self.waiting))
        buffer[:n], self.waiting = self.waiting[:n], self.waiting[n:]
        return n


def read_lines(path: Path, file: BufferedIOBase) -> Iterator[bytes]:
    """Yield the lines of a file; one longer than `MOST_BYTES` is refused."""
    number = 0
    while line := file.readline(MOST_BYTES + 1):
        number += 1
        if len(line) > MOST_BYTES:
            refuse_length(f"{path}, line {number}")
        yield line


def text_blocks(path: Path, file: BufferedIOBase, first_line: int = 1) -> Iterator[tuple[str, bool]]:
    """Yield a file in blocks of text, each with whether it is the last; cut at line ends where there are any."""
    line, block = first_line, file.read(BLOCK_BYTES)
    while following := file.read(BLOCK_BYTES):  # a file of one block is one text, whatever it ends with
        cut = block_end(block)
        yield decode(block[:cut], path, line), False
        line += block.count(b"\n", 0, cut)
        block = block[cut:] + following
    yield decode(block, path, line), True


def block_end(block: bytes) -> int:
    """The place at which to cut a block: after its last line, or before its last space where it has no line end.

    A block without either is cut before its last character, which may be incomplete.
    """
    if cut := block.rfind(b"\n") + 1:
        return cut
    if (cut := block.rfind(b" ")) > 0:
        return cut
    cut = len(block) - 1
    while cut > 0 and block[cut] & 0xC0 == 0x80:  # a continuation byte of UTF-8
        cut -= 1
    return cut


def decode(block: bytes, path: Path, first_line: int) -> str:
    """Decode UTF-8; bytes that aren't text are refused with the number of their line."""
    if (zero := block.find(b"\0")) >= 0:
        refuse_zero(block, zero, path, first_line + block.count(b"\n", 0, zero))
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + block.count(b"\n", 0, error.start)
        raise UnreadableText(
            f"{path}, line {line}: byte 0x{block[error.start]:02x} isn't UTF-8 ({error.reason}). Guessing an encoding "
            f"would change the tokens. {advice(block, error)}"
        ) from error


def advice(block: bytes, error: UnicodeDecodeError) -> str:
    """Return what to do about bytes that aren't UTF-8, as far as the bytes beside them tell."""
    if not block[: error.start].isascii():
        return "What comes before it is UTF-8, so these bytes are damaged: mend or drop that line."
    return (
        "If the file was saved in another encoding, convert it (`iconv -f ENCODING -t utf-8`); if the rest is UTF-8, "
        "mend or drop that line."
    )


def refuse_zero(block: bytes, zero: int, path: Path, line: int) -> NoReturn:
    """Refuse a byte of 0, which no text holds; every other byte is 0 where UTF-16 holds letters from a to z."""
    near = block[max(0, zero - SEEN) & ~1 :][: 2 * SEEN]
    even, odd = near[::2].count(0), near[1::2].count(0)
    if min(even, odd) == 0 and max(even, odd) > len(near) // 4:
        which = ("utf-16le" if odd else "utf-16be") if line == 1 else "utf-16le, or utf-16be,"
        raise UnreadableText(
            f"{path}, line {line}: every other byte is 0, as in UTF-16, but the file doesn't begin with the byte order "
            f"mark by which that is known, so it isn't a text. Convert it (`iconv -f {which} -t utf-8`)."
        )
    raise UnreadableText(
        f"{path}, line {line}: holds a byte of 0, which no text does, so it is damaged or something else. Mend or drop "
        "that line, or leave the file out."
    )


def refuse_others(path: Path, head: bytes) -> None:
    """Refuse a file whose first bytes are those of another format than its name promises."""
    for magic, (what, remedy) in OTHERS.items():
        if head.startswith(magic):
            raise UnreadableText(
                f"{path} is {what} by its first bytes, which its name doesn't say, so it can't be read as text. "
                f"{remedy}."
            )


def refuse_length(where: str) -> NoReturn:
    """Refuse a line or text that would fill all memory."""
    raise UnreadableText(
        f"{where}: longer than {MOST_BYTES:,} bytes, which no text is, so it isn't read into memory. Split it, or drop "
        "that record."
    )


def refuse_damaged(path: Path, error: Exception) -> NoReturn:
    """Refuse a packed file that is cut short or damaged."""
    kind = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2"}.get(path.suffix.lower(), "packed")
    raise UnreadableText(
        f"{path}: the {kind} stream is cut short or damaged ({error}), so part of the corpus is missing. Fetch or "
        "write it again."
    ) from error
