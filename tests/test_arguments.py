"""What the command line refuses, and what it makes of words. That each command asks is tested with `cli`."""

from __future__ import annotations

from pathlib import Path

import pytest

from retarget import arguments
from retarget.errors import InputError, RetargetError, StorageError, UsageError


def test_words_become_values():
    assert arguments.pick(None) == ()
    assert arguments.pick("12, 40") == (12, 40)
    assert arguments.numbers("--steps", "0,20", 0, 200) == (0, 20)
    assert arguments.counts("--frames", "1,3") == (1, 3)
    assert arguments.config(["width=24", "flow=0.1", "conditioning=face"]) == {
        "width": 24, "flow": 0.1, "conditioning": "face",
    }  # fmt: skip


@pytest.mark.parametrize(
    "refused",
    [
        lambda: arguments.within("--size", 63, *arguments.SIZES),
        lambda: arguments.fraction("--smooth", float("nan")),
        lambda: arguments.piece(-1, None),
        lambda: arguments.piece(3, 3),
        lambda: arguments.pick("1,1"),
        lambda: arguments.pick("1;2"),
        lambda: arguments.pick(",".join(map(str, range(arguments.MAX_FRAMES + 1)))),
        lambda: arguments.numbers("--steps", "20,x", 0, 200),
        lambda: arguments.numbers("--steps", "201", 0, 200),
        lambda: arguments.counts("--frames", "0"),
        lambda: arguments.config(["width"]),
        lambda: arguments.person("320"),
        lambda: arguments.model("dancer"),
        lambda: arguments.background("#12345", Path("out.mp4")),
        lambda: arguments.background("transparent", Path("out.mp4")),
        lambda: arguments.writable(Path("out.gif"), Path("in.mp4"), "plate"),
    ],
)
def test_mistakes_are_refused_with_a_remedy(refused):
    with pytest.raises(UsageError) as caught:
        refused()
    assert caught.value.remedy


def test_files_are_looked_at_before_any_work(tmp_path):
    here = tmp_path / "here.mp4"
    here.write_bytes(b"")
    arguments.readable(here)
    arguments.writable(tmp_path / "out.mp4", here, "plate")
    for refused, kind in (
        (lambda: arguments.readable(tmp_path / "gone.mp4"), InputError),
        (lambda: arguments.readable(Path("https://example.org/a.mp4")), InputError),
        (lambda: arguments.writable_folder(tmp_path / "gone" / "out.mp4"), StorageError),
        (lambda: arguments.writable_folder(tmp_path), UsageError),
        (lambda: arguments.report_folder(here), UsageError),
        (lambda: arguments.writable(here, here, "plate"), UsageError),
    ):
        with pytest.raises(RetargetError) as caught:
            refused()
        assert type(caught.value) is kind
