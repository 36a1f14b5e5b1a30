"""Header blocks to bytes and back, each distinct one once. What h2 takes for its encoder and decoder.

What goes out uses no dynamic table: it is told to have size 0 in the first block, and from then on the
bytes of a block follow from its fields alone, so they are right to remember for as long as one likes.

What comes in does use the table, so a block is remembered with what it did to the table and saw of it:

the block                           means the same                          as with
refers to the static table only     always; its insertions are made again   nginx, HAProxy
refers to the dynamic table         while nothing was inserted              Go, nghttp2, Envoy
... and inserts, or resizes         never: decoded each time

Insertions are owed, and made when a block looks into the table. 128 of them fill any table of 4096
bytes (RFC 7541, section 4.1: an entry counts 32 bytes at least), so that older ones are forgotten.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from hpack import Decoder, Encoder, HeaderTuple
from hpack.exceptions import HPACKDecodingError, OversizedHeaderListError
from hpack.table import HeaderTable

from .fields import Block, read_block

MAX_LIST = 64 * 1024  # bytes of a header list, as SETTINGS_MAX_HEADER_LIST_SIZE counts: the default of hpack
TABLE = 4096  # bytes of the dynamic table: the default of RFC 9113, section 6.5.2
MAX_RESIZES = 2  # table size updates in front of a block (RFC 7541, section 4.2)
KNOWN = 128  # blocks or fields that are remembered
REMEMBERED = 4096  # bytes of a block or field that is remembered

_NEVER_INDEXED = frozenset((b"authorization", b"proxy-authorization", b"cookie"))  # RFC 7541, section 7.1.3


class Known(NamedTuple):
    """A block that was decoded: valid while the table's stamp is *stamp*, or always (None)."""

    block: Block
    stamp: int | None
    inserted: tuple[tuple[bytes, bytes], ...]


class Table(HeaderTable):
    """A header table that makes its insertions late, and tells what was done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.owed: deque[tuple[bytes, bytes]] = deque(maxlen=TABLE // 32)
        self.log: list[tuple[bytes, bytes]] = []
        self.stamp = 0  # another one for each content of the table
        self.looked = False
        self.resizes = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.log.append((name, value))
        self.owed.append((name, value))
        self.stamp += 1

    def get_by_index(self, index: int) -> tuple[bytes, bytes]:
        if index > self.STATIC_TABLE_LENGTH:
            self.looked = True
            self.settle()
        return super().get_by_index(index)

    def settle(self) -> None:
        """Make the insertions that are owed."""
        for name, value in self.owed:
            super().add(name, value)
        self.owed.clear()

    @property
    def maxsize(self) -> int:
        return self._maxsize

    @maxsize.setter
    def maxsize(self, size: int) -> None:
        self.resizes += 1
        if self.resizes > MAX_RESIZES:
            raise HPACKDecodingError("more table size updates than may be")
        self.settle()
        HeaderTable.maxsize.fset(self, size)  # type: ignore[attr-defined]
        self.stamp += 1


class Reading(Decoder):
    """The decoder of one connection. Blocks come out checked."""

    def __init__(self) -> None:
        super().__init__(MAX_LIST)
        self.header_table: Table = Table()
        self._known: dict[bytes, Known] = {}
        self._fields: dict[bytes, HeaderTuple] = {}

    def block(self, data: bytes) -> Block:
        """Decode a block; raises hpack's errors."""
        table = self.header_table
        known = self._known.get(data)
        if known is not None and (known.stamp is None or known.stamp == table.stamp):
            if known.inserted:
                table.owed.extend(known.inserted)
                table.stamp += len(known.inserted)
        else:
            known = self._read(data, table)
        return known.block

    def _decode_literal(self, data: bytes | memoryview, should_index: bool) -> tuple[HeaderTuple, int]:
        """Know a literal field again. Not public in hpack: were it gone, this would only not be called."""
        end = _literal_end(data, 0x3F if should_index else 0x0F)
        raw = bytes(data[:end])
        header = self._fields.get(raw)
        if header is not None:
            if should_index:
                self.header_table.add(*header)
            return header, end
        header, consumed = super()._decode_literal(data, should_index)
        if consumed == end <= REMEMBERED:
            if len(self._fields) >= KNOWN:
                self._fields.clear()
            self._fields[raw] = header
        return header, consumed

    def _read(self, data: bytes, table: Table) -> Known:
        if len(data) > MAX_LIST:
            raise OversizedHeaderListError(f"a header block of more than {MAX_LIST} bytes")
        stamp, table.log, table.looked, table.resizes = table.stamp, [], False, 0
        block = read_block(list(self.decode(data, raw=True)))
        known = Known(block, stamp if table.looked else None, tuple(table.log))
        if not table.resizes and not (table.looked and table.log) and len(data) <= REMEMBERED:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[data] = known
        return known


def _literal_end(data: bytes | memoryview, mask: int) -> int:
    """Return where a literal field ends (RFC 7541, section 6.2), or 0 if its bytes alone do not tell what it says."""
    index = data[0] & mask
    if index == mask or index > HeaderTable.STATIC_TABLE_LENGTH or len(data) < 3:
        return 0
    at = 1
    if not index:
        if data[1] & 0x7F == 0x7F:  # the length goes on in the next byte (section 5.1)
            return 0
        at += 1 + (data[1] & 0x7F)
    if at >= len(data) or data[at] & 0x7F == 0x7F:
        return 0
    end = at + 1 + (data[at] & 0x7F)
    return end if end <= len(data) else 0


class Writing(Encoder):
    """The encoder that h2 gets: what it returns is thrown away, as blocks are made before."""

    @property
    def header_table_size(self) -> int:
        return 0

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        """The peer may allow any size; ours stays 0, which RFC 7541, section 4.2 lets it be."""

    def encode(self, headers: object, huffman: bool = True) -> bytes:
        return b"\x82"


class FieldCoder:
    """Fields to bytes, without a dynamic table."""

    RESIZE = b"\x20"  # a table size update to 0: the first block begins with it (RFC 7541, section 6.3)

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._encoder.header_table_size = 0
        self._known: dict[tuple[bytes, bytes], bytes] = {}

    def encode(self, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
        known = self._known
        return b"".join([known.get(field) or self._field(field) for field in fields])

    def _field(self, field: tuple[bytes, bytes]) -> bytes:
        data = self._encoder.add(field, field[0] in _NEVER_INDEXED, huffman=True)
        if len(data) <= REMEMBERED:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[field] = data
        return data
