"""Street scenes: pictures and label maps → an avatar → a video of other label maps."""

from __future__ import annotations

import importlib
import json
import shutil
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from retarget import DriveOptions, device, drive, forecast, metrics, personalize, streets, weights
from retarget.arguments import config
from retarget.avatar import Avatar
from retarget.cli import main
from retarget.errors import AvatarError, InputError, UsageError
from retarget.evaluate import EvaluateOptions, evaluate, split, split_maps
from retarget.labels import coloured, read_map
from retarget.models import build
from retarget.personalize import PersonalizeOptions, gather
from retarget.pose import save_motion
from retarget.references import arrays, check_stored, packed, references, unpacked
from retarget.training.train import TrainOptions, begin
from retarget.tuning import start
from retarget.types import Silent
from retarget.video import open_reader, open_writer, probe

SIZE = (96, 64)
TINY = {
    "conditioning": "labels", "classes": 19, "width": 8, "widest": 16, "levels": 3, "adaptive": 3, "grid": 4, "keys": 1,
    "flow_width": 8, "flow_downs": 2, "flow_blocks": 1, "critic": 8, "example": False,
}  # fmt: skip
COLOURS = {0: (90, 88, 92), 2: (160, 110, 80), 8: (60, 120, 50), 10: (150, 190, 230), 13: (190, 30, 30)}
CPU = {"device": "cpu", "precision": "fp32"}


def scene(t: int) -> tuple[np.ndarray, np.ndarray]:
    """A street at the time `t`, (64, 96, 3), and its label map: houses pass, two cars come towards each other."""
    width, height = SIZE
    labels = np.full((height, width), 10, np.uint8)
    labels[20:40] = 8
    for i in range(6):
        x = 24 * i - 2 * t
        labels[8 + 4 * (i % 3) : 40, max(0, x) : max(0, x + 15)] = 2
    labels[40:] = 0
    labels[36:48, 3 * t % 110 : 3 * t % 110 + 20] = 13
    labels[46:60, max(0, 80 - 2 * t) : max(0, 80 - 2 * t) + 24] = 13
    picture = np.zeros((height, width, 3), np.uint8)
    for number, colour in COLOURS.items():
        picture[labels == number] = colour
    light = np.linspace(1.1, 0.8, height)[:, None, None]
    return np.clip(picture * light, 0, 255).astype(np.uint8), labels


