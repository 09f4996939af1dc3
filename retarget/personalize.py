"""`personalize`: a few pictures of a person → an avatar.

video or photos ─ references (K frames, poses, mattes, plate) ─ T steps of fine-tuning ─ avatar

Of a scene: pictures and label maps in the place of a person and poses (`streets`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, UsageError
from .tuning import FITTING, Trials, fine_tune, shown, start
from .types import Progress, Silent

if TYPE_CHECKING:
    from .avatar import Avatar
    from .device import Compute
    from .references import Gathered

INITS = ("meta", "pretrain", "random")
SIDES = (256, 192, 128)
"""Short side of the pictures that fine-tuning works on: the first one that memory suffices for."""
PATIENCE = 10.0
"""Seconds to wait for another process that makes the same avatar."""
REFERENCES = "references.safetensors"
"""What is kept of an unfinished avatar, beside `FITTING`."""


@dataclass(frozen=True)
class PersonalizeOptions:
    """How to make an avatar.

    frames      K: how many pictures of the person the avatar is made of.
    steps       T: fine-tuning steps; 0 skips it.
    name        of the avatar; None takes the first input's.
    model       which system of `models.MODELS`.
    preset      its sizes: `small`, or `paper`, of which no weights are shipped.
    init        the weights that fine-tuning starts from: `meta` (meta-learned), `pretrain`, `random` (nothing learned),
                or a .safetensors file made by `retarget train`. Where a model has no weights of that kind shipped, it
                starts from nothing learned.
    size        short side of the avatar's picture in pixels; never enlarged.
    pick        frames (or photos) to use, counted from 0, instead of choosing.
    person      `largest`, or `X,Y`: the person at this pixel of the first frame.
    background  `video`: the empty scene from the whole clip; `frames`: from the K frames alone.
    crop        `head`: squares around the head; `none`: whole pictures; `auto`: what the model was made for.
                `few-shot-vid2vid` is drawn from the face then, and from the whole pose otherwise.
    labels      a folder or video of label maps, one for each picture of a scene; None: the pictures show a person.
    device, precision  see `device.choose`.
    seed        of everything random.
    restart     start over, whatever an interrupted run left.
    """

    frames: int = 5
    steps: int = 200
    name: str | None = None
    model: str = "dance"
    preset: str = "small"
    init: str = "meta"
    size: int = 512
    pick: tuple[int, ...] = ()
    person: str = "largest"
    background: str = "video"
    crop: str = "auto"
    labels: str | None = None
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    restart: bool = False


def personalize(
    inputs: str | Path | Sequence[str | Path],
    options: PersonalizeOptions | None = None,
    *,
    progress: Progress | None = None,
    gathered: Gathered | None = None,
    trials: Trials | None = None,
    **changes: Any,
) -> Avatar:
    """Make an avatar of the person in one video, or in photos, or in a folder of photos; or of a scene with label maps.

    Whatever interrupts it, the same call goes on where it stopped, and ends with the same avatar.

    Args:
        inputs: one video, photos, or a folder of photos.
        options: how; keyword arguments named like its fields change single ones.
        progress: is told what happens.
        gathered: the references, if they were gathered before, by `gather` with these options: several avatars of the
            same ones need that only once.
        trials: what several avatars that differ only in `steps` share. They get no preview.

    Returns:
        The avatar, saved under its name in the user's data folder (`RETARGET_HOME` overrides); one of the same name is
        replaced, only when the new one is complete.

    Raises:
        RetargetError: one of the tree in `errors`.
    """
    options = changed(options or PersonalizeOptions(), changes)
    progress = progress or Silent()
    check(options)
    paths = expand([inputs] if isinstance(inputs, str | Path) else list(inputs))

    import torch

    from . import avatar as store
    from . import device, folders
    from .preview import preview
    from .references import arrays
    from .streets import class_count

    compute = device.choose(options.device, options.precision, progress=progress)
    classes = 0 if options.labels is None else class_count(Path(options.labels), options.pick)
    name = store.check_name(options.name) if options.name else store.name_for(_origin(inputs, paths))
    # One seed for all that is random, and the caller's random numbers stay as they are.
    with torch.random.fork_rng([compute.device] if compute.device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        model, weights, config = start(options.model, options.init, progress, options.preset, shown(options), classes)
        what = {"name": name, "start": [weights, config]} | deciding(paths, options, compute)
        with folders.work("personalize", what, restart=options.restart, patience=PATIENCE) as unfinished:
            notes: list[str] = []
            gathered = gathered or device.Ladder(
                "gathering the references", {"the full size": options.size, "half of it": max(64, options.size // 2)},
                progress, notes,
            ).run(lambda size: gathered_in(unfinished, paths, replace(options, size=size), progress))  # fmt: skip
            stored = arrays(gathered)
            learnt = bool(options.steps or weights)
            begun = {k: v.clone() for k, v in model.state_dict().items()}

            def tuned(side: int) -> dict[str, float]:
                model.load_state_dict(begun)
                known = Trials() if trials is None else trials
                return fine_tune(model, stored, gathered, options, compute, progress, unfinished, side, notes, known)

            tuning = device.Ladder("fine-tuning", {f"pictures of {n} pixels": n for n in SIDES}, progress, notes)
            quality = tuning.run(tuned) if learnt else {}
            progress.stage("Saving the avatar", None)
            drawing = device.Ladder("drawing the preview", {"the full size": 1, "half the size": 2}, progress, notes)
            picture = (
                drawing.run(lambda shrink: preview(gathered, stored, model, compute, shrink))
                if trials is None
                else gathered.plate.image
            )
            meta = store.AvatarMeta(
                name=name,
                model=options.model,
                size=gathered.size,
                frames=len(gathered.frames),
                config=config,
                fps=gathered.fps,
                options=asdict(options)
                | {"inputs": [p.name for p in paths], "labels": options.labels and Path(options.labels).name},
                weights=weights,
                quality=quality,
                extra={
                    "picked": list(gathered.picked),
                    "camera_motion": gathered.plate.motion,
                    "colour": gathered.colour,
                    "notes": notes,
                },
            )
            state = {k: v.detach().cpu() for k, v in model.state_dict().items()} if learnt else {}
            return store.save_avatar(name, meta, stored, state, picture)


def changed(options: Any, changes: dict[str, Any]) -> Any:
    """`options` with single fields replaced. Raises UsageError for a name it does not have."""
    try:
        return replace(options, **changes)
    except TypeError:
        unknown = sorted(set(changes) - set(asdict(options)))
        raise UsageError(f"There is no option “{unknown[0]}”.", f"There are: {', '.join(asdict(options))}.") from None


def check(options: PersonalizeOptions) -> None:
    """Raises UsageError for an option that cannot be."""
    if options.frames < 1:
        raise UsageError(f"An avatar needs at least one frame, not {options.frames}.", "Use --frames 5.")
    if options.steps < 0:
        raise UsageError(f"Fine-tuning cannot take {options.steps} steps.", "Use --steps 0 or more.")
    if options.init not in INITS and not options.init.endswith(".safetensors"):
        raise UsageError(
            f"There is no start “{options.init}”.", f"Use --init {', '.join(INITS)} or a .safetensors file."
        )
    if options.size < 64:
        raise UsageError(f"A picture of {options.size} pixels is too small.", "Use --size 64 or more.")
    if options.background not in ("video", "frames"):
        raise UsageError(f"There is no background “{options.background}” here.", "Use --background video or frames.")
    if options.crop not in ("auto", "head", "none"):
        raise UsageError(f"There is no crop “{options.crop}”.", "Use --crop auto, head or none.")
    if len(set(options.pick)) != len(options.pick):
        raise UsageError("--pick names a frame twice.", "Name each frame once.")
    if options.labels is not None:
        _check_labels(options)


def _check_labels(options: PersonalizeOptions) -> None:
    from .models import MODELS

    if options.model in MODELS and "scene" not in MODELS[options.model]().SUBJECTS:
        able = [name for name, find in MODELS.items() if "scene" in find().SUBJECTS]
        raise UsageError(
            f"The model {options.model} draws people, and no label maps.", f"Use --model {' or '.join(able)}."
        )
    if not Path(options.labels or "").exists():
        raise InputError(f"There is no file or folder {options.labels}.", "Give a folder or a video of label maps.")
    for name, plain in (("crop", "auto"), ("person", "largest"), ("background", "video")):
        if getattr(options, name) not in (plain, "none"):
            raise UsageError(f"--{name} is for people, and --labels says that there is none.", "Leave one of them out.")


def expand(inputs: Sequence[str | Path]) -> list[Path]:
    """The files that inputs mean: folders are replaced by the pictures in them, in order of their names."""
    from .video import pictures_in

    if not inputs:
        raise UsageError("Nothing to make an avatar of.", "Give a video or photos.")
    out: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            pictures = pictures_in(path)
            if not pictures:
                raise InputError(f"The folder {path} holds no pictures.", "Put photos (jpg, png, webp) into it.")
            out += pictures
        elif not path.exists():
            raise InputError(f"There is no file {path}.", "Check the name.")
        else:
            out.append(path)
    return out


def _origin(inputs: str | Path | Sequence[str | Path], paths: Sequence[Path]) -> Path:
    first = Path(inputs) if isinstance(inputs, str | Path) else Path(inputs[0])
    return first if first.is_dir() else paths[0]


def gather(paths: Sequence[Path], options: PersonalizeOptions, progress: Progress, *, cut: bool = True) -> Gathered:
    """The references out of the input files; `cut`: heads are still to be cut out of them.

    Raises UsageError for a mixture of videos and photos.
    """
    from .models import MODELS
    from .video import is_image

    photos = [is_image(p) for p in paths]
    if len(paths) > 1 and not all(photos):
        raise UsageError(
            f"{len(paths)} files were given, and {paths[photos.index(False)].name} is not a photo.",
            "Give one video, or photos only.",
        )
    subject = shown(options)
    if subject == "scene":
        from . import streets

        return streets.gathered(
            paths, Path(options.labels or ""), count=options.frames, size=options.size, pick=options.pick,
            progress=progress,
        )  # fmt: skip
    if subject == "head" and cut:
        from . import portraits

        with tempfile.TemporaryDirectory(prefix="retarget-") as folder:
            portrait = portraits.cropped(
                paths, Path(folder), size=options.size, person=options.person, whole=bool(options.pick),
                restart=options.restart, progress=progress,
            )  # fmt: skip
            return portrait.of(_person(portrait.paths, replace(options, person="largest"), False, progress))
    return _person(paths, options, MODELS[options.model]().subject == "body", progress)


def _person(paths: Sequence[Path], options: PersonalizeOptions, whole: bool, progress: Progress) -> Gathered:
    """`whole`: whether whole people are drawn, who miss their feet where no picture shows them; else faces are, whose
    irises are looked for."""
    from .gathering import from_photos, from_video
    from .video import is_image

    if all(map(is_image, paths)):
        return from_photos(
            paths, count=options.frames, size=options.size, pick=options.pick, person=options.person, feet=whole,
            irises=not whole, progress=progress,
        )  # fmt: skip
    return from_video(
        paths[0], count=len(options.pick) or options.frames, size=options.size, pick=options.pick,
        person=options.person, plate_from=options.background, feet=whole, irises=not whole, restart=options.restart,
        progress=progress,
    )  # fmt: skip


def deciding(paths: Sequence[Path], options: PersonalizeOptions, compute: Compute) -> dict[str, Any]:
    """What decides the avatar, beside the weights that it starts from: what was made of anything else is not used.

    Raises InputError for a file that cannot be read.
    """
    from importlib.metadata import version

    from . import __version__, weights
    from .labels import content
    from .pose.cache import key

    libraries = ("torch", "numpy", "mediapipe", "opencv-python")
    others = ("name", "init", "device", "precision", "restart", "labels")
    return {
        "inputs": [key(path) for path in paths],
        "labels": options.labels and content(Path(options.labels)),
        "options": {k: v for k, v in asdict(options).items() if k not in others},
        "compute": compute.describe(),
        "vgg19": weights.known("vgg19") and weights.at_hand("vgg19") is not None,
        "versions": {"retarget": __version__} | {name: version(name) for name in libraries},
    }


def steps_before(paths: Sequence[Path], options: PersonalizeOptions, compute: Compute) -> int:
    """How many steps of fine-tuning an interrupted run of the same has left. For a look only."""
    from . import folders
    from .checkpoint import facts

    folder = folders.unfinished("personalize", deciding(paths, options, compute))
    done = [] if folder is None else [facts(folder / FITTING.format(side)).get("step", 0) for side in SIDES]
    return max(done, default=0)


def gathered_in(folder: Path, paths: Sequence[Path], options: PersonalizeOptions, progress: Progress) -> Gathered:
    """The references: those that an interrupted run left in `folder`; else they are gathered, and kept there."""
    from . import checkpoint
    from .references import packed, unpacked

    file = folder / REFERENCES
    with suppress(ValueError, LookupError, TypeError):  # damaged: they are gathered once more
        if (kept := checkpoint.load(file)) is not None:
            gathered = unpacked(kept)
            progress.note("Going on with the references that an interrupted run found.")
            return gathered
    gathered = gather(paths, options, progress)
    checkpoint.save(file, packed(gathered))
    return gathered
