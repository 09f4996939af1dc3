"""The measuring of whole clips: what is compared with what, and that nothing of the user's is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retarget import evaluate as evaluating
from retarget.avatar import Avatar, AvatarMeta, avatar_names, save_avatar
from retarget.errors import NobodyFound, UsageError
from retarget.evaluate import Clip, EvaluateOptions, Report, evaluate
from retarget.folders import avatars_dir, cache_dir
from retarget.metrics import FIGURES
from retarget.types import Image, PoseTrack, Silent
from retarget.video import open_reader, open_writer, probe, timestamps


def flat(value: int) -> Image:
    return np.full((64, 48, 3), value, np.uint8)


def write(path: Path, frames: list[Image], **options: Any) -> Path:
    with open_writer(path, frames[0].shape[1::-1], Fraction(25), **options) as append:
        for frame in frames:
            append(frame)
    return path


def read(path: Path, **options: Any) -> list[Image]:
    with open_reader(path, **options) as frames:
        return list(frames)


def figures(psnr: float | None) -> dict[str, float | None]:
    return dict.fromkeys(FIGURES, 1.0) | {"psnr": psnr, "frames_produced": 3, "frames_truth": 3}


def avatar(poses: PoseTrack | None = None, picked: tuple[int, ...] = (0,)) -> Avatar:
    tensors = {} if poses is None else {f"pose_{k}": getattr(poses, k) for k in ("body", "world", "face", "hands")}
    plate = {"plate": flat(0)}
    meta = AvatarMeta("a", "dance", (48, 64), 1, config={"width": 8}, weights="abc", extra={"picked": picked})
    return save_avatar("a", meta, tensors | plate, {"w": np.ones(3, np.float32)}, flat(0))


def track(bodies: np.ndarray[Any, Any]) -> PoseTrack:
    def empty(*shape: int) -> np.ndarray[Any, Any]:
        return np.full((len(bodies), *shape), np.nan, np.float32)

    return PoseTrack(bodies.astype(np.float32), empty(33, 3), empty(468, 3), empty(2, 21, 3), (48, 64))


# What is measured.


def test_pairs(tmp_path: Path) -> None:
    names = ("f01_me.mp4", "f01_drive.mp4", "f02_me.mp4", "other.mp4", "_me.mp4", "_drive.mp4")
    f1, f1d, f2, other, me, drive = (tmp_path / n for n in names)
    for path in (f1, f1d, f2, other, me, drive):
        path.touch()
    pair = Clip("f01", f1, f1d)
    assert evaluating.pairs([f1, f1d]) == evaluating.pairs([f1d]) == evaluating.pairs([str(f1)]) == [pair]
    assert evaluating.pairs([other, f1d, f2, other, f1]) == [Clip("other", other), pair, Clip("f02_me", f2)]
    assert evaluating.pairs([me]) == [Clip("_me", me)]  # a pair has a name


def test_split_loses_next_to_nothing(example_me: Path, tmp_path: Path) -> None:
    frames = read(example_me, start=3, end=3.5)
    clip = write(tmp_path / "clip.mp4", frames)
    first, rest = evaluating.split(clip, tmp_path, 0.6, Silent())
    assert (probe(first).frames, probe(rest).frames) == (7, 5)
    assert probe(rest).fps == 25
    error = np.subtract(read(first) + read(rest), read(clip), dtype=float)
    assert (error**2).mean(axis=(1, 2, 3)).max() < 1  # 48 dB; one frame to the next: 39 dB
    assert (np.diff(np.array(read(clip), float), axis=0) ** 2).mean(axis=(1, 2, 3)).min() > 4


def test_split_keeps_the_times_of_a_variable_rate(tmp_path: Path) -> None:
    times = [0, 0.04, 0.12, 0.16, 0.3, 0.34]
    clip = write(tmp_path / "clip.mp4", [flat(40 * i) for i in range(6)], timestamps=times)
    first, rest = evaluating.split(clip, tmp_path, 0.5, Silent())
    assert timestamps(first) == pytest.approx([0, 0.04, 0.12], abs=1e-3)
    assert timestamps(rest) == pytest.approx([0, 0.14, 0.18], abs=1e-3)


@pytest.mark.parametrize(("share", "counts"), [(0.01, (1, 3)), (0.99, (3, 1))])
def test_both_parts_have_a_frame(tmp_path: Path, share: float, counts: tuple[int, int]) -> None:
    clip = write(tmp_path / "clip.mp4", [flat(50 * i) for i in range(4)])
    parts = evaluating.split(clip, tmp_path, share, Silent())
    assert tuple(probe(p).frames for p in parts) == counts


def test_one_frame_cannot_be_split(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mkv", [flat(9)])
    with pytest.raises(UsageError, match=r"clip\.mkv"):
        evaluating.split(clip, tmp_path, 0.5, Silent())


# The baselines.


def test_copy_shows_the_reference_with_the_nearest_pose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    poses = np.concatenate([rng.normal(30, 12, (3, 33, 3)), np.ones((3, 33, 1))], 2)
    me = write(tmp_path / "me.mp4", [flat(30 * i) for i in range(8)])
    known = avatar(track(poses), picked=(6, 1, 3))
    other = poses[[2, 0, 1, 0]] * (3, 3, 3, 1) + np.array([20, -9, 0, 0])  # another place and size
    other[:, :, :3] += rng.normal(0, 0.5, (4, 33, 3))
    other[3] = np.nan  # nobody there: the pose before is held
    monkeypatch.setattr("retarget.pose.estimate", lambda *a, **k: track(other))
    truth = write(tmp_path / "truth.mp4", [flat(0)] * 4)
    evaluating.copy(known, me, truth, tmp_path / "out.mp4", Silent())
    shown = [int(frame.mean().round()) for frame in read(tmp_path / "out.mp4")]
    assert shown == pytest.approx([90, 180, 30, 30], abs=2)
    assert probe(tmp_path / "out.mp4").fps == 25


def test_unlearned() -> None:
    known = avatar()
    assert known.state()
    warp = evaluating.unlearned(known)
    assert warp.state() == {}
    assert (warp.model, warp.meta.config, warp.meta.weights) == ("dance", {}, None)
    assert set(warp.tensors()) == {"plate"}


# The user's things.


@pytest.mark.parametrize("set_before", [True, False])
def test_own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_before: bool) -> None:
    if not set_before:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv("RETARGET_HOME")
    before, users, caches = os.environ.get("RETARGET_HOME"), avatars_dir(), cache_dir()

    def work() -> None:
        with evaluating.own_home() as folder:
            avatar()
            assert avatars_dir() == folder / "avatars"
            (cache_dir() / "kept").touch()
            raise KeyError(str(folder))

    with pytest.raises(KeyError) as caught:
        work()
    assert os.environ.get("RETARGET_HOME") == before
    assert not Path(caught.value.args[0]).exists()
    assert not users.exists()
    assert (caches / "kept").exists()


# The report.


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, Any]], list[str]]:
    """Replace the work: clip name → what is measured, or the error. Returns the files to give to `evaluate`."""

    def replace(results: dict[str, Any]) -> list[str]:
        def measure(clip: Clip, *_: Any) -> dict[str, Any]:
            if isinstance(results[clip.name], Exception):
                raise results[clip.name]
            return {"references": [1], "methods": results[clip.name]}

        monkeypatch.setattr(evaluating, "measure", measure)
        return [str(tmp_path / f"{name}.mp4") for name in results]

    return replace


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_a_failing_clip_does_not_end_the_rest(measured: Callable[[dict[str, Any]], list[str]]) -> None:
    told = Told()
    clips = measured(
        {
            "a": {"dance": figures(20.0), "copy": figures(10.0)},
            "b": NobodyFound("Nobody in b.mp4.", "Film again."),
            "c": {"dance": figures(23.0), "copy": figures(None)},
        }
    )
    report = evaluate(clips, steps=3, progress=told)
    assert [line["clip"] for line in report["clips"]] == ["a", "c"]
    assert report["mean"]["dance"]["psnr"] == 21.5
    assert report["mean"]["copy"]["psnr"] == 10
    assert report.failures == [
        {"clip": "b", "type": "NobodyFound", "error": "Nobody in b.mp4.", "remedy": "Film again."}
    ]
    assert told.warnings == ["b could not be measured: Nobody in b.mp4. Film again."]
    assert report["options"]["steps"] == 3
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_all_clips_failing_is_an_error(measured: Callable[[dict[str, Any]], list[str]]) -> None:
    with pytest.raises(NobodyFound, match="first"):
        evaluate(measured({"a": NobodyFound("first"), "b": NobodyFound("second")}))


def test_a_mistake_of_ours_is_not_hidden(measured: Callable[[dict[str, Any]], list[str]]) -> None:
    with pytest.raises(ZeroDivisionError):
        evaluate(measured({"a": ZeroDivisionError("oops")}))


@pytest.mark.parametrize(
    ("clips", "changes", "named"),
    [
        (["a.mp4"], {"split": 0.0}, "split"),
        (["a.mp4"], {"split": 1.0}, "split"),
        (["a.mp4"], {"every": 0}, "0th"),
        (["a.mp4"], {"speed": 1}, "speed"),
        ([], {}, "nothing"),
    ],
)
def test_wrong_options(clips: list[str], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        evaluate(clips, **changes)


def test_tables() -> None:
    report = Report(
        clips=[{"clip": "a", "references": [], "methods": {"dance": figures(20.25), "copy": figures(None)}}],
        mean={"dance": {"psnr": 20.25}},
        failures=[],
    )
    rows = report.rows()
    assert [(r["clip"], r["method"], r["psnr"]) for r in rows] == [
        ("a", "dance", 20.25), ("a", "copy", None), ("mean", "dance", 20.25),
    ]  # fmt: skip
    lines = report.markdown().splitlines()
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert lines[0].startswith("| clip | method | psnr | ssim |")
    assert lines[2].startswith("| a | dance | 20.250 | 1.000 |")
    assert lines[3].startswith("| a | copy | – | 1.000 |")


def test_defaults_are_read_without_anything_heavy() -> None:
    code = "import retarget.evaluate, sys; sys.exit(bool({'torch', 'cv2', 'mediapipe'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert EvaluateOptions(steps=1) != EvaluateOptions()


# All of it.


@pytest.mark.slow
def test_a_real_clip(example_me: Path, tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mp4", read(example_me, end=3))
    mine = avatar()
    report = evaluate([clip], frames=3, steps=1, split=0.85, size=256)
    (line,) = report["clips"]
    assert list(line["methods"]) == ["dance", "warp", "copy"]
    assert len(line["references"]) == 3
    for row in line["methods"].values():
        assert (row["frames_produced"], row["frames_truth"]) == (11, 11)
        assert all(isinstance(row[key], float) for key in FIGURES)
    dance, warp, nearest = line["methods"].values()
    assert warp["pose_error"] < nearest["pose_error"]
    assert warp["fg_ssim"] > nearest["fg_ssim"]
    assert dance["fg_psnr"] > warp["fg_psnr"] - 0.5
    assert report["mean"]["warp"]["psnr"] == warp["psnr"]
    assert avatar_names() == ["a"]
    assert mine.state()
    assert len(list((cache_dir() / "poses").iterdir())) == 2
