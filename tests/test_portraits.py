"""Squares around heads, and what `personalize` and `drive` make of them."""

from __future__ import annotations

import importlib
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from retarget import drive, personalize, portraits, weights
from retarget.errors import NobodyFound, UsageError
from retarget.evaluate import evaluate
from retarget.faces import heads, typical
from retarget.models import MODELS, build, few_shot_vid2vid, talking_head
from retarget.personalize import PersonalizeOptions, gather
from retarget.pose import PoseOptions, estimate, save_motion
from retarget.references import arrays, check_stored, packed, unpacked
from retarget.tuning import shown
from retarget.types import Silent
from retarget.video import open_reader, open_writer, probe

EXAMPLES = Path(__file__).parent.parent / "examples"
HEADS = Path(__file__).parent.parent.parent / "shared/clips/heads"
real = pytest.mark.skipif(not (HEADS / "h16.mp4").exists(), reason="the real clips are not on this machine")
FACE = {
    "conditioning": "face", "width": 8, "widest": 16, "levels": 3, "adaptive": 3, "grid": 4, "keys": 1, "flow_width": 8,
    "flow_downs": 2, "flow_blocks": 1, "critic": 8,
}  # fmt: skip
"""Of a tiny few-shot-vid2vid that is drawn from the face."""
TINY = {"side": 32, "width": 4, "widest": 8, "embedding": 6, "downs": 2, "blocks": 1, "halvings": 3, "videos": 4}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A photo (728 × 384), and a second of somebody talking (192 × 192)."""
    folder = tmp_path_factory.mktemp("clips")
    with open_reader(HEADS / "h16.mp4", end=0.1) as frames:
        cv2.imwrite(str(folder / "selfie.png"), next(iter(frames))[..., ::-1])
    with (
        open_reader(HEADS / "h02.mp4", size=(192, 192), end=1.0) as frames,
        open_writer(folder / "talk.mp4", (192, 192), Fraction(15)) as write,
    ):
        for i, frame in enumerate(frames):
            if i % 2 == 0:
                write(frame)
    return folder / "selfie.png", folder / "talk.mp4"


@real
def test_a_photo(clips, tmp_path):
    selfie, _ = clips
    portrait = portraits.cropped([selfie], tmp_path, size=160, person="largest", whole=False, progress=Silent())
    (square,) = portrait.paths
    assert square.stem == "selfie"
    picture = cv2.imread(str(square))
    assert picture.shape == (160, 160, 3)
    assert portrait.home.shape == (384, 728, 3)
    x, y, side = portrait.box
    assert 0 <= x - side / 2 < x + side / 2 <= 728
    assert 0 <= y - side / 2 < y + side / 2 <= 384.01
    inside = portrait.home[round(y - side / 2) : round(y + side / 2), round(x - side / 2) : round(x + side / 2)]
    again = cv2.resize(inside, (160, 160), interpolation=cv2.INTER_AREA)[..., ::-1]
    assert np.abs(again.astype(int) - picture).mean() < 4


@real
def test_a_video(clips, tmp_path):
    _, talk = clips
    portrait = portraits.cropped([talk], tmp_path, size=100, person="largest", whole=False, progress=Silent())
    info, before = probe(portrait.paths[0]), probe(talk)
    assert (info.width, info.height) == (100, 100)
    assert (info.frames, info.fps) == (before.frames, before.fps)
    assert portrait.home.shape == (192, 192, 3)


def test_pictures_without_a_face(tmp_path):
    cv2.imwrite(str(tmp_path / "sky.png"), np.full((120, 160, 3), 200, np.uint8))
    with pytest.raises(NobodyFound, match=r"sky\.png") as e:
        portraits.cropped([tmp_path / "sky.png"], tmp_path, size=64, person="largest", whole=False, progress=Silent())
    assert "face" in e.value.remedy


@real
def test_models_of_heads_get_heads(clips):
    selfie, _ = clips
    gathered = gather([selfie], PersonalizeOptions(frames=1, size=128, model="talking-head"), Silent())
    assert gathered.size == (128, 128)
    assert gathered.home is not None
    stored = arrays(gathered)
    check_stored(stored, (128, 128), 1)
    assert np.isfinite(stored["pose_face"]).all()
    assert stored["pose_face"].shape == stored["track_face"].shape == (1, 478, 3)
    height = np.ptp(stored["pose_face"][0, :, 1])
    assert 128 / 2.2 < height < 128 / 1.5
    for broken in (
        {"home": stored["home"][..., 0]}, {"home": np.zeros((5000, 5000, 3), np.uint8)},
        {"box": stored["box"] * np.float32(-1)}, {"box": np.full(3, np.nan, np.float32)},
        {"box": stored["box"] * np.float32(9)}, {"box": stored["box"].astype(float)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="home"):
            check_stored(stored | broken, (128, 128), 1)
    whole = gather([selfie], PersonalizeOptions(frames=1, size=128, model="talking-head", crop="none"), Silent())
    assert whole.size[0] > whole.size[1]
    assert "home" not in arrays(whole)
    assert arrays(whole)["pose_face"].shape == (1, 478, 3)
    body = gather([selfie], PersonalizeOptions(frames=1, size=128, model="dance"), Silent())
    assert arrays(body)["pose_face"].shape == (1, 468, 3)


def test_the_crop_is_checked(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not looked into")
    with pytest.raises(UsageError, match="crop"):
        personalize(tmp_path / "a.mp4", crop="feet")
    with pytest.raises(UsageError, match="--size does not go with --paste-back"):
        drive("me", tmp_path / "a.mp4", tmp_path / "out.mp4", paste_back=True, size=128)
    with pytest.raises(UsageError, match="--background does not go with --paste-back"):
        drive("me", tmp_path / "a.mp4", tmp_path / "out.mp4", paste_back=True, background="#00ff00")


@pytest.mark.parametrize(
    ("model", "crop", "subject"),
    [
        ("dance", "auto", "body"), ("dance", "head", "head"), ("talking-head", "auto", "head"),
        ("talking-head", "none", "body"), ("few-shot-vid2vid", "auto", "body"), ("few-shot-vid2vid", "head", "head"),
    ],
)  # fmt: skip
def test_who_is_shown(model, crop, subject):
    assert shown(PersonalizeOptions(model=model, crop=crop)) == subject


@pytest.mark.parametrize("model", ["few-shot-vid2vid", "dance", "talking-head"])
def test_nobody_misses_the_feet_of_a_head(model, puppet, tmp_path, monkeypatch):
    """Whichever model squares around heads are for."""
    gathered, asked = puppet.gathered(puppet.body()), []
    home = np.zeros((60, 80, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "me.png"), home)
    portrait = portraits.Portrait([tmp_path / "me.png"], home, np.array([40, 30, 20], np.float32))
    monkeypatch.setattr(portraits, "cropped", lambda *_, **__: portrait)

    def from_photos(paths, *, person, feet, irises, **_):
        asked.append((paths, person, feet))
        assert irises is not feet
        return gathered

    monkeypatch.setattr("retarget.gathering.from_photos", from_photos)
    found = gather([tmp_path / "me.png"], PersonalizeOptions(model=model, crop="head", person="40,30"), Silent())
    assert asked == [(portrait.paths, "largest", False)]
    assert found.home is home
    gather([tmp_path / "me.png"], PersonalizeOptions(model=model, crop="none", person="40,30"), Silent())
    assert asked[1] == ([tmp_path / "me.png"], "40,30", model != "talking-head")


def tiny_face(folder: Path) -> str:
    torch.manual_seed(2)
    model = build("few-shot-vid2vid", FACE)
    weights.save_file(folder / "face.safetensors", model.state_dict(), "few-shot-vid2vid", asdict(model.config))
    return str(folder / "face.safetensors")


@pytest.mark.parametrize(("mine", "theirs"), [(False, False), (True, False), (False, True), (True, True)])
def test_few_shot_vid2vid_draws_from_faces(mine, theirs, puppet, tmp_path, monkeypatch):
    """An avatar of heads is driven by faces, knows the way back into its photo, and weights say what they are for.

    mine, theirs: whether driver and avatar have irises.
    """
    module = importlib.import_module("retarget.personalize")
    bodies = [puppet.body((20 + 5 * i, 30)) for i in range(4)]
    home = puppet.cloth(5, (160, 200))
    square = replace(
        puppet.gathered(*bodies[:2], details=True), home=home, box=np.array([80, 90, 100], np.float32)
    )  # fmt: skip
    if theirs:
        square = replace(
            square, track=puppet.with_irises(square.track), windows=tuple(map(puppet.with_irises, square.windows))
        )
    again = unpacked(packed(square))  # as after an interruption
    assert np.array_equal(again.home, home)
    assert again.box.tolist() == [80, 90, 100]
    (tmp_path / "me.mp4").write_bytes(b"not looked into")
    monkeypatch.setattr(module, "gather", lambda *_: square)
    options = {"model": "few-shot-vid2vid", "init": tiny_face(tmp_path), "steps": 2, "size": 128, "device": "cpu"}
    with pytest.raises(UsageError, match="for heads, not for whole people") as e:
        personalize(tmp_path / "me.mp4", **options)
    assert "--crop head" in e.value.remedy
    avatar = personalize(tmp_path / "me.mp4", crop="head", **options)
    assert avatar.meta.config["conditioning"] == "face"
    talk = puppet.track(*bodies, details=True)
    source = save_motion(puppet.with_irises(talk) if mine else talk, tmp_path / "talk.npz")
    drawn, points = [], set()
    plain = few_shot_vid2vid.model.face_lines

    def watched(face, *size, **how):
        points.add(face.shape[1])
        drawn.append(plain(face, *size, **how))
        return drawn[-1]

    monkeypatch.setattr(few_shot_vid2vid.model, "face_lines", watched)
    out = drive(avatar, source, tmp_path / "out.mp4", paste_back=True, device="cpu")
    assert (probe(out).frames, probe(out).width, probe(out).height) == (4, 160, 200)
    assert len(drawn) == 1 + 4  # the references', then each frame's
    assert all(lines.amax() > 0.5 for lines in drawn)
    assert points == {478 if theirs else 468}


def test_nothing_to_paste_back_into(puppet, tmp_path, monkeypatch):
    module = importlib.import_module("retarget.personalize")
    gathered = puppet.gathered(puppet.body(), puppet.body((90, 90)))
    (tmp_path / "me.mp4").write_bytes(b"not looked into")
    monkeypatch.setattr(module, "gather", lambda *_: gathered)
    avatar = personalize(tmp_path / "me.mp4", steps=0, init="random", device="cpu")
    source = save_motion(gathered.track, tmp_path / "dance.npz")
    with pytest.raises(UsageError, match="nothing was cut out") as e:
        drive(avatar, source, tmp_path / "out.mp4", paste_back=True, device="cpu")
    assert "--paste-back" in e.value.remedy
    assert not (tmp_path / "out.mp4").exists()


@real
@pytest.mark.slow
def test_a_portrait_speaks(clips, tmp_path, monkeypatch):
    """From a selfie to a video, and back into the photo; a tiny network, a few steps."""
    selfie, talk = clips
    model = MODELS["talking-head"]()
    monkeypatch.setattr(model, "PRESETS", {"small": TINY})
    drawn = []
    plain = talking_head.model.face_lines
    monkeypatch.setattr(talking_head.model, "face_lines", lambda *a, **k: drawn.append(a[0].numpy()) or plain(*a, **k))
    avatar = personalize(
        selfie, model="talking-head", frames=1, steps=4, size=96, init="random", device="cpu", name="self"
    )  # fmt: skip
    assert avatar.size == (96, 96)
    assert "best_step" in avatar.meta.quality
    state = avatar.state()
    assert state["adopted"].item() == 1
    assert np.abs(state["own"]).sum() > 0
    assert avatar.tensors()["track_face"].shape == (1, 478, 3)
    drawn.clear()
    out = drive(avatar, talk, tmp_path / "out.mp4", device="cpu")
    assert (probe(out).width, probe(out).height, probe(out).frames) == (96, 96, probe(talk).frames)
    shown = np.concatenate(drawn[1:])  # the first is the photo's
    assert shown.shape == (probe(talk).frames, 478, 3)
    driver = estimate(talk, PoseOptions(irises=True)).face
    looks = [(f[:, 468, 0] - f[:, [33, 133], 0].mean(1)) / np.ptp(f[:, [33, 133], 0], axis=1) for f in (shown, driver)]
    assert np.ptp(looks[0]) > 0.02
    assert np.corrcoef(looks)[0, 1] > 0.8
    back = drive(avatar, talk, tmp_path / "back.mp4", paste_back=True, device="cpu")
    assert (probe(back).width, probe(back).height) == (728, 384)
    with open_reader(back) as frames:
        shown = next(iter(frames)).astype(int)
    photo = cv2.imread(str(selfie))[..., ::-1].astype(int)
    x, y, side = avatar.tensors()["box"]
    far = np.abs(np.arange(728) + 0.5 - x) > side / 2 + 8
    assert np.abs(shown - photo)[:, far].mean() < 4
    assert np.abs(shown - photo)[round(y) - 40 : round(y) + 40, round(x) - 40 : round(x) + 40].mean() > 10


@pytest.mark.slow
@pytest.mark.parametrize(("model", "lips"), [("dance", True), ("few-shot-vid2vid", True), ("talking-head", False)])
def test_the_examples_speak(model, lips, tmp_path):
    """The person of one example turns the head and moves the lips as that of the other, by the shipped weights; those
    of `talking-head` are too small for lips without steps."""
    avatar = personalize(EXAMPLES / "selfie.mp4", model=model, crop="head", frames=3, steps=0, size=256, device="cpu")
    out = drive(avatar, EXAMPLES / "talk.mp4", tmp_path / "out.mp4", end=2.0, smooth=0, device="cpu")
    made, driver = (estimate(path, PoseOptions(), end=2.0).face for path in (out, EXAMPLES / "talk.mp4"))
    assert np.isfinite(made).all(axis=(1, 2)).mean() > 0.9
    found = np.isfinite(made).all(axis=(1, 2))
    poses = [heads(face[found], typical(face[found])) for face in (made, driver)]
    turns = [pose.rotation[:, 0, 2] for pose in poses]
    gaps = [pose.shape[:, 14, 1] - pose.shape[:, 13, 1] for pose in poses]
    assert np.corrcoef(turns)[0, 1] > 0.9
    assert not lips or np.corrcoef(gaps)[0, 1] > 0.5


@real
@pytest.mark.slow
def test_a_portrait_speaks_by_flows(clips, tmp_path):
    selfie, talk = clips
    avatar = personalize(
        selfie, model="few-shot-vid2vid", crop="head", frames=1, steps=4, size=96, init=tiny_face(tmp_path),
        device="cpu",
    )  # fmt: skip
    out = drive(avatar, talk, tmp_path / "out.mp4", device="cpu")
    assert (probe(out).width, probe(out).height, probe(out).frames) == (96, 96, probe(talk).frames)
    with open_reader(out) as frames:
        shown = np.stack(list(frames)).astype(int)
    assert np.abs(shown - avatar.tensors()["frames"][0]).mean() < 40


@real
@pytest.mark.slow
def test_heads_are_measured_in_their_squares(clips, tmp_path, monkeypatch):
    module = importlib.import_module("retarget.evaluate")
    plain, made = module.personalize, []
    monkeypatch.setattr(module, "personalize", lambda *a, **k: made.append(plain(*a, **k)) or made[-1])
    report = evaluate(
        clips[1:], model="few-shot-vid2vid", crop="head", init=tiny_face(tmp_path), frames=1, steps=0, size=96,
        split=0.6, device="cpu",
    )  # fmt: skip
    assert [avatar.size for avatar in made] == [(96, 96)]
    (line,) = report["clips"]
    assert list(line["methods"]) == ["few-shot-vid2vid", "warp", "copy"]
    assert line["methods"]["copy"]["psnr"] > 15
    with pytest.raises(UsageError, match="for whole people"):
        evaluate(clips[1:], model="few-shot-vid2vid", init=tiny_face(tmp_path), device="cpu")


@real
@pytest.mark.slow
def test_a_corpus_of_heads(clips, tmp_path):
    from retarget.training.corpus import Corpus
    from retarget.training.prepare import PrepareOptions, prepare
    from retarget.training.tasks import TaskOptions, Tasks

    _, talk = clips
    options = PrepareOptions(side=64, fps=8, workers=1, crop="head", val=0.0)
    prepare([talk], tmp_path / "corpus", options)
    corpus = Corpus(tmp_path / "corpus")
    (entry,) = corpus.entries
    assert entry.size == (64, 64)
    assert corpus.clip(entry.clip).track.face.shape == (entry.frames, 478, 3)
    tasks = Tasks(corpus, "train", ("talking-head", TINY), TaskOptions("pretrain", (3,), side=64), tmp_path / "drawn")
    pair = tasks[0][0][0]
    again = tasks.pair(0, np.random.default_rng(0))
    for one in (pair, again):
        assert one.condition.maps.shape == (1, 3, 32, 32)
        assert one.condition.known.shape == (1, 6, 96, 32)
        assert one.condition.shots.tolist() == [3]
        assert one.condition.video.tolist() == [0]
        assert one.condition.maps.any()