def write(folder: Path, times: range, *, pictures: bool = True) -> Path:
    """`pictures/`, if wanted, and `maps/` of the scene at some times; their numbers have no leading zeros."""
    for name in ("pictures", "maps") if pictures else ("maps",):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for t in times:
            picture, labels = scene(t)
            image = picture[..., ::-1] if name == "pictures" else labels
            cv2.imwrite(str(folder / name / f"street_{t}.png"), image)
    return folder


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve pictures and their maps."""
    return write(tmp_path_factory.mktemp("street"), range(0, 36, 3))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny network for label maps, that know nothing."""
    torch.manual_seed(1)
    model = build("few-shot-vid2vid", TINY)
    torch.nn.init.normal_(model.synthesis.last.weight, 0, 0.1)  # noise, which every step makes better
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save_file(path, model.state_dict(), "few-shot-vid2vid", asdict(model.config))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def avatars(street: Path, untrained: Path, home: Path) -> dict[int, Avatar]:
    """Avatars of four pictures of the street: not fine-tuned, and for 40 steps."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RETARGET_HOME", str(home))
        for steps in (0, 40):
            made[steps] = personalize(
                street / "pictures", labels=str(street / "maps"), model="few-shot-vid2vid", frames=4, steps=steps,
                name=f"street-{steps}", init=str(untrained), size=64, **CPU,
            )  # fmt: skip
    return made


def read(path: Path) -> np.ndarray:
    with open_reader(path) as frames:
        return np.stack(list(frames))


# ------------------------------------------------------------------------------------------------ from end to end


def test_a_street_drives_on(avatars, tmp_path):
    """Fine-tuning on four pictures brings what is drawn of later label maps nearer to the truth."""
    write(tmp_path, range(37, 45), pictures=False)
    truth = np.stack([scene(t)[0] for t in range(37, 45)]).astype(float)
    errors = {}
    for steps, avatar in avatars.items():
        out = drive(avatar, tmp_path / "maps", tmp_path / f"{steps}.mp4", **CPU)
        info = probe(out)
        assert (info.frames, info.fps, (info.width, info.height)) == (8, 25, SIZE)
        errors[steps] = np.abs(read(out) - truth).mean()
    assert errors[40] < 0.8 * errors[0]
    quality = avatars[40].meta.quality
    assert quality["fg_psnr"] > quality["fg_psnr_before"]


def test_on_the_command_line(street, untrained, tmp_path, capfd):
    """Both commands, what they expect to take, and mistakes as one sentence each."""
    how = ["--model", "few-shot-vid2vid", "--labels", str(street / "maps"), "--device", "cpu"]
    made = ["personalize", str(street / "pictures"), *how, "--init", str(untrained), "-k", "2", "-t", "0"]
    assert main([*made, "--size", "64", "--name", "here"]) == 0
    maps = write(tmp_path, range(37, 40), pictures=False) / "maps"
    assert main(["drive", "--source", str(maps), "--out", str(tmp_path / "out.mp4"), "--device", "cpu"]) == 0
    assert probe(tmp_path / "out.mp4").frames == 3
    need = forecast.drive(Avatar.load("here"), maps, tmp_path / "out.mp4", DriveOptions(), device.choose("cpu"))
    assert need.stages == {"pose": (0.0, 1.0), "picture": (pytest.approx(3), pytest.approx(0.096 * 0.064))}
    capfd.readouterr()
    assert main([*made[:2], "--labels", str(street / "maps")]) == 2
    assert "draws people, and no label maps" in capfd.readouterr().err
    assert main([*made[:2], *how[:2], "--labels", str(tmp_path / "nowhere")]) == 3
    assert main([*made[:2], *how, "--init", str(untrained), "--crop", "head"]) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_an_interrupted_personalisation_goes_on(avatars, street, untrained, tmp_path):
    """Killed while it was fine-tuning: the references are not gathered again, and the avatar is the same."""

    class Impatient(Silent):
        def __init__(self, patience: int) -> None:
            self.patience, self.notes = patience, list[str]()

        def note(self, message: str) -> None:
            self.notes.append(message)

        def advance(self, steps: int = 1, **figures: float) -> None:
            self.patience -= "loss" in figures
            if self.patience == 0:
                raise KeyboardInterrupt

    def go(progress: Impatient) -> Avatar:
        return personalize(
            street / "pictures", labels=str(street / "maps"), model="few-shot-vid2vid", frames=4, steps=40,
            name="again", init=str(untrained), size=64, progress=progress, **CPU,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        go(Impatient(2))
    second = Impatient(-1)
    again = go(second)
    assert "Going on with the references that an interrupted run found." in second.notes
    assert again.meta.quality == avatars[40].meta.quality
    for name, tensor in avatars[40].state().items():
        assert np.array_equal(again.state()[name], tensor), name


def test_what_is_kept_of_a_street(avatars, street):
    avatar = avatars[40]
    stored = avatar.tensors()
    check_stored(stored, SIZE, 4)
    assert not any(key.startswith(("pose_", "track_")) for key in stored)
    for n, k in enumerate(avatar.meta.extra["picked"]):
        picture, labels = scene(3 * k)
        assert np.array_equal(stored["frames"][n], picture)
        assert np.array_equal(stored["labels"][n], labels)
    assert avatar.meta.options["labels"] == "maps"
    assert avatar.meta.config["conditioning"] == "labels"
    assert cv2.imread(str(avatar.preview)).shape[0] == 3 * 320
    for broken in (
        {"labels": stored["labels"].astype(np.int32)}, {"labels": stored["labels"][:, 1:]},
        {"labels": np.full_like(stored["labels"], 200)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="labels"):
            check_stored(stored | broken, SIZE, 4)
    half = references(stored, [2, 0], (48, 32))
    assert half.labels.classes.shape == (1, 2, 32, 48)
    assert half.rgb.shape == (1, 2, 3, 32, 48)
    assert half.poses.body.isnan().all()


def test_an_interrupted_drive_goes_on(avatars, tmp_path, monkeypatch):
    """Killed in its second segment, and run again: the same video to the bit, and only the rest is drawn."""
    module, segments = importlib.import_module("retarget.rendering"), importlib.import_module("retarget.video.segments")
    monkeypatch.setattr(segments, "SEGMENT", 4)
    write(tmp_path, range(37, 46), pictures=False)
    whole = read(drive(avatars[40], tmp_path / "maps", tmp_path / "whole.mp4", **CPU))
    drawn: list[int] = []
    plain = module._drawn

    def counted(*arguments):
        if len(drawn) == 6:
            drawn.append(-1)
            raise KeyboardInterrupt
        drawn.append(1)
        return plain(*arguments)

    monkeypatch.setattr(module, "_drawn", counted)
    with pytest.raises(KeyboardInterrupt):
        drive(avatars[40], tmp_path / "maps", tmp_path / "out.mp4", **CPU)
    assert not (tmp_path / "out.mp4").exists()
    drive(avatars[40], tmp_path / "maps", tmp_path / "out.mp4", **CPU)
    assert len(drawn) == 7 + 5
    assert np.array_equal(read(tmp_path / "out.mp4"), whole)


def test_a_video_of_coloured_maps_beside_what_it_drives(avatars, tmp_path):
    """Compressed colours say nearly the same as numbers do."""
    write(tmp_path, range(37, 43), pictures=False)
    with open_writer(tmp_path / "maps.mp4", (192, 128), Fraction(30), crf=10) as film:
        for t in range(37, 43):
            film(cv2.resize(coloured(scene(t)[1]), (192, 128), interpolation=cv2.INTER_NEAREST))
    out = {}
    for source in ("maps", "maps.mp4"):
        out[source] = read(drive(avatars[40], tmp_path / source, tmp_path / f"{source}.out.mp4", compare=True, **CPU))
        assert out[source].shape == (6, 64, 192, 3)
    assert probe(tmp_path / "maps.mp4.out.mp4").fps == 30
    assert np.abs(out["maps"].astype(int) - out["maps.mp4"]).mean() < 6
    shown = coloured(scene(40)[1]).astype(int)
    assert np.abs(out["maps"][3, :, :96] - shown).mean() < 8


def test_drives_that_cannot_be(avatars, tmp_path, puppet, short_me, monkeypatch):
    street, out = avatars[0], tmp_path / "out.mp4"
    with monkeypatch.context() as patch:
        patch.setattr(
            importlib.import_module("retarget.personalize"), "gather", lambda *_: puppet.gathered(puppet.body())
        )
        (tmp_path / "me.mp4").write_bytes(b"not looked into")
        somebody = personalize(tmp_path / "me.mp4", steps=0, init="random", **CPU)
    maps = write(tmp_path, range(3), pictures=False) / "maps"
    motion = save_motion(puppet.track(puppet.body(), puppet.body()), tmp_path / "dance.npz")
    with pytest.raises(UsageError, match=r"dance\.npz holds the motion of a person") as e:
        drive(street, motion, out, **CPU)
    assert "label maps" in e.value.remedy
    with pytest.raises(InputError, match="is no label map"):
        drive(street, short_me, out, size=64, **CPU)
    with pytest.raises(UsageError, match="--background #00ff00 needs a person"):
        drive(street, maps, out, background="#00ff00", **CPU)
    with pytest.raises(InputError, match="maps is a folder, and the avatar me is of a person"):
        drive(somebody, maps, out, **CPU)
    cv2.imwrite(str(maps / "street_2.png"), np.full((64, 96), 30, np.uint8))
    with pytest.raises(InputError, match=r"street_2\.png holds class 30, and the avatar knows 19"):
        drive(street, maps, out, **CPU)
    for file in maps.iterdir():
        cv2.imwrite(str(file), np.zeros((64, 64), np.uint8))
    with pytest.raises(InputError, match="have 64 x 64 pixels, and the avatar's picture 96 x 64"):
        drive(street, maps, out, **CPU)
    assert not out.exists()


def test_a_damaged_avatar(avatars, tmp_path):
    folder = tmp_path / "avatar"
    shutil.copytree(avatars[0].path, folder)
    meta = json.loads((folder / "avatar.json").read_text())
    meta["config"]["conditioning"] = "pose"
    (folder / "avatar.json").write_text(json.dumps(meta))
    with pytest.raises(AvatarError, match="of different kinds"):
        drive(folder, write(tmp_path, range(2), pictures=False) / "maps", tmp_path / "out.mp4", **CPU)


# ------------------------------------------------------------------------------------------------ measuring


def test_a_street_is_measured(untrained, tmp_path, monkeypatch, capfd):
    """A video and a folder of pictures, whose maps are found by their names, and one scene without any."""
    times = range(0, 36, 3)
    for name in ("a", "b", "c"):
        write(tmp_path / name, times)
    for kind in ("pictures", "maps"):
        (tmp_path / kind).mkdir()
        for name in ("a", "b", "c"):
            (tmp_path / name / kind).rename(tmp_path / kind / name)
    (tmp_path / "maps" / "c").rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "pictures" / "a")
    with open_writer(tmp_path / "pictures" / "a.mp4", SIZE, Fraction(12), crf=4) as film:
        for t in times:
            film(scene(t)[0])
    monkeypatch.setattr(metrics._Judge, "__call__", lambda *_: pytest.fail("a person is looked for"))
    monkeypatch.chdir(tmp_path)
    words = f"evaluate pictures --labels maps --model few-shot-vid2vid --init {untrained} --frames 1,2 --steps 1"
    words += " --split 0.75 --size 64 --device cpu --precision fp32 --out report"
    assert main(words.split()) == 1
    report = json.loads(Path("report/report.json").read_text())
    (missing,) = report["failures"]
    assert (missing["clip"], missing["error"]) == ("c", "There is no file maps/c.")
    assert [line["clip"] for line in report["clips"]] == ["a", "b"]
    whole = {"psnr", "ssim", "mse", "diff_mse"}
    for line in report["clips"]:
        rows = line["methods"]
        drawn = "few-shot-vid2vid tiny K={} T=1"
        assert list(rows) == [drawn.format(1), "copy K=1", drawn.format(2), "copy K=2"]
        for row in rows.values():
            assert (row["frames_produced"], row["frames_truth"]) == (3, 3)
            assert {key for key in metrics.FIGURES if row[key] is not None} == whole
        known = [times[i] for i in line["references"]]
        assert len(known) == 2
        assert max(known) < times[9]
        errors = []
        for t in times[9:]:
            nearest = max(known, key=lambda k: (scene(k)[1] == scene(t)[1]).mean())
            errors.append(np.square(scene(nearest)[0].astype(float) - scene(t)[0]).mean())
        assert rows["copy K=2"]["mse"] == pytest.approx(np.mean(errors), rel=0.1)
    page = Path("report/report.md").read_text()
    assert "face_ssim" not in page
    assert "Traceback" not in capfd.readouterr().err


def test_maps_are_split_without_loss(tmp_path):
    """As large as the videos that their pictures become, of which both sides are even."""
    for name, which in (("pictures", 0), ("maps", 1)):
        (tmp_path / name).mkdir()
        for t in range(4):
            cv2.imwrite(str(tmp_path / name / f"{t}.png"), scene(t)[which][:-1, :-1])
    film, maps = streets.opened(list((tmp_path / "pictures").iterdir()), tmp_path / "maps")
    me, truth = split(film, tmp_path, 0.7, Silent())
    first, rest = split_maps(maps, tmp_path, 0.7)
    assert [len(streets.opened([part], beside)[0]) for part, beside in ((me, first), (truth, rest))] == [3, 1]
    for t, path in enumerate([*sorted(first.iterdir()), *sorted(rest.iterdir())]):
        labels = read_map(path)
        assert labels.shape == (64, 96)
        assert np.array_equal(labels[:-1, :-1], scene(t)[1][:-1, :-1])
        assert np.array_equal(labels[:-1, -1], labels[:-1, -2])


def test_what_measuring_takes(street):
    """No poses, and no `warp`."""
    options = EvaluateOptions(
        frames=(1, 2), steps=(0, 3), split=0.75, size=64, model="few-shot-vid2vid", labels=(str(street / "maps"),)
    )
    need = forecast.evaluate([street / "pictures"], options, device.choose("cpu"))
    assert need.stages == {
        "pose": (0.0, 1.0), "picture": (pytest.approx(12), pytest.approx(0.096 * 0.064)), "step": (6, 1.0)
    }  # fmt: skip


def test_scenes_that_cannot_be_measured(street, untrained, tmp_path):
    pictures, maps = street / "pictures", str(street / "maps")
    how = {"model": "few-shot-vid2vid", "init": str(untrained), **CPU}
    with pytest.raises(UsageError, match="The model dance draws people, and no label maps"):
        evaluate([pictures], labels=maps)
    with pytest.raises(InputError, match="no file or folder nowhere"):
        evaluate([pictures], labels="nowhere", **how)
    with pytest.raises(UsageError, match=r"--labels \(2\) and of scenes or folders of them \(1\) differ"):
        evaluate([pictures], labels=(maps, maps), **how)
    few = write(tmp_path, range(3))
    with pytest.raises(InputError, match="pictures has 12 pictures, and maps has 3 label maps") as e:
        evaluate([pictures], labels=str(few / "maps"), **how)
    assert "one map per picture" in e.value.remedy
    one = write(tmp_path / "one", range(1))
    with pytest.raises(UsageError, match=r"street_0\.png has a single frame"):
        evaluate([one / "pictures"], labels=str(one / "maps"), **how)


# ------------------------------------------------------------------------------------------------ references


def gathered(pictures, maps, **changes):
    paths = [pictures] if pictures.is_file() else sorted(pictures.iterdir())
    options = PersonalizeOptions(model="few-shot-vid2vid", labels=str(maps), **{"frames": 3, "size": 64} | changes)
    return gather(paths, options, Silent())


def test_pictures_belong_to_maps_by_their_names(street, tmp_path):
    found = gathered(street / "pictures", street / "maps", pick=(1, 4, 11))
    assert found.picked == (1, 4, 11)
    for n, k in enumerate(found.picked):
        assert np.array_equal(found.pictures[n], scene(3 * k)[0])
        assert np.array_equal(found.labels[n], scene(3 * k)[1])
    assert found.mattes.min() == 1
    again = unpacked(packed(found))
    assert np.array_equal(again.labels, found.labels)
    assert arrays(again).keys() == arrays(found).keys()
    small = gathered(street / "pictures", street / "maps", size=32)
    assert small.labels.shape == (3, 32, 48)
    assert set(np.unique(small.labels)) <= COLOURS.keys()


def test_a_video_with_a_video_of_maps(tmp_path):
    for name, which in (("street.mp4", 0), ("maps.mp4", 1)):
        with open_writer(tmp_path / name, SIZE, Fraction(12), crf=4) as film:
            for t in range(6):
                film(scene(3 * t)[0] if which == 0 else coloured(scene(3 * t)[1]))
    assert streets.class_count(tmp_path / "maps.mp4") == 19
    found = gathered(tmp_path / "street.mp4", tmp_path / "maps.mp4")
    assert (len(found.frames), found.fps, found.size) == (3, 12, SIZE)
    for n, k in enumerate(found.picked):
        picture, labels = scene(3 * k)
        assert np.abs(found.pictures[n].astype(int) - picture).mean() < 6
        assert (found.labels[n] == labels).mean() > 0.97


def test_the_most_different_maps_are_chosen():
    looks = np.zeros((9, 8, 8), np.uint8)
    looks[3:5, :4] = 1
    looks[7] = 2
    assert streets.choose(looks, 3)[0] in (0, 1, 2, 5, 6, 8)
    assert set(looks[streets.choose(looks, 3), 0, 0]) == {0, 1, 2}
    assert len(streets.choose(looks, 20)) == 9


def test_pictures_and_maps_that_do_not_fit(street, tmp_path):
    write(tmp_path, range(3))
    with pytest.raises(InputError, match="pictures has 3 pictures, and maps has 12 label maps") as e:
        gathered(tmp_path / "pictures", street / "maps")
    assert "one map per picture" in e.value.remedy
    with pytest.raises(UsageError, match="There is no picture 3"):
        gathered(tmp_path / "pictures", tmp_path / "maps", pick=(0, 3))
    cv2.imwrite(str(tmp_path / "pictures" / "street_2.png"), np.zeros((32, 48, 3), np.uint8))
    with pytest.raises(InputError, match=r"street_2\.png is not as large as street_0\.png"):
        gathered(tmp_path / "pictures", tmp_path / "maps")
    for file in (tmp_path / "maps").iterdir():
        cv2.imwrite(str(file), np.zeros((32, 48), np.uint8))
    with pytest.raises(InputError, match="have 96 x 64 pixels, and the label maps 48 x 32"):
        gathered(tmp_path / "pictures", tmp_path / "maps")


def test_more_classes_than_the_palette_has(street, untrained, tmp_path):
    assert streets.class_count(street / "maps") == 19
    write(tmp_path, range(2))
    cv2.imwrite(str(tmp_path / "maps" / "street_1.png"), np.full((64, 96), 25, np.uint8))
    assert streets.class_count(tmp_path / "maps", (0, 1, 99)) == 26
    _, digest, config = start("few-shot-vid2vid", "random", Silent(), "small", "scene", 26)
    assert (config["conditioning"], config["classes"], digest) == ("labels", 26, None)
    with pytest.raises(UsageError, match="knows 19 classes, and the label maps have 26"):
        start("few-shot-vid2vid", str(untrained), Silent(), "small", "scene", 26)


def test_shipped_weights_are_taken_unless_the_maps_have_more_classes():
    class Told(Silent):
        def warn(self, message: str) -> None:
            warned.append(message)

    warned: list[str] = []
    for init, entry in (("meta", "few-shot-vid2vid-scene"), ("pretrain", "few-shot-vid2vid-scene-pretrain")):
        _, digest, config = start("few-shot-vid2vid", init, Told(), "small", "scene", 19)
        assert (digest, config["classes"], config["conditioning"]) == (weights.entry(entry).sha256, 19, "labels")
    assert not warned
    _, digest, config = start("few-shot-vid2vid", "meta", Told(), "small", "scene", 20)
    assert (digest, config["classes"], config["conditioning"]) == (None, 20, "labels")
    assert len(warned) == 1
    assert "for label maps of 20 classes are shipped" in warned[0]


def test_options_that_do_not_go_together(street, untrained):
    pictures, maps = street / "pictures", str(street / "maps")
    with pytest.raises(UsageError, match="The model dance draws people, and no label maps") as e:
        personalize(pictures, labels=maps)
    assert "--model few-shot-vid2vid" in e.value.remedy
    scenes = {"model": "few-shot-vid2vid", "labels": maps}
    for wrong in ({"crop": "head"}, {"person": "3,4"}, {"background": "frames"}):
        with pytest.raises(UsageError, match="--labels says that there is none"):
            personalize(pictures, **scenes, **wrong)
    with pytest.raises(InputError, match="no file or folder nowhere"):
        personalize(pictures, **scenes | {"labels": "nowhere"})
    with pytest.raises(UsageError, match="holds weights of few-shot-vid2vid for label maps, not for whole people") as e:
        start("few-shot-vid2vid", str(untrained), Silent())
    assert "--labels" in e.value.remedy


def test_weights_of_another_subject_are_not_taken(monkeypatch):
    """What is shipped for whole people is no start for label maps or faces."""
    asked: list[str] = []
    monkeypatch.setattr(weights, "known", lambda name: bool(asked.append(name)))
    for subject, drawn in (("body", "pose"), ("head", "face"), ("scene", "labels")):
        _, _, config = start("few-shot-vid2vid", "meta", Silent(), "small", subject)
        assert config["conditioning"] == drawn
    start("dance", "pretrain", Silent(), "small", "head")
    assert asked == ["few-shot-vid2vid", "few-shot-vid2vid-head", "few-shot-vid2vid-scene", "dance-pretrain"]


def test_what_is_trained_on():
    for drawn, subject in (("face", "head"), ("labels", "scene")):
        known = config([f"conditioning={drawn}", "width=8"])
        assert known == {"conditioning": drawn, "width": 8}
        assert begin(TrainOptions(model="few-shot-vid2vid", config=known))[0].subject == subject
    with pytest.raises(UsageError, match="conditioning"):
        begin(TrainOptions(model="few-shot-vid2vid", config={"conditioning": "text"}))
    with pytest.raises(UsageError, match="conditioning"):
        begin(TrainOptions(model="dance", config={"conditioning": "face"}))
