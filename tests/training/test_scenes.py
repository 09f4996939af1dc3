"""Corpora of street scenes: what is packed, what is left out, and that `few-shot-vid2vid` learns from them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from retarget import forecast, personalize, streets
from retarget.cli import main
from retarget.errors import InputError, UsageError
from retarget.labels import NONE, coloured
from retarget.lessons import drawn
from retarget.models import base as module
from retarget.models import build
from retarget.models.base import frame_count, last
from retarget.training import run as runs
from retarget.training.corpus import Corpus, _read
from retarget.training.prepare import PrepareOptions, prepare
from retarget.training.tasks import _CPU, TaskOptions, Tasks, begun
from retarget.training.train import TrainOptions, train
from retarget.types import Silent
from retarget.video import open_writer
from retarget.weights import load_file

from .conftest import Inline, visible
from .test_train import Interrupted, Listener, checkpoint, kept, losses, same

WIDTH, HEIGHT = SIZE = (64, 48)
CLASSES = (0, 2, 10, 13)
COUNT = 12
EVERY = PrepareOptions(side=64, fps=25, val=0)
NAME = "few-shot-vid2vid"
SMALL: dict[str, Any] = {
    "conditioning": "labels", "width": 8, "widest": 16, "levels": 2, "adaptive": 2, "grid": 2, "keys": 1,
    "flow_width": 4, "flow_downs": 1, "flow_blocks": 1, "critic": 4, "sequence": 3,
}  # fmt: skip
TINY = TrainOptions(
    "pretrain", model=NAME, config=SMALL, steps=3, batch=2, rate=2e-3, frames=(3,), inner=2, draws=1, side=64,
    device="cpu", precision="fp32",
)  # fmt: skip
STAGES = pytest.mark.parametrize("options", [TINY, replace(TINY, stage="meta")], ids=["pretrain", "meta"])


def street(t: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A street (48, 64, 3) and its label map: houses of a colour of its own pass, and a car comes."""
    labels = np.full((HEIGHT, WIDTH), 10, np.uint8)
    for x in range(0, 3 * WIDTH, 24):
        labels[8:30, max(0, x - 2 * t) : max(0, x - 2 * t + 14)] = 2
    labels[30:] = 0
    labels[28:40, 3 * t % 50 : 3 * t % 50 + 14] = 13
    colours = np.random.default_rng(seed).integers(20, 236, (256, 3))
    light = np.linspace(1.05, 0.85, HEIGHT)[:, None, None]
    return np.clip(colours[labels] * light, 0, 255).astype(np.uint8), labels


def shown_at(picture: np.ndarray, seed: int) -> int:
    """When a packed picture of a street was taken."""
    errors = [np.abs(picture.astype(float) - street(t, seed)[0]).mean() for t in range(COUNT)]
    assert min(errors) < 6  # WebP halves the resolution of colours
    return int(np.argmin(errors))


def shoot(folder: Path, name: str, seed: int, count: int = COUNT) -> tuple[Path, Path]:
    """Pictures and label maps of a street: the folders `streets/NAME` and `maps/NAME`."""
    made = folder / "streets" / name, folder / "maps" / name
    for place in made:
        place.mkdir(parents=True)
    for t in range(count):
        picture, labels = street(t, seed)
        cv2.imwrite(str(made[0] / f"p{t}.png"), picture[..., ::-1])
        cv2.imwrite(str(made[1] / f"m{t}.png"), labels)
    return made


