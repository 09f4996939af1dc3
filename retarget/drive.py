"""`drive`: an avatar and a driving video → a video of the avatar's person doing what the driver does.

    source ─ poses (cached) ─ gaps filled, smoothed, fitted to the avatar's body ─ pose maps ─ model ─ video, sound

Two passes over the source: the first estimates the poses, the second renders as a stream, so that memory does not grow
with the length of the video. Both keep what they have finished: whatever ends a run, the same command goes on there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError, UsageError
from .types import Image, Progress, Silent

if TYPE_CHECKING:
    from .avatar import Avatar
    from .device import Compute
    from .faces import Talk
    from .labels import LabelMaps
    from .models.base import Identity, RetargetModel
    from .motion import Movement
    from .video import VideoInfo

PLATE_FRAMES = 40


@dataclass(frozen=True)
class DriveOptions:
    """How to drive an avatar.

    align       `auto` fits the motion to the avatar's body and place; `none` draws each pose where it stands in the
                source's picture, scaled to the avatar's.
    smooth      of the motion, 0 (not at all) to 1.
    background  `plate` (the avatar's own scene), `source` (the driver's scene, without the driver), `#rrggbb`, the
                name of a picture or video, or `transparent`.
    audio       whether the source's sound is taken along.
    compare     source and result side by side.
    start, end  piece of the source, in seconds; None: to the end.
    size        short side of the result in pixels; None: as the avatar's picture.
    watermark   write “synthetic” into the picture.
    output_smooth  of the result's pictures over time, 0 to 1: calms slow flicker.
    person      `largest`, or `X,Y`: the person at this pixel of the first frame.
    paste_back  of a head, its square: back into the photo, or the video's frame, that it was cut out of.
    device, precision  see `device.choose`.
    restart     do not go on with an interrupted run.
    """

    align: str = "auto"
    smooth: float = 0.3
    background: str = "plate"
    audio: bool = True
    compare: bool = False
    start: float = 0.0
    end: float | None = None
    size: int | None = None
    watermark: bool = False
    output_smooth: float = 0.0
    person: str = "largest"
    paste_back: bool = False
    device: str = "auto"
    precision: str = "auto"
    restart: bool = False


def drive(
    avatar: Avatar | str | Path | None,
    source: str | Path,
    out: str | Path,
    options: DriveOptions | None = None,
    *,
    progress: Progress | None = None,
    **changes: Any,
) -> Path:
    """Make a video of the avatar's person doing what the person in `source` does.

    Args:
        avatar: an avatar, its name, its folder, or None for the one personalised last.
        source: a video, or a motion file (`pose.save_motion`); of a scene, a folder or a video of label maps.
        out: the video to write: .mp4, .mov, .mkv or .webm; it appears under its name when it is complete. A run that
            was interrupted is gone on with by the next one of the same inputs and options.
        options: how; keyword arguments named like its fields change single ones.
        progress: is told what happens.

    Returns:
        `out`: H.264 yuv420p, as many frames at the same rate as the source, its sound in sync.

    Raises:
        RetargetError: one of the tree in `errors`.
    """
    from . import avatar as store
    from . import device
    from .personalize import changed

    options = changed(options or DriveOptions(), changes)
    progress = progress or Silent()
    source, out = Path(source), Path(out)
    check(options, source, out)
    compute = device.choose(options.device, options.precision, progress=progress)
    if avatar is None:
        avatar = store.latest_avatar()
    elif not isinstance(avatar, store.Avatar):
        avatar = store.Avatar.load(avatar)
    avatar = avatar.opened()

    with device.enough_memory("loading the avatar"):
        model, identity, stored = load(avatar, compute)
    if source.is_dir() and model.subject != "scene":
        raise InputError(
            f"{source} is a folder, and the avatar {avatar.name} is of a person.", "Give a video of a person."
        )
    with device.enough_memory("estimating the poses"):
        track = movement(source, avatar, stored, options, progress, model.subject)
    home = None
    if options.paste_back:
        if "home" not in stored:
            raise UsageError(
                f"The avatar {avatar.name} shows whole pictures: nothing was cut out of anything.",
                "Leave --paste-back out, or use an avatar of --crop head.",
            )
        home = Home(stored["home"], stored["box"])
    render(avatar, model, identity, track, source, out, options, compute, progress, home)
    return out


def check(options: DriveOptions, source: Path, out: Path) -> None:
    """Raises UsageError for options that cannot be, StorageError for an `out` that cannot be written."""
    from .video import check_out

    if options.align not in ("auto", "none"):
        raise UsageError(f"There is no alignment “{options.align}”.", "Use --align auto or none.")
    for name in ("smooth", "output_smooth"):
        if not 0 <= getattr(options, name) <= 1:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(options, name)}.", "Give a number from 0 to 1.")
    if options.start < 0 or (options.end is not None and options.end <= options.start):
        raise UsageError(
            f"The piece from {options.start:g} to {options.end:g} s is empty." if options.end is not None
            else f"--start is {options.start:g}.", "Give --start 0 or later and --end after it.",
        )  # fmt: skip
    if options.size is not None and options.size < 64:
        raise UsageError(f"A picture of {options.size} pixels is too small.", "Use --size 64 or more.")
    if options.background == "transparent" and out.suffix.lower() not in (".mov", ".webm"):
        raise UsageError(f"{out.name} cannot hold transparency.", "Use --background transparent with .mov or .webm.")
    if options.background == "transparent" and options.compare:
        raise UsageError("--compare does not go with --background transparent.", "Leave one of them out.")
    if options.background.startswith("#") and not re.fullmatch("#[0-9a-fA-F]{6}", options.background):
        raise UsageError(f"“{options.background}” is no colour.", "Use #rrggbb, for example --background '#00ff00'.")
    for used in (source, Path(options.background)):
        if out.exists() and used.is_file() and out.samefile(used):
            raise UsageError(f"{out} is read and cannot be written at the same time.", "Give --out another name.")
    if source.suffix == ".npz" and (options.compare or options.background == "source"):
        raise UsageError(f"{source.name} holds a motion without pictures.", "Use the video itself as --source.")
    if options.paste_back and (options.background != "plate" or options.size is not None):
        other = "--size" if options.background == "plate" else "--background"
        raise UsageError(f"{other} does not go with --paste-back.", "Leave one of them out.")
    check_out(out, options.background == "transparent")


def load(avatar: Avatar, compute: Compute) -> tuple[RetargetModel, Identity, dict[str, Any]]:
    """The avatar's model with its weights on the device, the encoded person, and the stored arrays."""
    import torch

    from .errors import AvatarError
    from .models import build
    from .references import check_stored, references

    stored = dict(avatar.tensors())
    state = avatar.state()
    try:
        model = build(avatar.model, avatar.meta.config)
        check_stored(stored, avatar.meta.size, avatar.meta.frames)
        if not all(bool(torch.from_numpy(v).isfinite().all()) for v in state.values()):
            raise ValueError("its network holds values that are not numbers")
        if (model.subject == "scene") != ("labels" in stored):
            raise ValueError("its network and its references are of different kinds")
        if state:
            model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
        known = references(stored)
    except (KeyError, RuntimeError, TypeError, ValueError, UsageError) as error:
        raise AvatarError(
            f"The avatar {avatar.path} is damaged: {str(error).splitlines()[0]}.", "Run retarget personalize again."
        ) from error
    model.to(compute.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    with torch.inference_mode():
        identity = model.encode(known.to(compute.device))
    return model, identity, stored


def movement(
    source: Path,
    avatar: Avatar,
    stored: dict[str, Any],
    options: DriveOptions,
    progress: Progress,
    subject: str = "body",
) -> Movement | Talk | LabelMaps:
    """The poses to draw, in pixels of the avatar's picture: one per frame of the source's piece; of a scene, the maps.

    subject: which of the driver's movements are fitted to the avatar, see `RetargetModel.subject`.
    """
    from .faces import Talk
    from .motion import Movement, body_of
    from .pose import Motion, PoseOptions, estimated
    from .references import has_irises, stored_track
    from .streets import driver

    if subject == "scene":
        return driver(source, avatar, options, progress)
    mine = stored_track(stored, "track")

    def motion() -> Motion:
        who = PoseOptions(person=options.person, irises=has_irises(stored))
        return estimated(source, who, start=options.start, end=options.end, restart=options.restart, progress=progress)

    # Nobody but the movement holds the motion: it is let go once what follows from it is known.
    if subject == "head" and options.align == "auto":
        speaker = Movement(motion(), smoothness=options.smooth, body=None, size=None, progress=progress)
        return Talk(speaker, mine, avatar.size, stored_track(stored, "pose").body)
    body = body_of(mine) if options.align == "auto" else None
    return Movement(motion(), smoothness=options.smooth, body=body, size=avatar.size, progress=progress)


def render(
    avatar: Avatar,
    model: RetargetModel,
    identity: Identity,
    track: Movement | Talk | LabelMaps,
    source: Path,
    out: Path,
    options: DriveOptions,
    compute: Compute,
    progress: Progress,
    home: Home | None = None,
) -> None:
    """Draw every pose of the track that no run before has drawn, and write the video."""
    from . import folders
    from .faces import paste
    from .labels import LabelMaps
    from .references import working_size
    from .rendering import Memory, pictures, recalled, remember
    from .video import open_reader, open_segments, probe, timestamps

    info = None if source.suffix == ".npz" or source.is_dir() else probe(source)
    if info is not None and info.damage:
        progress.warn(info.damage)
    size = avatar.size
    if options.size is not None:
        zoom = options.size / min(size)
        size = (2 * round(size[0] * zoom / 2), 2 * round(size[1] * zoom / 2))
    transparent = options.background == "transparent"
    spacing = timestamps(source, options.start, options.end) if info is not None and info.variable else None
    shown = size if home is None else (home.picture.shape[1], home.picture.shape[0])
    if options.compare:
        if isinstance(track, LabelMaps):
            width, height = track.full
        else:
            assert info is not None
            width, height = info.width, info.height
        beside = (working_size(round(width * shown[1] / height), shown[1], 1 << 30)[0], shown[1])
        shown = (beside[0] + shown[0], shown[1])
    what = everything(avatar, source, out, options, compute)
    metadata = tags(avatar)
    with ExitStack() as stack:
        folder = stack.enter_context(folders.work("drive", what, restart=options.restart))
        first, memory, notes = recalled(folder, model, compute)
        segments = stack.enter_context(
            open_segments(
                folder, out, shown, track.fps, first=first,
                audio_from=source if options.audio and info is not None and info.has_audio else None,
                start=options.start, end=options.end, metadata=metadata, alpha=transparent,
                timestamps=spacing,
                colour="bt709" if avatar.meta.extra.get("colour") == "bt709" else "bt601",
            )
        )  # fmt: skip
        if segments.first != first:
            first, memory, notes = 0, Memory(), []
        plates = stack.enter_context(backgrounds(options, source, info, size, progress, first))
        originals: Iterator[Image] | None = None
        if options.compare and isinstance(track, LabelMaps):
            originals = track.pictures(first, beside)
        elif options.compare and first < len(track):
            originals = stack.enter_context(
                open_reader(source, start=options.start, end=options.end, size=beside, skip=first)
            )
        if first:
            progress.note(f"Going on at frame {first} of {len(track)}.")
        progress.stage("Rendering", len(track) - first)
        latest = [memory]
        drawn = pictures(
            model, identity, track, size, compute, plates, transparent, options.output_smooth,
            first=first, latest=latest, progress=progress, notes=notes,
        )  # fmt: skip
        for t, picture in enumerate(drawn, first):
            if home is not None:
                picture = paste(home.picture, picture, home.box)
            if options.watermark:
                picture = marked(picture)
            if originals is not None:
                picture = side_by_side(next(originals), picture)
            segments.write(picture)
            if segments.full:
                segments.cut(partial(remember, folder, t + 1, model, latest[0], tuple(notes)))
            progress.advance()
        if notes:
            metadata["retarget_notes"] = " ".join(notes)


def everything(
    avatar: Avatar, source: Path, out: Path, options: DriveOptions, compute: Compute
) -> dict[str, str | int | float | bool | None]:
    """All that decides the pictures: what was made of anything else cannot be gone on with."""
    person = hashlib.sha256(repr(sorted(avatar.meta.config.items())).encode())
    for group in (avatar.tensors(), avatar.state()):
        for name, array in sorted(group.items()):
            person.update(f"{name} {array.dtype} {array.shape}".encode())
            person.update(array.tobytes())
    return decided(avatar, source, out, options, compute) | {"content": person.hexdigest()}


def decided(
    avatar: Avatar, source: Path, out: Path, options: DriveOptions, compute: Compute
) -> dict[str, str | int | float | bool | None]:
    """As `everything`, as far as it costs next to nothing: without what is in the avatar."""
    import torch

    from . import __version__
    from .labels import content
    from .pose import digest
    from .video import SEGMENT, ffmpeg

    chosen = asdict(options)
    del chosen["restart"]
    if Path(options.background).is_file():
        chosen["background"] = digest(Path(options.background))
    return chosen | {
        "source": content(source),
        "avatar": f"{avatar.id} {avatar.model}",
        "kind": out.suffix.lower(),
        "device": compute.device.type,
        "precision": compute.precision,
        "versions": f"{__version__} {torch.__version__} {Path(ffmpeg()).name} {SEGMENT}",
    }


def drawn_before(avatar: Avatar, source: Path, out: Path, options: DriveOptions, compute: Compute) -> int:
    """How many frames an interrupted run of the same has left. For a look only."""
    from . import folders
    from .checkpoint import facts
    from .rendering import MEMORY

    folder = folders.unfinished("drive", decided(avatar, source, out, options, compute))
    return 0 if folder is None or options.restart else int(facts(folder / MEMORY).get("frame", 0))


class Home(NamedTuple):
    """The picture that a square around a head is from: `references.Gathered`."""

    picture: Image
    box: Any


@contextmanager
def backgrounds(
    options: DriveOptions,
    source: Path,
    info: VideoInfo | None,
    size: tuple[int, int],
    progress: Progress,
    first: int = 0,
) -> Iterator[Iterator[Image] | None]:
    """The scenes of `--background`, one per frame from `first` on without end; None for the avatar's own."""
    from . import background
    from .video import is_image, open_reader, probe, read_image

    def forever(image: Image) -> Iterator[Image]:
        while True:
            yield image

    def looped(path: Path) -> Iterator[Image]:
        skip = first % probe(path).frames
        while True:
            with open_reader(path, skip=skip) as frames:
                for frame in frames:
                    yield background.cover(frame, size)
            skip = 0

    wanted = options.background
    if wanted in ("plate", "transparent"):
        yield None
    elif wanted == "source":
        assert info is not None
        yield forever(background.cover(source_plate(source, info, options, progress), size))
    elif wanted.startswith("#"):
        yield forever(background.solid_colour(wanted, size))
    elif is_image(Path(wanted)):
        yield forever(background.cover(read_image(Path(wanted)), size))
    else:
        scenes = looped(Path(wanted))
        try:
            yield scenes
        finally:
            scenes.close()  # type: ignore[attr-defined]


def source_plate(source: Path, info: VideoInfo, options: DriveOptions, progress: Progress) -> Image:
    """The driver's scene without the driver."""
    from . import background
    from .pose import estimate_images
    from .references import working_size
    from .video import open_reader

    progress.stage("Emptying the source's scene", None)
    end = info.duration if options.end is None else min(options.end, info.duration)
    step = max(1, int((end - options.start) * info.fps) // PLATE_FRAMES)
    wh = working_size(info.width, info.height, 720)
    with open_reader(source, start=options.start, end=options.end, size=wh) as frames:
        some = [frame for i, frame in enumerate(frames) if i % step == 0]
    masks = [mask for _, mask in estimate_images(some)]
    plate = background.make_plate(some, masks)
    if plate.camera_moves:
        progress.warn(f"The camera moves in {source.name}, so that its scene comes out blurred as a background.")
    return plate.image


def tags(avatar: Avatar) -> dict[str, str]:
    """What the video says of itself: that it is synthetic, and what made it."""
    from . import __version__

    return {
        "comment": f"Synthetic media: made with retarget {__version__} from avatar {avatar.id}.",
        "synthetic_media": "true",
        "retarget_version": __version__,
        "retarget_avatar": avatar.id,
    }


def marked(picture: Image) -> Image:
    """`picture` with “synthetic” in its lower right corner."""
    import cv2
    import numpy as np

    picture = np.ascontiguousarray(picture)
    height, width = picture.shape[:2]
    scale = max(0.4, min(height, width) / 700)
    (w, _), base = cv2.getTextSize("synthetic", cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    at = (width - w - round(12 * scale), height - base - round(8 * scale))
    for colour, thick in ((0, 3), (255, 1)):
        ink = (colour,) * 3 + ((255,) if picture.shape[2] == 4 else ())
        cv2.putText(picture, "synthetic", at, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thick, cv2.LINE_AA)
    return picture


def side_by_side(left: Image, right: Image) -> Image:
    """Two pictures of one height beside each other."""
    import numpy as np

    return np.concatenate([left, right], axis=1)
