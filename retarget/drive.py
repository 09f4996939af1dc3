"""`drive`: an avatar and a driving video → a video of the avatar's person doing what the driver does.

    source ─ poses (cached) ─ gaps filled, smoothed, fitted to the avatar's body ─ pose maps ─ model ─ video, sound

Two passes over the source: the first estimates the poses, the second renders as a stream, so that memory does not grow
with the length of the video. Both keep what they have finished: whatever ends a run, the same command goes on there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import DeviceError, InputError, UsageError
from .types import Image, PoseTrack, Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor

    from .avatar import Avatar
    from .device import Compute
    from .faces import Talk
    from .labels import LabelMaps, LabelTrack
    from .models.base import Identity, RetargetModel
    from .motion import Movement
    from .video import VideoInfo

PLATE_FRAMES = 40
MEMORY = "memory.safetensors"
"""In the folder of an unfinished video: what the next frame has to know."""
SMALLER = {"the full size": 1, "half the size, enlarged": 2, "a quarter of the size, enlarged": 4}
"""How frames are drawn when memory is short: words → by what the size is divided."""


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
                "Leave --paste-back out, or use an avatar of --model talking-head.",
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
    from .references import stored_track
    from .streets import driver

    if subject == "scene":
        return driver(source, avatar, options, progress)

    def motion() -> Motion:
        who = PoseOptions(person=options.person)
        return estimated(source, who, start=options.start, end=options.end, restart=options.restart, progress=progress)

    # Nobody but the movement holds the motion: it is let go once what follows from it is known.
    if subject == "head" and options.align == "auto":
        speaker = Movement(motion(), smoothness=options.smooth, body=None, size=None, progress=progress)
        return Talk(speaker, stored_track(stored, "track"), avatar.size)
    body = body_of(stored_track(stored, "track")) if options.align == "auto" else None
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

    folder = folders.unfinished("drive", decided(avatar, source, out, options, compute))
    return 0 if folder is None or options.restart else int(facts(folder / MEMORY).get("frame", 0))


class Home(NamedTuple):
    """The picture that a square around a head is from: `references.Gathered`."""

    picture: Image
    box: Any


class Memory(NamedTuple):
    """What the next frame has to know of the one before.

    condition, state  the model's.
    coarse            (1, 3, H / 8, W / 8) float32: the picture as it was smoothed, if it is to be over time.
    shrink            by what the size was divided; the model's memory is of this size.
    exact             whether low precision has failed.
    """

    condition: Any = None
    state: Any = None
    coarse: Tensor | None = None
    shrink: int = 1
    exact: bool = False


def remember(folder: Path, frame: int, model: RetargetModel, memory: Memory, notes: Sequence[str]) -> None:
    """Write down what frame number `frame` has to know, now that all before it is in `folder`."""
    from .checkpoint import save

    tensors = {f"state.{name}": tensor.cpu() for name, tensor in model.packed(memory.state).items()}
    if memory.coarse is not None:
        tensors["coarse"] = memory.coarse.cpu().contiguous()
    said = {"frame": frame, "shrink": memory.shrink, "exact": memory.exact, "notes": list(notes)}
    save(folder / MEMORY, tensors | said)


def recalled(folder: Path, model: RetargetModel, compute: Compute) -> tuple[int, Memory, list[str]]:
    """The frame to go on with, what it has to know (but the condition, which the poses tell), and the notes so far."""
    from .checkpoint import load

    try:
        known = load(folder / MEMORY)
    except ValueError:
        known = None
    if known is None:
        return 0, Memory(), []
    state = model.unpacked({k.removeprefix("state."): v for k, v in known.items() if k.startswith("state.")})
    coarse = known["coarse"].to(compute.device) if "coarse" in known else None
    return known["frame"], Memory(None, state, coarse, known["shrink"], known["exact"]), known["notes"]


def pictures(
    model: RetargetModel,
    identity: Identity,
    track: PoseTrack | Movement | Talk | LabelMaps,
    size: tuple[int, int],
    compute: Compute,
    plates: Iterator[Image] | None = None,
    transparent: bool = False,
    calm: float = 0.0,
    *,
    first: int = 0,
    latest: list[Memory] | None = None,
    progress: Progress | None = None,
    notes: list[str] | None = None,
) -> Iterator[Image]:
    """The frames one by one, (H, W, 3) uint8 RGB, or (H, W, 4) with straight alpha when `transparent`.

    From the first frame on that memory does not suffice for, they are drawn smaller and enlarged; from the first one on
    that is not finite in low precision, in fp32.

    Args:
        size: (width, height) of the frames.
        plates: scenes to stand before, one per frame from `first` on; None keeps the avatar's own.
        calm: strength of the smoothing over time.
        first: the frame to begin with.
        latest: holds one memory, of the frame before `first` (its condition aside); kept up to date.
        progress: is warned of what had to be done for want of memory or of precision.
        notes: the same sentences are added to it, for the records.

    Raises:
        OutOfMemory: not even a quarter of the size can be drawn.
        DeviceError: a frame is not finite in fp32.
    """
    import cv2
    import numpy as np
    import torch

    from .device import Ladder
    from .references import pixels, seen_in

    progress, notes = progress or Silent(), [] if notes is None else notes
    latest = [Memory()] if latest is None else latest
    memory, scene = latest[0], None
    ladder = Ladder("drawing the frames", SMALLER, progress, notes)
    ladder.place = list(SMALLER.values()).index(memory.shrink)
    if memory.exact:
        compute = compute.full_precision()
    if first:
        recent = seen_in(track.select(range(max(0, first - model.window), first))).to(compute.device)
        width, height = (side // memory.shrink for side in size)
        memory = memory._replace(condition=model.condition(recent, (height, width)))
    if transparent:
        # Before black, of which no shading leaves anything on the person.
        identity = model.before(identity, torch.full((1, 3, 8, 8), -1.0, device=compute.device))
    for t in range(first, len(track)):
        if plates is not None:
            plate = next(plates)
            if plate is not scene:
                scene = plate
                identity = model.before(identity, pixels(plate)[None].to(compute.device))
        frame = partial(_drawn, model, identity, track.select([t]), size, memory, transparent, calm)
        picture, remembered = ladder.run(partial(frame, compute))
        if not finite(picture) and compute.precision != "fp32":
            notes.append(f"Frame {t} was not finite in {compute.precision}: from there on in fp32.")
            progress.warn(notes[-1])
            compute = compute.full_precision()
            memory = memory._replace(exact=True)
            picture, remembered = ladder.run(partial(frame, compute))
        if not finite(picture):
            raise DeviceError(
                f"Frame {t} cannot be drawn: its pixels are not finite.",
                "Try --device cpu; if that does not help, make the avatar anew with retarget personalize.",
            )
        memory = latest[0] = remembered._replace(exact=memory.exact)
        # OpenCV interleaves the channels faster than torch does.
        planes = picture.clamp(0, 255).round().to(torch.uint8).cpu().numpy()
        yield np.asarray(cv2.merge(list(planes)), np.uint8)


def finite(picture: Tensor) -> bool:
    """Whether all of it is finite. A sum, which what is not finite spoils, is far faster than a look at each."""
    return bool(picture.sum().isfinite()) or bool(picture.isfinite().all())


def _drawn(
    model: RetargetModel,
    identity: Identity,
    pose: PoseTrack | LabelTrack,
    size: tuple[int, int],
    memory: Memory,
    transparent: bool,
    calm: float,
    compute: Compute,
    shrink: int,
) -> tuple[Tensor, Memory]:
    """One frame drawn at 1 / `shrink` of `size`: (3 or 4, H, W) float32 in 0..255, not clamped; what to remember."""
    import torch
    import torch.nn.functional as F

    from .references import seen_in

    width, height = (side // shrink for side in size)
    before = memory if memory.shrink == shrink else Memory()
    with torch.inference_mode(), compute.autocast():
        condition = model.condition(seen_in(pose).to(compute.device), (height, width), before.condition)
        frame, state = model(condition, identity, before.state)
        rgb, matte, coarse = frame.rgb.float(), frame.matte, None
        if shrink > 1:
            rgb = F.interpolate(rgb, size[::-1], mode="bilinear", align_corners=False)
        if calm > 0:
            # Only what is coarser than about 1 % of the picture is calmed: moving detail must not ghost.
            now = F.interpolate(rgb, scale_factor=1 / 8, mode="area")
            coarse = now if memory.coarse is None else torch.lerp(now, memory.coarse, 0.7 * calm)
            rgb = rgb + F.interpolate(coarse - now, rgb.shape[2:], mode="bilinear", align_corners=False)
        rgb = (rgb[0] + 1) * 127.5
        if transparent:
            assert matte is not None
            matte = matte.float()
            if shrink > 1:
                matte = F.interpolate(matte, size[::-1], mode="bilinear", align_corners=False)
            rgb = torch.cat([rgb.clamp(0, 255) / matte[0].clamp_min(1 / 255), 255 * matte[0]])
    return rgb, Memory(condition, state, coarse, shrink)


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