def by_name(folder: Path, out: str = "corpus", options: PrepareOptions = EVERY, **more: Any) -> dict[str, Any]:
    """Pack `streets/` with `maps/`."""
    return prepare([folder / "streets"], folder / out, replace(options, labels=(str(folder / "maps"),)), **more)


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", Inline)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of four streets, one of them for validation."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = ["clip,split"]
    for seed, name in enumerate(("ash", "birch", "cedar", "oak_v1.0")):
        shoot(folder, name, seed)
        rows.append(f"{name},{'val' if seed == 3 else 'train'}")
    (folder / "table.csv").write_text("\n".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("concurrent.futures.ProcessPoolExecutor", Inline)
        by_name(folder, options=replace(EVERY, table=str(folder / "table.csv"), licence="CC0-1.0"))
    return folder


# ------------------------------------------------------------------------------------------------ what is packed


def test_what_is_packed_is_what_is_read(world):
    corpus = Corpus(world / "corpus")
    assert corpus.index["options"] == {"side": 64, "fps": 25, "quality": 88, "labels": True}
    assert corpus.index["left_out"] == []
    assert corpus.classes == 19
    assert visible(world / "corpus") == ["ash.npz", "birch.npz", "cedar.npz", "index.json", "oak_v1.0.npz"]
    assert list(corpus.persons("train")) == ["ash", "birch", "cedar"]
    (entry,) = corpus.persons("val")["oak_v1.0"]
    assert (entry.source, entry.licence, entry.frames, entry.size) == ("oak_v1.0", "CC0-1.0", COUNT, SIZE)
    clip = corpus.clip("oak_v1.0")
    assert (len(clip), clip.track.size, clip.track.fps) == (COUNT, SIZE, 25)
    for t in range(COUNT):
        labels = street(t, 3)[1]
        assert np.array_equal(clip.labels[t], labels)
        assert np.array_equal(clip.window(t).classes[0], labels)
        assert shown_at(clip.pictures[t], 3) == t
    # With NumPy and OpenCV alone.
    with np.load(world / "corpus" / "ash.npz") as stored:
        meta, blob = json.loads(str(stored["meta"])), stored["labels"]
    assert (meta["classes"], meta["size"], meta["fps"]) == (19, list(SIZE), "25")
    count, first = blob[:8].view("<i4").tolist()
    start = 4 + 4 * count
    assert np.array_equal(cv2.imdecode(blob[start : start + first], cv2.IMREAD_UNCHANGED), street(0, 0)[1])


def test_references_are_what_personalize_makes(world):
    chosen = [7, 0, 3]
    found = Corpus(world / "corpus").clip("birch").gathered(chosen)
    paths = list((world / "streets" / "birch").iterdir())
    expected = streets.gathered(paths, world / "maps" / "birch", count=3, size=64, pick=chosen, progress=Silent())
    assert np.array_equal(found.labels, expected.labels)
    assert [shown_at(p, 1) for p in found.pictures] == [shown_at(p, 1) for p in expected.pictures]
    assert np.array_equal(found.mattes, expected.mattes)
    assert np.array_equal(found.plate.image, found.pictures[0])
    assert (found.picked, found.fps, found.size) == (expected.picked, expected.fps, expected.size)
    assert not found.track.found.any()


def test_videos_and_videos_of_maps(tmp_path):
    """Fewer frames, and smaller ones, of maps that were compressed."""
    (tmp_path / "maps").mkdir()
    for path, which in ((tmp_path / "film.mp4", 0), (tmp_path / "maps" / "film.mp4", 1)):
        with open_writer(path, (192, 144), Fraction(10), crf=4) as write:
            for t in range(14):
                shown = street(t, 0)[0] if which == 0 else coloured(street(t, 0)[1])
                write(cv2.resize(shown, (192, 144), interpolation=cv2.INTER_NEAREST))
    options = PrepareOptions(side=72, fps=5, labels=(str(tmp_path / "maps" / "film.mp4"),), val=0)
    index = prepare([tmp_path / "film.mp4"], tmp_path / "corpus", options)
    assert (index["clips"][0]["frames"], index["clips"][0]["size"]) == (7, (96, 72))
    clip = Corpus(tmp_path / "corpus").clip("film")
    assert clip.track.fps == 10
    for n in range(7):
        picture, labels = street(2 * n, 0)
        wide = cv2.resize(labels, (192, 144), interpolation=cv2.INTER_NEAREST)
        assert (clip.labels[n] == streets.resized(wide, (96, 72))).mean() > 0.97
        large = cv2.resize(picture, (96, 72), interpolation=cv2.INTER_AREA)
        assert np.abs(clip.pictures[n].astype(int) - large).mean() < 8
    # The same by name, out of a folder of videos.
    again = prepare([tmp_path], tmp_path / "named", replace(options, labels=(str(tmp_path / "maps"),)))
    assert again["clips"] == index["clips"]


def test_maps_in_the_order_of_their_scenes(tmp_path):
    for seed, name in enumerate("ab"):
        shoot(tmp_path, name, seed)
    where = [tmp_path / "streets" / name for name in "ba"]
    maps = tuple(str(tmp_path / "maps" / name) for name in "ba")
    ordered = prepare(where, tmp_path / "ordered", replace(EVERY, labels=maps))
    assert [c["clip"] for c in ordered["clips"]] == ["a", "b"]
    assert ordered["clips"] == by_name(tmp_path)["clips"]
    # One folder for all, though each scene is named.
    named = prepare(where, tmp_path / "named", replace(EVERY, labels=(str(tmp_path / "maps"),)))
    assert ordered["clips"] == named["clips"]
    assert forecast.prepare(where, tmp_path, replace(EVERY, labels=maps)) is None


def test_more_classes_than_the_palette_has(tmp_path):
    _, maps = shoot(tmp_path, "a", 0)
    cv2.imwrite(str(maps / "m3.png"), np.full((HEIGHT, WIDTH), 25, np.uint8))
    shoot(tmp_path, "b", 1)
    assert [c["classes"] for c in by_name(tmp_path)["clips"]] == [26, 19]
    assert Corpus(tmp_path / "corpus").classes == 26


# ------------------------------------------------------------------------------------------------ what is left out


def test_scenes_of_no_use_are_left_out_with_a_reason(tmp_path):
    for seed, name in enumerate(("good", "few", "less", "size", "torn", "odd", "alone", "empty", "mixed")):
        shoot(tmp_path, name, seed, 5 if name == "few" else COUNT)
    pictures, maps = tmp_path / "streets", tmp_path / "maps"
    (maps / "less" / "m4.png").unlink()
    for t in range(COUNT):
        cv2.imwrite(str(maps / "size" / f"m{t}.png"), street(t, 0)[1][:-1])
        cv2.imwrite(str(maps / "empty" / f"m{t}.png"), np.full((HEIGHT, WIDTH), NONE, np.uint8))
    torn = maps / "torn" / "m5.png"
    torn.write_bytes(torn.read_bytes()[:-40])
    cv2.imwrite(str(maps / "odd" / "m5.png"), np.full((HEIGHT, WIDTH), 200, np.uint8))
    cv2.imwrite(str(pictures / "mixed" / "p3.png"), np.zeros((10, 10, 3), np.uint8))
    (maps / "alone").rename(tmp_path / "elsewhere")
    told = Listener()
    index = by_name(tmp_path, progress=told)
    assert [c["clip"] for c in index["clips"]] == ["good"]
    assert visible(tmp_path / "corpus") == ["good.npz", "index.json"]
    reasons = {x["clip"]: x["reason"] for x in index["left_out"]}
    for name, reason in {
        "few": "5 of its 5 pictures are kept at --fps 25, and 6 are needed.",
        "less": "less has 12 pictures, and less has 11 label maps.",
        "size": "The pictures have 64 x 48 pixels, and the label maps 64 x 47.",
        "torn": "m5.png is no readable PNG.",
        "odd": "m5.png holds the number 200, which is no class.",
        "alone": "alone cannot be read: No such file or directory.",
        "empty": "its label maps hold no class.",
        "mixed": "p3.png is not as large as p0.png.",
    }.items():
        assert reasons.pop(name).endswith(reason), name
    assert not reasons
    assert len(told.warnings) == 8


def test_nothing_that_can_be_used(tmp_path):
    shoot(tmp_path, "a", 0)
    with pytest.raises(InputError, match="None of the 1 clips can be used; a: 3 of its 12 pictures are kept at") as e:
        by_name(tmp_path, options=replace(EVERY, fps=5))
    assert "label map" in e.value.remedy


def test_scenes_and_maps_that_cannot_be(tmp_path):
    for seed, name in enumerate("ab"):
        shoot(tmp_path, name, seed)
    pictures, maps, out = tmp_path / "streets", tmp_path / "maps", tmp_path / "corpus"
    (tmp_path / "nothing").mkdir()

    def pack(clips: list[Path], *labels: Path, **more: Any) -> None:
        prepare(clips, out, replace(EVERY, labels=tuple(map(str, labels)), **more))

    with pytest.raises(UsageError, match=r"maps/a would be the label maps of both a and b") as e:
        pack([pictures], maps / "a")
    assert "in the same order" in e.value.remedy
    with pytest.raises(UsageError, match=r"--labels \(2\) and of scenes or folders of them \(1\) differ"):
        pack([pictures], maps / "a", maps / "b")
    for clips, labels in (([pictures, tmp_path / "missing"], maps), ([pictures], tmp_path / "missing")):
        with pytest.raises(InputError, match=r"no file or folder .*missing"):
            pack(clips, labels)
    with pytest.raises(UsageError, match="There are no scenes"):
        pack([tmp_path / "nothing"], maps)
    with pytest.raises(UsageError, match="have one name"):
        pack([pictures / "a", maps / "a"], maps / "a", maps / "b")
    with pytest.raises(UsageError, match="--crop is for people"):
        pack([pictures], maps, crop="head")
    assert not out.exists()


# ------------------------------------------------------------------------------------------------ going on


def test_what_is_packed_is_not_packed_again(tmp_path, monkeypatch):
    packed: list[str] = []
    plain = streets.opened
    monkeypatch.setattr(streets, "opened", lambda paths, maps: packed.append(maps.name) or plain(paths, maps))
    for seed, name in enumerate("ab"):
        shoot(tmp_path, name, seed)
    first = by_name(tmp_path)
    (tmp_path / "corpus" / "index.json").unlink()  # as after an interruption
    assert by_name(tmp_path) == first
    assert packed == ["a", "b"]
    # A scene whose maps are others is another one.
    cv2.imwrite(str(tmp_path / "maps" / "b" / "m3.png"), np.zeros((HEIGHT, WIDTH), np.uint8))
    assert by_name(tmp_path)["clips"][1]["sha256"] != first["clips"][1]["sha256"]
    assert packed == ["a", "b", "b"]
    (tmp_path / "corpus" / "a.npz").write_bytes((tmp_path / "corpus" / "a.npz").read_bytes()[:-500])
    _read.cache_clear()
    with pytest.raises(InputError, match=r"a\.npz is missing or damaged"):
        Corpus(tmp_path / "corpus").clip("a")
    by_name(tmp_path)
    assert packed == ["a", "b", "b", "a"]
    assert np.array_equal(Corpus(tmp_path / "corpus").clip("a").labels[5], street(5, 0)[1])


def test_people_and_scenes_do_not_share_a_corpus(film, tmp_path):
    shoot(tmp_path, "a", 0)
    by_name(tmp_path)
    with pytest.raises(UsageError, match="made with other options"):
        prepare([film.shoot(tmp_path, "x_a")], tmp_path / "corpus", EVERY)


# ------------------------------------------------------------------------------------------------ tasks


def test_tasks_are_drawn_from_the_maps_of_their_frames(world, tmp_path):
    corpus = Corpus(world / "corpus")
    config = SMALL | {"classes": 19}
    model = build(NAME, config)
    task = begun(model, corpus, corpus.persons("train")["cedar"], 0, TaskOptions("pretrain", (3,), side=64))
    assert len(task.unknown) == COUNT - 3
    true = np.stack([street(t, 2)[1] for t in range(COUNT)])
    frames = []
    for number in range(len(task.truths)):
        batch = task.pair(model, corpus, number)
        assert frame_count(batch.truth) == 3
        assert batch.truth.matte.min() == 1
        assert batch.condition.maps.shape == (1, 3, 19, HEIGHT, WIDTH)
        numbers = [int(np.argmin([(m != t).sum() for t in true])) for m in batch.condition.maps[0].argmax(1).numpy()]
        assert all(np.array_equal(true[n], m) for n, m in zip(numbers, batch.condition.maps[0].argmax(1), strict=True))
        for n, rgb in zip(numbers, batch.truth.rgb[0], strict=True):
            assert shown_at((rgb.permute(1, 2, 0).numpy() + 1) * 127.5, 2) == n
        assert {("cedar", n) for n in numbers} <= task.unknown
        assert all(abs(a - b) <= 1 for a, b in pairwise(numbers))
        frames += numbers
    assert batch.identity.maps.shape == (1, 3, 19, HEIGHT, WIDTH)
    assert len(set(frames)) > 3
    meta = Tasks(corpus, "train", (NAME, config), TaskOptions("meta", (4,), side=64), tmp_path)[1]
    assert len(meta) == 4
    assert all(p.condition.maps.shape == (1, 19, HEIGHT, WIDTH) for group in meta for p in group)
    assert all(p.identity.pictures.shape[1] == 3 for group in meta for p in group)


# ------------------------------------------------------------------------------------------------ training


def test_a_batch_is_of_scenes_of_one_size(tmp_path, monkeypatch):
    """Which of them differs from batch to batch; small pictures lie beside large ones in the corpus."""
    for seed, name in enumerate("abcd"):
        for path in (f for folder in shoot(tmp_path, name, seed) for f in folder.iterdir() if name in "bd"):
            cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:, 16:])
    rows = [f"{name},{'val' if name == 'a' else 'train'}" for name in "abcd"]
    (tmp_path / "table.csv").write_text("\n".join(["clip,split", *rows]))
    by_name(tmp_path, options=replace(EVERY, table=str(tmp_path / "table.csv")))
    seen = []
    monkeypatch.setattr("retarget.training.run.measure", lambda *_: {"fg_psnr": 20.0})
    monkeypatch.setattr(module, "stacked", lambda pairs: seen.append([p.truth.rgb.shape[4] for p in pairs]) or pairs[0])
    train(tmp_path / "corpus", tmp_path / "run", replace(TINY, config=SMALL | {"side": 32}, steps=8, batch=3))
    assert {len(set(widths)) for widths in seen} == {1}
    assert {widths[0] for widths in seen} == {48, 64}


