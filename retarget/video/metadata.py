"""The tags of a video file. They are written by `open_writer`."""

from __future__ import annotations

import re
from pathlib import Path

from .process import check_file, command, guarded_input, run
from .scan import unreadable


def read_metadata(path: str | Path) -> dict[str, str]:
    """The tags of a video file; keys in lower case (Matroska and WebM do not keep the case).

    Raises InputError when there is no such file, VideoError when it is no video.
    """
    path = Path(path)
    check_file(path)
    done = run(command(*guarded_input(path), "-f", "ffmetadata", "pipe:1"))
    if done.returncode != 0:
        raise unreadable(path, done.stderr)
    tags: dict[str, str] = {}
    text = re.split(r"^\[(?:STREAM|CHAPTER)\]$", done.stdout, maxsplit=1, flags=re.MULTILINE)[0]
    for entry in re.finditer(r"^((?:\\.|[^\\=\n;#])(?:\\.|[^\\=\n])*)=((?:\\(?:.|\n)|[^\\\n])*)$", text, re.MULTILINE):
        key, value = (re.sub(r"\\(.|\n)", r"\1", part) for part in entry.groups())
        tags[key.lower()] = value
    return tags
