"""Which colours a video has, and the filters between them and 8 bit Y'CbCr.

Y'CbCr becomes RGB by the matrix that the file names, as players do it; by that of BT.601, as `cv2.VideoCapture` does
it, where it names none. `VideoInfo.colour` says which, and `open_writer` goes back by the one it is told and names it.
High dynamic range (PQ, HLG) is tone-mapped to BT.709 first, standard-range BT.2020 converted to it.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Literal

from .process import command, run

Colour = Literal["bt601", "bt709"]
"""A matrix between RGB and Y'CbCr."""
MATRIX: dict[Colour, str] = {"bt601": "smpte170m", "bt709": "bt709"}
"""What ffmpeg calls them."""
_TONE_MAP = (
    "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=tonemap=mobius:desat=0,"
    "zscale=t=bt709:m=bt709:r=tv,format=yuv420p"
)  # white of ordinary pictures is 203 cd/m² (ITU-R BT.2408); mobius leaves what is darker than 0.3 of it alone
_WIDE_GAMUT = "zscale=p=bt709:t=bt709:m=bt709:r=tv,format=yuv420p"


def colour_of(stream: str) -> tuple[Colour, str]:
    """The tag to write again, and the filters that go before the plain conversion.

    Args:
        stream: ffmpeg's line about the stream, as `scan` finds it.
    """
    tags = re.search(r", \w+\(([^)]*)\), \d+x\d+", stream)
    names: list[str] = []
    for part in tags[1].split(", ") if tags else ():
        if "/" in part or re.fullmatch(r"(bt|smpte|arib|gbr|fcc|ycg)\S*", part):
            names = part.split("/") if "/" in part else [part] * 3
    if not names:
        return "bt601", ""
    matrix, primaries, transfer = names
    bright = transfer in ("smpte2084", "arib-std-b67")
    if (bright or matrix in ("bt2020nc", "bt2020c")) and _has_zscale():
        # zscale refuses what is not told, or told wrongly: then it is what such a video normally has.
        told = (
            f"setparams=colorspace={matrix if matrix in ('bt709', 'bt2020c', 'gbr') else 'bt2020nc'}"
            f":color_primaries={primaries if primaries in ('bt709', 'smpte431', 'smpte432') else 'bt2020'}"
            f":color_trc={transfer if bright or transfer == 'bt709' else 'bt2020-10'},"
        )
        return "bt709", told + (_TONE_MAP if bright else _WIDE_GAMUT)
    return ("bt709" if matrix == "bt709" else "bt601"), ""


@cache
def _has_zscale() -> bool:
    return " zscale " in run(command("-filters")).stdout