@pytest.mark.slow
def test_pretraining_and_meta_learning_draw_a_street_that_was_never_seen_better(world, tmp_path, monkeypatch):
    """From nothing to pretraining to Reptile to an avatar: each start is nearer to the truth."""
    monkeypatch.setattr("retarget.training.run.measure", lambda *_: {"fg_psnr": 20.0})  # takes long
    first = train(world / "corpus", tmp_path / "pretrain", replace(TINY, steps=40, rate=8e-3))
    more = replace(TINY, stage="meta", steps=3, inner=3, rate=2e-3, init=str(first.weights))
    second = train(world / "corpus", tmp_path / "meta", more)
    assert first.finished
    assert second.finished
    corpus = Corpus(world / "corpus")
    config = SMALL | {"classes": 19}
    tasks = Tasks(corpus, "val", (NAME, config), TaskOptions("pretrain", (3,), side=64), tmp_path)
    pairs = [group[0] for group in tasks[0]]
    torch.manual_seed(0)
    model = build(NAME, config).eval()

    def error() -> float:
        found = []
        for pair in pairs:
            frame = drawn(model, pair.condition, pair.identity._replace(appearance=None, keys=None), _CPU, 3)
            found.append(float((last(frame).rgb - last(pair.truth).rgb).abs().mean()))
        return sum(found) / len(found)

    errors = [error()]
    for done in (first, second):
        tensors, name, known = load_file(done.weights)
        assert name == NAME
        assert (known["conditioning"], known["classes"]) == ("labels", 19)
        model.load_state_dict({k: t.float() for k, t in tensors.items()})
        errors.append(error())
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.8 * errors[0]
    log = [loss for _, loss in losses(tmp_path / "pretrain")]
    assert all(map(math.isfinite, log))
    assert sum(log[-10:]) < 0.9 * sum(log[:10])
    # `personalize` begins there.
    monkeypatch.setenv("RETARGET_HOME", str(tmp_path / "home"))
    made = personalize(
        world / "streets" / "oak_v1.0", labels=str(world / "maps" / "oak_v1.0"), model=NAME, frames=3, steps=0,
        init=str(second.weights), size=64, device="cpu", precision="fp32",
    )  # fmt: skip
    assert made.meta.config["classes"] == 19
    state = load_file(second.weights)[0]
    assert all(np.allclose(made.state()[k], state[k].float()) for k in made.state())


