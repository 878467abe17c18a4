"""TFRecord files by index, without TensorFlow: each record's offset, and its two checksums.

A record is its length (8 bytes), the checksum of that (4), the data, the checksum of the data (4).
"""

import functools
import os
import struct

import numpy as np

POLYNOMIAL = 0x82F63B78  # Castagnoli's, its bits reversed (RFC 3720, appendix B.4)
MASK = 0xA282EAD8  # added to a checksum, in tensorflow/core/lib/hash/crc32c.h
HEADER, FOOTER = 12, 4  # bytes round the data of a record
BLOCK = 256  # bytes whose checksum is one gather: a table of 256 kB, which a core's cache holds


def read(path: str, index: int) -> bytes:
  """The data of a record; OSError, naming file and record, if it is not there or has changed."""
  spans = index_of(path)
  if index >= len(spans):
    raise OSError(f'{path}, record {index}: only the first {len(spans)} can be found')
  offset, length = (int(number) for number in spans[index])
  file = os.open(path, os.O_RDONLY)
  try:
    whole = os.pread(file, HEADER + length + FOOTER, offset)
  finally:
    os.close(file)
  data = memoryview(whole)[HEADER : HEADER + length]
  if len(whole) != HEADER + length + FOOTER or whole[:HEADER] != header(length):
    raise OSError(f'{path}, record {index}: its header has changed')
  if whole[-FOOTER:] != struct.pack('<I', masked(crc32c(data))):
    raise OSError(f'{path}, record {index}: its checksum is wrong')
  return bytes(data)


@functools.cache
def index_of(path: str) -> np.ndarray:
  """(records, 2) int64: offset and length of each, up to a header that is beyond repair."""
  spans = []
  offset, size = 0, os.path.getsize(path)
  with open(path, 'rb', buffering=0) as file:
    while offset + HEADER + FOOTER <= size:
      length = length_of(os.pread(file.fileno(), HEADER, offset))
      if length is None or offset + HEADER + length + FOOTER > size:
        break
      spans.append((offset, length))
      offset += HEADER + length + FOOTER
  return np.array(spans, np.int64).reshape(-1, 2)


def length_of(packed: bytes) -> int | None:
  """The length in a header, even if one of its bytes has changed; None if more have."""
  length = int.from_bytes(packed[:8], 'little')
  if sum(a != b for a, b in zip(packed, header(length))) <= 1:
    return length
  for position in range(8):
    for byte in range(256):
      other = packed[:position] + bytes([byte]) + packed[position + 1 :]
      if header(int.from_bytes(other[:8], 'little')) == other:
        return int.from_bytes(other[:8], 'little')
  return None


def record(data: bytes) -> bytes:
  """The bytes of a record in a file."""
  return header(len(data)) + data + struct.pack('<I', masked(crc32c(data)))


def header(length: int) -> bytes:
  """The header of a record whose data has that length."""
  packed = struct.pack('<Q', length)
  return packed + struct.pack('<I', masked(crc32c(packed)))


def masked(checksum: int) -> int:
  """A checksum as it is stored: a checksum of data that holds checksums would be weak."""
  return ((checksum >> 15 | checksum << 17) + MASK) & 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
  """The checksum of RFC 3720 (CRC-32C), by numpy: 4 bytes of zlib's kind, of another polynomial.

  It is linear: the sum (exclusive or) of what each byte gives alone at its distance from the end.
  Blocks are summed by one gather, then their sums by another.
  """
  after_byte, in_block, after_blocks = tables()
  if len(data) < BLOCK:
    sum_ = 0xFFFFFFFF
    for byte in bytes(data):
      sum_ = int(after_byte[(sum_ ^ byte) & 0xFF]) ^ sum_ >> 8
    return sum_ ^ 0xFFFFFFFF
  padding = -len(data) % BLOCK  # zeros in front change nothing
  padded = np.zeros(padding + len(data), np.uint8)
  padded[padding:] = np.frombuffer(data, np.uint8)
  padded[padding : padding + 4] ^= 0xFF
  blocks = padded.reshape(-1, BLOCK)
  rows = np.arange(BLOCK) * 256
  total, begin = 0, 0
  for end in range(len(blocks) % 256 or 256, len(blocks) + 1, 256):  # 64 kB at a time
    sums = np.bitwise_xor.reduce(in_block.take(blocks[begin:end] + rows), axis=1)  # (blocks,)
    total = shifted(total, after_blocks[256]) ^ distant(sums, after_blocks)
    begin = end
  return total ^ 0xFFFFFFFF


def distant(sums: np.ndarray, after_blocks: np.ndarray) -> int:
  """The sum of at most 256 blocks, one after another."""
  distance = np.arange(len(sums) - 1, -1, -1)[:, None]
  terms = after_blocks[distance, np.arange(4), sums.view(np.uint8).reshape(-1, 4)]
  return int(np.bitwise_xor.reduce(terms, axis=None))


def shifted(sum_: int, table: np.ndarray) -> int:
  """A sum after as many zeros as the table stands for."""
  return int(np.bitwise_xor.reduce([table[i, sum_ >> 8 * i & 0xFF] for i in range(4)]))


@functools.cache
def tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The tables of what bytes and sums become at a distance.

  Returns:
    (256,) uint32, a byte alone; (BLOCK * 256,), a byte at each position in a block;
    (257, 4, 256), a byte of a sum (the lowest first) after 0 ... 256 blocks of zeros.
  """
  alone = np.arange(256, dtype=np.uint32)
  for _ in range(8):
    alone = np.where(alone & 1, alone >> 1 ^ np.uint32(POLYNOMIAL), alone >> 1)
  in_block = [alone]
  for _ in range(BLOCK - 1):
    in_block.append(alone[in_block[-1] & 0xFF] ^ in_block[-1] >> 8)
  block = np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]
  after = [block]  # (4, 256)
  for _ in range(BLOCK):
    block = alone[block & 0xFF] ^ block >> 8
  for _ in range(256):
    previous = after[-1]
    bytes_ = [previous >> np.uint32(8 * i) & 0xFF for i in range(4)]
    after.append(np.bitwise_xor.reduce([block[i][bytes_[i]] for i in range(4)]))
  return alone, np.concatenate(in_block[::-1]), np.stack(after)
