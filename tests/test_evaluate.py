"""The measuring of whole clips: what is compared with what, and that nothing of the user's is touched."""

from __future__ import annotations

import importlib
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
from retarget.errors import InputError, NobodyFound, UsageError
from retarget.evaluate import Clip, EvaluateOptions, Report, evaluate
from retarget.folders import avatars_dir, cache_dir
from retarget.metrics import FIGURES, Scores
from retarget.perceptual_metrics import Perceptual
from retarget.personalize import PersonalizeOptions
from retarget.portraits import Portrait
from retarget.streets import Film
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


def row(psnr: float | None, kind: str = "dance", init: str | None = None, k: int = 5, t: int | None = None) -> Any:
    setting = {"kind": kind, "init": init, "frames": k, "steps": t}
    return setting | {"frames_produced": 3, "frames_truth": 3} | dict.fromkeys(FIGURES, 1.0) | {"psnr": psnr}


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
    first, rest = evaluating.split(Film([clip]), tmp_path, 0.6, Silent())
    assert (probe(first).frames, probe(rest).frames) == (7, 5)
    assert probe(rest).fps == 25
    error = np.subtract(read(first) + read(rest), read(clip), dtype=float)
    assert (error**2).mean(axis=(1, 2, 3)).max() < 1  # 48 dB; one frame to the next: 39 dB
    assert (np.diff(np.array(read(clip), float), axis=0) ** 2).mean(axis=(1, 2, 3)).min() > 4


def test_split_keeps_the_times_of_a_variable_rate(tmp_path: Path) -> None:
    times = [0, 0.04, 0.12, 0.16, 0.3, 0.34]
    clip = write(tmp_path / "clip.mp4", [flat(40 * i) for i in range(6)], timestamps=times)
    first, rest = evaluating.split(Film([clip]), tmp_path, 0.5, Silent())
    assert timestamps(first) == pytest.approx([0, 0.04, 0.12], abs=1e-3)
    assert timestamps(rest) == pytest.approx([0, 0.14, 0.18], abs=1e-3)


@pytest.mark.parametrize(("share", "counts"), [(0.01, (1, 3)), (0.99, (3, 1))])
def test_both_parts_have_a_frame(tmp_path: Path, share: float, counts: tuple[int, int]) -> None:
    clip = write(tmp_path / "clip.mp4", [flat(50 * i) for i in range(4)])
    parts = evaluating.split(Film([clip]), tmp_path, share, Silent())
    assert tuple(probe(p).frames for p in parts) == counts


