"""A raw Matroska stream (RFC 9559, V_UNCOMPRESSED), which carries frames with their own times, in microseconds, into
ffmpeg."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise


@dataclass(frozen=True)
class Spacing:
    """Times of frames in microseconds, and how long all of them are shown."""

    ticks: tuple[int, ...]
    length: Fraction

    @staticmethod
    def of(timestamps: Sequence[float], fps: Fraction) -> Spacing:
        ticks = tuple(round(t * 1_000_000) for t in timestamps)
        gaps = [b - a for a, b in pairwise(ticks)]
        if not ticks or ticks[0] != 0 or any(gap <= 0 for gap in gaps):
            raise ValueError("timestamps must start at 0 and increase")
        # The last frame lasts so long that the mean rate comes out, if that is plausible, else as long as most.
        last = round(len(ticks) / fps * 1_000_000) - ticks[-1]
        if gaps and not min(gaps) * 0.9 <= last <= max(gaps) * 1.1:
            last = sorted(gaps)[len(gaps) // 2]
        return Spacing(ticks, Fraction(ticks[-1] + last, 1_000_000))

    def block(self, first: int, index: int, size: int) -> bytes:
        """What stands before the `size` bytes of a frame: a cluster with one block; frame `first` is at time 0."""
        if index >= len(self.ticks):
            raise ValueError(f"more frames than the {len(self.ticks)} timestamps")
        here = self.ticks[index]
        after = self.ticks[index + 1] if index + 1 < len(self.ticks) else round(self.length * 1_000_000)
        head = b"\x81\0\0\0"
        length = _element(b"\x9b", _number(after - here))
        block = b"\xa1" + _size(len(head) + size) + head
        group = b"\xa0" + _size(len(length) + len(block) + size) + length + block
        time = _element(b"\xe7", _number(here - self.ticks[first]))
        return b"\x1f\x43\xb6\x75" + _size(len(time) + len(group) + size) + time + group


def matroska_head(width: int, height: int, fourcc: bytes) -> bytes:
    """What stands before all frames of width x height pixels of the layout `fourcc`."""
    picture = _element(b"\xb0", _number(width)) + _element(b"\xba", _number(height)) + _element(b"\x2e\xb5\x24", fourcc)
    track = (
        *(_element(b"\xd7", b"\x01"), _element(b"\x73\xc5", b"\x01"), _element(b"\x83", b"\x01")),
        *(_element(b"\x9c", b"\x00"), _element(b"\x86", b"V_UNCOMPRESSED"), _element(b"\xe0", picture)),
    )
    kind = _element(b"\x42\x82", b"matroska") + _element(b"\x42\x87", b"\x04") + _element(b"\x42\x85", b"\x02")
    facts = b"".join(
        (
            _element(b"\x2a\xd7\xb1", _number(1000)),
            _element(b"\x4d\x80", b"retarget"),
            _element(b"\x57\x41", b"retarget"),
        )
    )
    return (
        _element(b"\x1a\x45\xdf\xa3", kind)
        + b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff"  # a segment of unknown length
        + _element(b"\x15\x49\xa9\x66", facts)
        + _element(b"\x16\x54\xae\x6b", _element(b"\xae", b"".join(track)))
    )


def _element(name: bytes, content: bytes) -> bytes:
    return name + _size(len(content)) + content


def _number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def _size(value: int) -> bytes:
    return (value | 1 << 56).to_bytes(8, "big")
