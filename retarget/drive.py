"""`drive`: an avatar and a driving video → a video of the avatar's person doing what the driver does.

    source ─ poses (cached) ─ gaps filled, smoothed, fitted to the avatar's body ─ pose maps ─ model ─ video, sound

Two passes over the source: the first estimates the poses, the second renders as a stream, so that memory does not grow
with the length of the video.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .types import Image, PoseTrack, Progress, Silent

if TYPE_CHECKING:
    from .avatar import Avatar
    from .device import Compute
    from .models.base import Identity, RetargetModel
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
    device, precision  see `device.choose`.
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
    device: str = "auto"
    precision: str = "auto"


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
        source: a video, or a motion file (`pose.save_motion`).
        out: the video to write: .mp4, .mov, .mkv or .webm; it appears under its name when it is complete.
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

    model, identity, stored = load(avatar, compute)
    track = movement(source, avatar, stored, options, progress)
    render(avatar, model, identity, track, source, out, options, compute, progress)
    return out


def check(options: DriveOptions, source: Path, out: Path) -> None:
    """Raises UsageError for options that cannot be."""
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


def load(avatar: Avatar, compute: Compute) -> tuple[RetargetModel, Identity, dict[str, Any]]:
    """The avatar's model with its weights on the device, the encoded person, and the stored arrays."""
    import torch

    from .errors import AvatarError
    from .models import build
    from .references import references

    stored = dict(avatar.tensors())
    model = build(avatar.model, avatar.meta.config)
    state = avatar.state()
    try:
        if state:
            model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
        known = references(stored)
    except (KeyError, RuntimeError, ValueError) as error:
        raise AvatarError(
            f"The avatar {avatar.path} is damaged: {str(error).splitlines()[0]}.", "Run retarget personalize again."
        ) from error
    model.to(compute.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    with torch.inference_mode():
        identity = model.encode(known.to(compute.device))
    return model, identity, stored


def movement(
    source: Path, avatar: Avatar, stored: dict[str, Any], options: DriveOptions, progress: Progress
) -> PoseTrack:
    """The poses to draw, in pixels of the avatar's picture: one per frame of the source's piece."""
    from . import motion
    from .pose import PoseOptions, estimate
    from .references import stored_track

    track = estimate(
        source, PoseOptions(person=options.person), start=options.start, end=options.end, progress=progress
    )
    track = motion.smooth(motion.fill_gaps(track), options.smooth)
    if options.align == "none":
        return motion.scale_to(track, avatar.size)
    body = motion.body_of(stored_track(stored, "track"))
    return motion.fit(track, body, size=avatar.size, progress=progress)


def render(
    avatar: Avatar,
    model: RetargetModel,
    identity: Identity,
    track: PoseTrack,
    source: Path,
    out: Path,
    options: DriveOptions,
    compute: Compute,
    progress: Progress,
) -> None:
    """Draw every pose of the track and write the video."""
    from .references import working_size
    from .video import open_reader, open_writer, probe, timestamps

    info = None if source.suffix == ".npz" else probe(source)
    if info is not None and info.damage:
        progress.warn(info.damage)
    size = avatar.size
    if options.size is not None:
        zoom = options.size / min(size)
        size = (2 * round(size[0] * zoom / 2), 2 * round(size[1] * zoom / 2))
    transparent = options.background == "transparent"
    spacing = timestamps(source, options.start, options.end) if info is not None and info.variable else None
    shown = size
    if options.compare:
        assert info is not None
        beside = (working_size(round(info.width * size[1] / info.height), size[1], 1 << 30)[0], size[1])
        shown = (beside[0] + size[0], size[1])
    with ExitStack() as stack:
        plates = stack.enter_context(backgrounds(options, source, info, size, progress))
        originals: Iterator[Image] | None = None
        if options.compare:
            originals = stack.enter_context(open_reader(source, start=options.start, end=options.end, size=beside))
        write = stack.enter_context(
            open_writer(
                out, shown, track.fps,
                audio_from=source if options.audio and info is not None and info.has_audio else None,
                start=options.start, end=options.end, metadata=tags(avatar), alpha=transparent,
                timestamps=spacing,
                colour="bt709" if avatar.meta.extra.get("colour") == "bt709" else "bt601",
            )
        )  # fmt: skip
        progress.stage("Rendering", len(track))
        for picture in pictures(model, identity, track, size, compute, plates, transparent, options.output_smooth):
            if options.watermark:
                picture = marked(picture)
            if originals is not None:
                picture = side_by_side(next(originals), picture)
            write(picture)
            progress.advance()


def pictures(
    model: RetargetModel,
    identity: Identity,
    track: PoseTrack,
    size: tuple[int, int],
    compute: Compute,
    plates: Iterator[Image] | None = None,
    transparent: bool = False,
    calm: float = 0.0,
) -> Iterator[Image]:
    """The frames one by one, (H, W, 3) uint8 RGB, or (H, W, 4) with straight alpha when `transparent`.

    Args:
        size: (width, height) of the frames.
        plates: scenes to stand before, one per frame; None keeps the avatar's own.
        calm: strength of the smoothing over time.
    """
    import torch
    import torch.nn.functional as F

    from .references import pixels, poses

    state, condition, before = None, None, None
    scene: Image | None = None
    if transparent:
        # Before black, of which no shading leaves anything on the person.
        identity = model.before(identity, torch.full((1, 3, 8, 8), -1.0, device=compute.device))
    for t in range(len(track)):
        if plates is not None:
            plate = next(plates)
            if plate is not scene:
                scene = plate
                identity = model.before(identity, pixels(plate)[None].to(compute.device))
        window = poses(track.select([t]))
        with torch.inference_mode(), compute.autocast():
            condition = model.condition(window.to(compute.device), (size[1], size[0]), condition)
            frame, state = model(condition, identity, state)
            rgb = frame.rgb.float()
            if calm > 0:
                # Only what is coarser than about 1 % of the picture is calmed: moving detail must not ghost.
                coarse = F.interpolate(rgb, scale_factor=1 / 8, mode="area")
                slow = coarse if before is None else torch.lerp(coarse, before, 0.7 * calm)
                rgb = rgb + F.interpolate(slow - coarse, rgb.shape[2:], mode="bilinear", align_corners=False)
                before = slow
            rgb = ((rgb[0] + 1) * 127.5).clamp(0, 255)
            if transparent:
                assert frame.matte is not None
                matte = frame.matte[0].float()
                straight = rgb / matte.clamp_min(1 / 255)
                rgb = torch.cat([straight.clamp(0, 255), 255 * matte])
            image = rgb.round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
        yield image


@contextmanager
def backgrounds(
    options: DriveOptions, source: Path, info: VideoInfo | None, size: tuple[int, int], progress: Progress
) -> Iterator[Iterator[Image] | None]:
    """The scenes of `--background`, one per frame without end; None for the avatar's own."""
    from . import background
    from .video import is_image, open_reader, read_image

    def forever(image: Image) -> Iterator[Image]:
        while True:
            yield image

    def looped(path: Path) -> Iterator[Image]:
        while True:
            with open_reader(path) as frames:
                for frame in frames:
                    yield background.cover(frame, size)

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


def benchmark_frame(size: tuple[int, int] = (384, 512), device: str = "auto") -> float:
    """Seconds per rendered frame of the model `dance` with both nets at work, on a made-up person.

    Args:
        size: (width, height) of the frame.
        device: see `device.choose`.
    """
    import numpy as np
    import torch

    from . import device as devices
    from .models import build
    from .models.base import References
    from .references import poses

    compute = devices.choose(device)
    rng = np.random.default_rng(0)
    width, height = size
    stand = np.array(
        [(0, -70)] * 11 + [(-18, -50), (18, -50), (-24, -22), (24, -22), (-26, 3), (26, 3)]
        + [(-27, 10), (27, 10), (-27, 10), (27, 10), (-25, 8), (25, 8)]
        + [(-11, 0), (11, 0), (-12, 42), (12, 42), (-12, 80), (12, 80), (-12, 84), (12, 84), (-18, 86), (18, 86)],
        float,
    ) * (height / 190) + (width / 2, height / 2)  # fmt: skip
    stand[:11] += rng.normal(0, 0.02 * height, (11, 2))
    count = 2
    body = np.concatenate([stand + rng.normal(0, 0.01 * height, (count, 33, 2)), np.zeros((count, 33, 1)),
                           np.ones((count, 33, 1))], 2).astype(np.float32)  # fmt: skip
    none = np.full((count, 468, 3), np.nan, np.float32)
    track = PoseTrack(body, body[..., :3] / height, none, none[:, :42].reshape(count, 2, 21, 3), size)
    matte = torch.zeros(1, count, 1, height, width)
    matte[..., height // 10 : -height // 10, width // 4 : -width // 4] = 1
    model = build("dance").to(compute.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.01)
    with torch.inference_mode():
        person = model.encode(
            References(
                torch.rand(1, count, 3, height, width, device=compute.device), matte, poses(track),
                torch.zeros(1, 3, height, width, device=compute.device),
            )
        )  # fmt: skip
    times = []
    walk = track.select([i % count for i in range(6)])
    last = time.perf_counter()
    for _ in pictures(model, person, walk, size, compute):
        now = time.perf_counter()
        times.append(now - last)
        last = now
    return float(np.median(times[2:]))