def test_one_frame_cannot_be_split(tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mkv", [flat(9)])
    with pytest.raises(UsageError, match=r"clip\.mkv"):
        evaluating.split(Film([clip]), tmp_path, 0.5, Silent())


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


def test_unlearned(tmp_path: Path) -> None:
    known = avatar()
    assert known.state()
    warp = evaluating.unlearned(known, tmp_path / "warp")
    assert warp.state() == {}
    assert known.state()
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
        def measure(clip: Clip, *_: Any) -> tuple[dict[str, Any], dict[int, Exception]]:
            result = results[clip.name]
            if isinstance(result, Exception):
                raise result
            rows, missed = result if isinstance(result, tuple) else (result, {})
            return {"references": [1], "methods": rows}, missed

        monkeypatch.setattr(evaluating, "measure", measure)
        return [str(tmp_path / f"{name}.mp4") for name in results]

    return replace


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def test_a_failing_clip_does_not_end_the_rest(measured: Callable[[dict[str, Any]], list[str]]) -> None:
    told = Told()
    clips = measured(
        {
            "a": {"dance": row(20.0), "copy": row(10.0)},
            "b": NobodyFound("Nobody in b.mp4.", "Film again."),
            "c": {"dance": row(23.0), "copy": row(None)},
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
    assert report["options"]["steps"] == [3]
    assert report["mean"]["dance"]["clips"] == 2
    assert "Means are over 2 of 3 clips, of which everything was measured." in report["notes"]
    assert told.notes == report["notes"]
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
        (["a.mp4"], {"frames": ()}, "--frames names nothing"),
        (["a.mp4"], {"frames": (5, 0)}, "at least one frame"),
        (["a.mp4"], {"steps": (1, 1)}, "--steps names one twice"),
        (["a.mp4"], {"steps": -1}, "-1 steps"),
        (["a.mp4"], {"init": ("meta", "magic")}, "magic"),
        (["a.mp4"], {"init": ("x/a.safetensors", "y/a.safetensors")}, "--init names one twice"),
        ([], {}, "nothing"),
    ],
)
def test_wrong_options(clips: list[str], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        evaluate(clips, **changes)


def test_tables() -> None:
    report = Report(
        clips=[{"clip": "a", "references": [], "methods": {"dance": row(20.25), "copy": row(None)}}],
        mean={"dance": {"psnr": 20.25}},
        failures=[],
        notes=[],
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


def test_weights_are_looked_for_before_any_work(measured: Callable[[dict[str, Any]], list[str]]) -> None:
    clips = measured({"a": ZeroDivisionError("work began")})
    with pytest.raises(InputError, match=r"missing\.safetensors"):
        evaluate(clips, init=("random", "missing.safetensors"))


def test_a_start_from_nothing_is_told(
    measured: Callable[[dict[str, Any]], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {"random": None, "pretrain": None, "meta": "abc"}
    monkeypatch.setattr(evaluating, "start", lambda model, init, progress, subject: (None, digests[init], {}))
    report = evaluate(measured({"a": {"dance": row(1.0)}}), init=("random", "pretrain", "meta"))
    assert report["weights"] == digests
    assert [n for n in report["notes"] if "nothing learned" in n] == [
        "There are no pretrain weights of dance: its rows start from nothing learned."
    ]


# Several inits, K and T.


def grid(missing: int | None = None, base: float = 20) -> dict[str, Any]:
    """Rows of 2 inits, 3 K and 3 T without one of the K; the PSNR tells them apart."""
    rows: dict[str, Any] = {}
    for k in (1, 5, 10):
        if k != missing:
            for i, init in enumerate(("random", "mine")):
                for t in (0, 20, 200):
                    rows[f"dance {init} K={k} T={t}"] = row(base + i + k + t / 100, "dance", init, k, t)
            rows |= {f"{kind} K={k}": row(base - k, kind, None, k) for kind in ("warp", "copy")}
    return rows


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Measure a clip that has 7 usable frames, with fakes for all that is slow. Returns the clip's entry, what went
    wrong, the videos that were made (“+”: with something learned), and the warnings."""

    gatherings: list[int] = []
    given: list[Path] = []

    def gather(paths: list[Path], options: PersonalizeOptions, _: Any, *, cut: bool) -> tuple[int, ...]:
        assert not cut
        given[:] = paths
        gatherings.append(options.frames)
        if options.frames > 7:
            raise NobodyFound(f"7 frames, fewer than {options.frames}.")
        return tuple(range(options.frames))

    def personalize(me: Path, options: PersonalizeOptions, *, gathered: tuple[int, ...], **_: Any) -> Avatar:
        assert len(gathered) == options.frames
        return avatar(picked=gathered)

    def run(perceptual: dict[str, float] | None = None, **options: Any) -> Any:
        made: list[str] = []

        def drive(avatar: Avatar, truth: Path, out: Path, **_: Any) -> None:
            made.append(out.stem + "+" * bool(avatar.state()))
            out.touch()

        def copy(avatar: Avatar, me: Path, truth: Path, out: Path, _: Any) -> None:
            made.append(out.stem)
            out.touch()

        def score(produced: Path, *_: Any, **__: Any) -> Scores:
            assert produced.exists()
            return Scores(3, 3, *[float(len(made))] * len(FIGURES))

        gatherings.clear()
        monkeypatch.setattr(evaluating, "gather", gather)
        monkeypatch.setattr(evaluating, "personalize", personalize)
        monkeypatch.setattr(importlib.import_module("retarget.drive"), "drive", drive)
        monkeypatch.setattr("retarget.metrics.score", score)
        monkeypatch.setattr(evaluating, "copy", copy)
        monkeypatch.setattr(Perceptual, "score", lambda *_: perceptual or {})
        clip, told = Clip("a", tmp_path / "a_me.mp4", tmp_path / "a_drive.mp4"), Told()
        nobody: Any = None
        networks = Perceptual(None, None, nobody, ())
        line, missed = evaluating.measure(clip, tmp_path, EvaluateOptions(**options), networks, told)
        assert not list(tmp_path.glob("*.mp4"))  # they would fill the disk
        assert len(gatherings) == len(set(gatherings))  # once for each K
        return line, missed, made, told.warnings

    run.given = given  # type: ignore[attr-defined]
    return run


def test_one_combination(work: Callable[..., Any]) -> None:
    line, missed, made, _ = work(frames=3)
    assert made == ["dance+", "warp", "copy"]
    assert list(line["methods"]) == ["dance", "warp", "copy"]
    assert [[r[key] for key in evaluating.SETTING] for r in line["methods"].values()] == [
        ["dance", "meta", 3, 20], ["warp", None, 3, None], ["copy", None, 3, None],
    ]  # fmt: skip
    assert (line["references"], missed) == ([0, 1, 2], {})


def test_every_combination_once(work: Callable[..., Any]) -> None:
    line, missed, made, warnings = work(
        {"lpips": 0.25}, init=("random", "x/mine.safetensors"), frames=(3, 8, 2), steps=(0, 20)
    )
    wanted = []
    for k in (3, 2):
        wanted += [f"dance {init} K={k} T={t}+" for init in ("random", "mine") for t in (0, 20)]
        wanted += [f"warp K={k}", f"copy K={k}"]
    assert made == wanted
    assert list(line["methods"]) == [name.removesuffix("+") for name in wanted]
    mine = line["methods"]["dance mine K=2 T=20"]
    assert [mine[key] for key in evaluating.SETTING] == ["dance", "mine", 2, 20]
    assert (mine["psnr"], mine["lpips"]) == (made.index("dance mine K=2 T=20+") + 1, 0.25)
    assert line["references"] == [0, 1, 2]
    assert list(missed) == [8]
    assert warnings == ["a could not be measured with K=8: 7 frames, fewer than 8."]


@pytest.mark.parametrize(
    ("options", "cut"),
    [
        ({}, False), ({"model": "talking-head", "crop": "none"}, False), ({"model": "talking-head"}, True),
        ({"model": "few-shot-vid2vid", "crop": "head"}, True),
    ],
)  # fmt: skip
def test_heads_are_cut_out_first(
    work: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], cut: bool
) -> None:
    asked: list[str] = []

    def cropped(paths: list[Path], folder: Path, *, size: int, person: str, whole: bool, progress: Any) -> Portrait:
        assert (size, person, whole) == (512, "largest", True)
        asked.extend(path.name for path in paths)
        return Portrait([folder / paths[0].name], np.zeros((1, 1, 3), np.uint8), np.zeros(3))

    monkeypatch.setattr("retarget.portraits.cropped", cropped)
    work(**options)
    assert asked == (["a_me.mp4", "a_drive.mp4"] if cut else [])
    assert work.given == [(tmp_path / "heads" if cut else tmp_path) / "a_me.mp4"]  # type: ignore[attr-defined]


def test_baselines_have_one_name_where_there_is_one_k(work: Callable[..., Any]) -> None:
    assert work(init=("random", "meta"))[2] == ["dance random K=5 T=20+", "dance meta K=5 T=20+", "warp", "copy"]


def test_no_combination_of_a_clip(work: Callable[..., Any]) -> None:
    with pytest.raises(NobodyFound, match="fewer than 9"):
        work(frames=(9, 8))


def test_means_are_over_the_same_clips(measured: Callable[[dict[str, Any]], list[str]]) -> None:
    why = NobodyFound("Too few.", "Film more.")
    short, long = (grid(missing=10), {10: why}), grid(base=30)
    report = evaluate(measured({"short": short, "long": long}), frames=(1, 5, 10))
    assert report["mean"]["warp K=1"]["psnr"] == 29
    assert report["mean"]["warp K=1"]["clips"] == report["mean"]["warp K=10"]["clips"] == 1
    assert report.failures == [
        {"clip": "short", "frames": 10, "type": "NobodyFound", "error": "Too few.", "remedy": "Film more."}
    ]
    assert "short with K=10: Too few." in report.page()
    assert "Means are over 1 of 2 clips, of which everything was measured." in report["notes"]
    # Where no clip has everything, each mean says for itself what it covers.
    report = evaluate(measured({"short": short, "other": (grid(missing=1), {1: why})}), frames=(1, 5, 10))
    assert [report["mean"][f"warp K={k}"]["clips"] for k in (1, 5, 10)] == [1, 2, 1]
    assert any("they may differ" in note for note in report["notes"])


def test_a_saved_report(measured: Callable[[dict[str, Any]], list[str]], tmp_path: Path) -> None:
    rows = {name: r | {"lpips": 0.1} for name, r in grid().items()}
    report = evaluate(measured({"a": rows}), frames=(1, 5, 10), steps=(0, 20, 200))
    report.save(tmp_path / "report")
    assert sorted(os.listdir(tmp_path / "report")) == ["k.png", "report.json", "report.md", "t.png"]
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == report
    page = (tmp_path / "report" / "report.md").read_text().splitlines()
    start = page.index(
        "| method | init | K | T | clips | psnr | ssim | mse | " + " | ".join([*FIGURES[3:], "lpips"]) + " |"
    )
    assert page[start + 2].startswith("| dance | random | 1 | 0 | 1 | 21.000 |")
    assert page[start + 8].startswith("| warp | – | 1 | – | 1 | 19.000 |")
    assert "![Means over K (T = 20)](k.png)" in page
    assert "![Means over T (K = 5)](t.png)" in page


def test_curves() -> None:
    report = Report(clips=[], mean=grid(), failures=[], notes=[])
    drawn = report._curves()
    assert list(drawn["k.png"][2]) == [
        "PSNR (dB)",
        "SSIM",
        "MSE (less is better)",
        "fg PSNR (dB)",
        "fg SSIM",
        "face SSIM",
    ]
    assert drawn["k.png"][2]["PSNR (dB)"] == {
        "random": ([1, 5, 10], [21.2, 25.2, 30.2]),
        "mine": ([1, 5, 10], [22.2, 26.2, 31.2]),
        "warp": ([1, 5, 10], [19, 15, 10]),
        "copy": ([1, 5, 10], [19, 15, 10]),
    }
    assert drawn["t.png"][2]["PSNR (dB)"] == {
        "random": ([0, 20, 200], [25, 25.2, 27]),
        "mine": ([0, 20, 200], [26, 26.2, 28]),
        "warp": ([0, 20, 200], [15, 15, 15]),
        "copy": ([0, 20, 200], [15, 15, 15]),
    }
    few = {name: r for name, r in grid().items() if r["steps"] in (0, 200, None) and r["frames"] == 10}
    drawn = Report(clips=[], mean=few, failures=[], notes=[])._curves()
    assert [title for title, _, _ in drawn.values()] == ["Means over T (K = 10)"]


def test_defaults_are_read_without_anything_heavy() -> None:
    code = "import retarget.evaluate, sys; sys.exit(bool({'torch', 'cv2', 'mediapipe'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert EvaluateOptions(steps=1) != EvaluateOptions()
    assert EvaluateOptions(init="meta", frames=[5], steps=20) == EvaluateOptions()  # type: ignore[arg-type]


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
