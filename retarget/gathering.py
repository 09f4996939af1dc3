"""From a video or photos to K references: frames are chosen, the person is cut out, the scene emptied (`from_video`,
`from_photos`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from . import background, motion, parts
from .errors import InputError, NobodyFound, UsageError
from .pose import PoseOptions, crowded, crowds, estimate, estimate_images
from .pose.base import person_point, seen
from .references import Gathered, working_size
from .skeleton import PART, J
from .types import Array, Image, PoseTrack, Progress
from .video import open_reader, probe, read_image

PLATE_FRAMES = 40
"""Frames that the plate is the median of."""
CANDIDATES = 160
"""Frames among which the references are chosen."""
LONGEST = 60.0
"""Seconds of a video that are looked at."""
SMALLEST = 16
"""Pixels of the short side, below which nobody can be seen."""
KEPT_POSES = 240
"""Poses of the person that an avatar keeps, to measure the body by."""
FACE, BLURRED = 0.8, 0.4
"""How much worse a picture shows the head if the face is blurred (units of feature distance), and which share of the
detail of other pictures it may lack before it is."""


def sharpness(frame: Image, body: Array) -> tuple[float, float]:
    """How sharp the person and the face are: the strength of fine detail around the joints, against that of coarse
    detail."""
    return _sharp(frame, body), _sharp(frame, body[: J["mouth_right"] + 1])


def _sharp(frame: Image, joints: Array) -> float:
    height, width = frame.shape[:2]
    xy = joints[:, :2][np.isfinite(joints[:, :2]).all(1)]
    if len(xy) == 0:
        return 0.0
    x0, y0 = np.clip(xy.min(0) - 8, 0, (width - 16, height - 16)).astype(int)
    x1, y1 = np.clip(xy.max(0) + 8, (x0 + 16, y0 + 16), (width, height)).astype(int)
    grey = cv2.cvtColor(frame[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = cv2.Laplacian(grey, cv2.CV_32F, ksize=1)
    coarse = cv2.Sobel(cv2.GaussianBlur(grey, (0, 0), 2), cv2.CV_32F, 1, 0)
    return float(np.sqrt((fine**2).mean()) / (np.sqrt((coarse**2).mean()) + 1.0))


def choose(track: PoseTrack, sharp: npt.NDArray[np.floating], count: int) -> list[int]:
    """The `count` pictures that show the person best, for all the poses of the track.

    Greedy facility location: each picture added lessens the sum, over all different poses and body parts, of the
    distance to the most similar chosen picture; blurred, cut off or hidden parts count as more distant.

    Args:
        track: N candidates, all with a body.
        sharp: (N, 2) sharpness of the person and of the face.

    Returns:
        Indices, the most useful picture first.
    """
    looks = parts.skeletons(track)
    xy = track.body[:, :, :2]
    inside = ((xy > 0) & (xy < np.array(track.size))).all(2).mean(1)
    order = np.argsort(np.argsort(sharp[:, 0])) / max(1, len(sharp) - 1)
    # A fraction of the clip's typical sharpness matters more than the rank among sharp frames.
    blur, face = np.clip(1 - sharp / np.maximum(np.quantile(sharp, 0.7, axis=0), 1e-6), 0, 1).T
    penalty = 0.8 * blur + 0.15 * (1 - order) + 2.0 * (1 - inside)
    cost = np.linalg.norm(looks.features[:, None] - looks.features[None], axis=-1)  # (pose, picture, P)
    cost = cost + penalty[None, :, None] + 0.5 * (1 - looks.visible)[None]
    cost[..., PART["head"]] += FACE * np.clip((face - BLURRED) / 0.2, 0, 1)
    # Poses that are held or repeated count once: what the person looks like matters, not for how long.
    looks_alike = (np.linalg.norm(looks.features[:, None] - looks.features[None], axis=-1).mean(2) < 0.25).sum(1)
    weight = 1 / np.sqrt(looks_alike)
    best = np.full(cost[:, 0].shape, 4.0)
    chosen: list[int] = []
    for _ in range(min(count, len(track))):
        gain = np.einsum("tkp,t->k", np.minimum(cost, best[:, None]), weight)
        gain[chosen] = np.inf
        chosen.append(int(gain.argmin()))
        best = np.minimum(best, cost[:, chosen[-1]])
    return chosen


def from_video(
    path: Path,
    *,
    count: int,
    size: int,
    pick: Sequence[int] = (),
    person: str = "largest",
    plate_from: str = "video",
    feet: bool = True,
    irises: bool = False,
    restart: bool = False,
    progress: Progress,
) -> Gathered:
    """Choose and prepare references from a video. `feet`: whether to warn when none shows them. `irises`: see
    `PoseOptions`. `restart`: without the poses that an interrupted run left.

    Raises VideoError, NobodyFound (fewer usable frames than `count`), UsageError (`pick` outside of the video).
    """
    info = probe(path)
    _check_size(info.width, info.height, path.name)
    if info.damage:
        progress.warn(info.damage)
    end = LONGEST if info.duration > LONGEST + 1 else None
    if end is not None and not pick:
        progress.note(f"Only the first {LONGEST:.0f} seconds of {path.name} are used.")
    options = PoseOptions(person=person, irises=irises)
    track = estimate(path, options, end=None if pick else end, restart=restart, progress=progress)
    if pick:
        outside = [n for n in pick if not 0 <= n < len(track)]
        if outside:
            raise UsageError(
                f"{path.name} has no frame {outside[0]}: it has {len(track)}, counted from 0.",
                "Give --pick numbers of frames of the video.",
            )
        missing = [n for n in pick if not track.found[n]]
        if missing:
            raise NobodyFound(f"No person was found in frame {missing[0]} of {path.name}.", "Pick other frames.")
    found = np.flatnonzero(track.found)
    if len(found) < count:
        raise NobodyFound(
            f"{path.name} shows a person in only {len(found)} frames, fewer than the {count} that are needed.",
            f"Film a few seconds more, or use --frames {len(found)}.",
        )
    wh = working_size(info.width, info.height, size)
    small = motion.fill_gaps(track).scaled(wh)

    candidates = found[np.unique(np.linspace(0, len(found) - 1, CANDIDATES).round().astype(int))]
    for_plate = set(found[np.unique(np.linspace(0, len(found) - 1, PLATE_FRAMES).round().astype(int))].tolist())
    progress.stage("Choosing frames", len(track))
    sharp: dict[int, tuple[float, float]] = {}
    wanted = set(candidates.tolist())
    kept: dict[int, Image] = {}
    with open_reader(path, end=None if pick else end, size=wh) as frames:
        for i, frame in enumerate(frames):
            if i in wanted:
                sharp[i] = sharpness(frame, small.body[i])
            if i in for_plate or i in pick:
                kept[i] = frame
            progress.advance()
    if pick:
        picked = list(pick)
    else:
        usable = [i for i in candidates.tolist() if i in sharp]
        scores = np.array([sharp[i] for i in usable])
        picked = [usable[n] for n in choose(small.select(usable), scores, count)]
    missing_frames = sorted(set(picked) - kept.keys())
    if missing_frames:
        with open_reader(path, end=end, size=wh) as frames:
            for i, frame in enumerate(frames):
                if i in missing_frames:
                    kept[i] = frame
                if i >= missing_frames[-1]:
                    break

    progress.stage("Cutting the person out", None)
    sources = picked if plate_from == "frames" else sorted(for_plate)
    looked = sorted({*picked, *sources})
    if person == "largest":
        found_masks = [mask for _, mask in estimate_images([kept[i] for i in looked], options)]
    else:  # the one who was followed, where they stand by now
        hips = small.body[looked, 23:25, :2].mean(1).clip(0, np.array(wh) - 1)
        whom = [PoseOptions(person=f"{x:.0f},{y:.0f}") for x, y in hips]
        found_masks = [estimate_images([kept[i]], one)[0][1] for i, one in zip(looked, whom, strict=True)]
    masks = dict(zip(looked, found_masks, strict=True))
    plate = background.make_plate([kept[i] for i in sources], [masks[i] for i in sources])
    if plate.camera_moves:
        progress.warn(
            f"The camera moves in {path.name} (by {100 * plate.motion:.0f} % of the picture), so that its background"
            " comes out blurred; film with the camera at rest, or replace the background when you drive."
        )
    pictures = [kept[i] for i in picked]
    windows = tuple(small.select(list(range(max(0, i - 2), i + 1))) for i in picked)
    step = max(1, -(-len(found) // KEPT_POSES))
    gathered = _prepared(
        pictures, [masks[i] for i in picked], windows, plate, small.select(found[::step]), info.fps, picked
    )
    _tell_gaps(gathered.poses, path.name, progress, feet)
    return replace(gathered, colour=info.colour)


def from_photos(
    paths: Sequence[Path],
    *,
    count: int,
    size: int,
    pick: Sequence[int] = (),
    person: str = "largest",
    feet: bool = True,
    irises: bool = False,
    progress: Progress,
) -> Gathered:
    """Choose and prepare references from photos; the first one chosen gives the scene and the picture's size. `feet`:
    whether to warn when none shows them. `irises`: see `PoseOptions`.

    Raises InputError for a photo that cannot be read, NobodyFound when too few show a person, UsageError.
    """
    progress.stage("Finding the person", len(paths))
    pictures, tracks, masks, originals = [], [], [], []
    shape: tuple[int, int] | None = None
    nobody: list[str] = []
    numbers: list[int] = []
    for number, path in enumerate(paths):
        photo = read_image(path)
        _check_size(photo.shape[1], photo.shape[0], path.name)
        original = photo.shape[1::-1]
        wh = working_size(photo.shape[1], photo.shape[0], size)
        if wh != photo.shape[1::-1]:
            photo = np.asarray(cv2.resize(photo, wh, interpolation=cv2.INTER_AREA), np.uint8)
        if shape is None:
            shape = wh
        photo = _letterbox(photo, shape)
        who = PoseOptions(person=moved_point(person, original, shape), irises=irises)
        ((track, mask),) = estimate_images([photo], who)
        progress.advance()
        if not track.found[0]:
            nobody.append(path.name)
            continue
        pictures.append(photo)
        tracks.append(track)
        masks.append(mask)
        originals.append(original)
        numbers.append(number)
    if pick:
        wrong = [n for n in pick if n not in numbers]
        if wrong:
            raise UsageError(
                f"There is no usable photo {wrong[0]} among the {len(paths)}, counted from 0.", "Pick other photos."
            )
        chosen = [numbers.index(n) for n in pick]
    else:
        if len(pictures) < min(count, len(paths)):
            raise NobodyFound(
                f"No person was found in {', '.join(nobody)}.", "Use photos that show one person from head to foot."
            )
        every = PoseTrack.concatenate(tracks)
        sharp = np.array([sharpness(p, t.body[0]) for p, t in zip(pictures, tracks, strict=True)])
        chosen = choose(every, sharp, count)
    if len(chosen) < count and not pick:
        progress.note(f"{len(chosen)} photo{'s' if len(chosen) > 1 else ''} given: K is {len(chosen)}, not {count}.")
    progress.stage("Cutting the person out", None)
    first = chosen[0]
    plate = background.make_plate([pictures[first]], [masks[first]])
    which = [paths[numbers[i]].name for i in chosen]
    track = PoseTrack.concatenate([tracks[i] for i in chosen])
    _tell_gaps(track, ", ".join(which[:3]), progress, feet)
    if person == "largest":
        beside = crowds([pictures[i] for i in chosen], track)
        for name, i, crowd in zip(which, chosen, beside, strict=True):
            if crowd is not None:
                progress.warn(crowded(name, _moved_back(crowd, originals[i], track.size), "taken"))
    return _prepared(
        [pictures[i] for i in chosen], [masks[i] for i in chosen], tuple(tracks[i] for i in chosen), plate,
        track, Fraction(25), [numbers[i] for i in chosen],
        same_scene=False,
    )  # fmt: skip


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < SMALLEST:
        raise InputError(f"{name} has only {width} x {height} pixels.", "Use a larger one: 256 pixels or more.")


def _tell_gaps(poses: PoseTrack, name: str, progress: Progress, feet: bool) -> None:
    """Warn of what none of the references shows."""
    ankles = seen(poses)[:, [J["left_ankle"], J["right_ankle"]]].max(axis=1)
    if feet and (ankles < 0.3).all():
        progress.warn(
            f"{name} shows the person without their feet, and what no picture shows cannot be drawn;"
            " film from head to foot, or drive with --align none by a video that is framed alike."
        )
    x = poses.body[:, :, 0]
    away = (x[:, J["left_shoulder"]] < x[:, J["right_shoulder"]]) & ~np.isfinite(poses.face).all(axis=(1, 2))
    if away.all():
        progress.warn(
            f"{name} shows the person from behind only, so that the avatar has no face; turn around once while filming."
        )


def moved_point(person: str, before: tuple[int, ...], after: tuple[int, int]) -> str:
    """`--person` of a picture of size `before` in the same picture letterboxed to `after` (width, height)."""
    point = person_point(person)
    if point is None:
        return person
    scale = min(after[0] / before[0], after[1] / before[1])
    x, y = ((p - b / 2) * scale + a / 2 for p, b, a in zip(point, before, after, strict=True))
    return f"{min(max(x, 0), after[0] - 1):.0f},{min(max(y, 0), after[1] - 1):.0f}"


def _moved_back(points: Array, before: tuple[int, ...], after: tuple[int, int]) -> Array:
    """Places (N, 2) in a picture of size `before` that was letterboxed to `after`, where they are."""
    middle, scale = np.array(after) / 2, min(after[0] / before[0], after[1] / before[1])
    return np.asarray((points - middle) / scale + np.array(before) / 2, np.float32)


def _letterbox(photo: Image, size: tuple[int, int]) -> Image:
    """`photo` scaled to fit into `size` (width, height), its borders repeated around."""
    height, width = photo.shape[:2]
    if (width, height) == size:
        return photo
    scale = min(size[0] / width, size[1] / height)
    new = (min(size[0], max(1, round(width * scale))), min(size[1], max(1, round(height * scale))))
    inner = cv2.resize(photo, new, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    left, top = (size[0] - new[0]) // 2, (size[1] - new[1]) // 2
    return np.asarray(
        cv2.copyMakeBorder(inner, top, size[1] - new[1] - top, left, size[0] - new[0] - left, cv2.BORDER_REPLICATE),
        np.uint8,
    )


def _prepared(
    pictures: list[Image],
    masks: list[Array],
    windows: tuple[PoseTrack, ...],
    plate: background.Plate,
    track: PoseTrack,
    fps: Fraction,
    picked: Sequence[int],
    *,
    same_scene: bool = True,
) -> Gathered:
    mattes = [
        background.refine_matte(p, m, background.seen_from(plate, p, m) if same_scene else None)
        for p, m in zip(pictures, masks, strict=True)
    ]
    frames = [background.unmix(p, m) for p, m in zip(pictures, mattes, strict=True)]
    windows = tuple(replace(w, missed=()) for w in windows)
    return Gathered(
        np.stack(frames), np.stack(mattes), windows, plate, replace(track, missed=()), fps, tuple(picked),
        np.stack(pictures),
    )  # fmt: skip