@STAGES
def test_interrupted_and_resumed_is_the_same_as_uninterrupted(world, tmp_path, monkeypatch, options):
    monkeypatch.setattr("retarget.training.run.measure", lambda *_: {"fg_psnr": 20.0})
    options = replace(options, critic=True)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(world / "corpus", whole, options)
    monkeypatch.setattr(runs, "EVERY", -1.0)  # a checkpoint after each step
    with pytest.raises(Interrupted):
        train(world / "corpus", parts, options, progress=Listener(2))
    assert not same(kept(parts), kept(whole))
    monkeypatch.setattr(runs, "EVERY", 1e9)
    assert train(world / "corpus", parts, options).finished
    assert same(kept(parts), kept(whole))
    one, two = checkpoint(parts), checkpoint(whole)
    assert one.keys() == two.keys()
    assert all(torch.equal(v, two[k]) if isinstance(v, torch.Tensor) else v == two[k] for k, v in one.items())
    assert losses(parts) == losses(whole)


def test_corpora_and_models_that_do_not_fit(world, corpus_folder, tmp_path):
    """People for a model of scenes, scenes for a model of people, too few classes: before anything is done."""
    scenes, out = world / "corpus", tmp_path / "run"
    with pytest.raises(UsageError, match="is a corpus of people, without label maps") as e:
        train(corpus_folder, out, TINY)
    assert "--labels MAPS" in e.value.remedy
    with pytest.raises(
        UsageError, match=f"is a corpus of street scenes, and {NAME} as configured learns from people"
    ) as e:
        train(scenes, out, replace(TINY, config={"conditioning": "face"}))
    assert e.value.remedy == "Use --config conditioning=labels."
    for changes, who in (({"model": "dance"}, "dance"), ({"stage": "parsing"}, "the parser")):
        with pytest.raises(UsageError, match=f"is a corpus of street scenes, and {who} learns from people") as e:
            train(scenes, out, replace(TINY, config={}, **changes))
        assert e.value.remedy == f"Use --model {NAME} --config conditioning=labels."
    with pytest.raises(UsageError, match=r"--config classes=5 is too few: the label maps in .* take 19") as e:
        train(scenes, out, replace(TINY, config=SMALL | {"classes": 5}))
    assert "19 or more" in e.value.remedy
    with pytest.raises(UsageError, match="no model called 'none'"):
        train(scenes, out, replace(TINY, model="none"))
    assert not out.exists()


def test_no_scene_to_validate_with(tmp_path):
    shoot(tmp_path, "a", 0)
    by_name(tmp_path)
    with pytest.raises(InputError, match="has no scene in its split “val”") as e:
        train(tmp_path / "corpus", tmp_path / "run", TINY)
    assert "--table" in e.value.remedy


def test_on_the_command_line(world, tmp_path, capfd):
    corpus, run = str(tmp_path / "corpus"), str(tmp_path / "run")
    pack = ["prepare", str(world / "streets"), "--labels", str(world / "maps"), "--out", corpus, "--fps", "25"]
    assert main([*pack, "--side", "64", "--table", str(world / "table.csv")]) == 0
    assert "4 clips packed" in capfd.readouterr().out
    small = [word for key, value in SMALL.items() for word in ("--config", f"{key}={value}")]
    learn = ["train", "pretrain", corpus, "--out", run, "--model", NAME, "--device", "cpu"]
    assert main([*learn, *small, "--steps", "1", "--batch", "1", "--frames", "2", "--yes"]) == 0
    assert load_file(Path(run) / "weights.safetensors")[2]["classes"] == 19
    capfd.readouterr()
    assert main(learn) == 2
    said = capfd.readouterr().err
    assert "is a corpus of street scenes" in said
    assert "Traceback" not in said
    assert main([*pack[:4], "--labels", str(world / "table.csv"), "-o", corpus]) == 2
