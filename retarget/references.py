"""What is known of a person: K pictures with mattes and poses, the empty scene, and how they move.

From what was gathered (`gathering`) to arrays that an avatar stores and tensors that a model encodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from . import background, parts
from .labels import MOST, NONE, LabelTrack
from .models.base import Labels, Poses, References
from .pose.base import empty_track
from .skeleton import REFINED_POINTS
from .types import Array, Image, PoseTrack
from .video import Colour

HOME = 1080
"""The most pixels of the short side of the picture that a square around a head is from."""


@dataclass(frozen=True)
class Gathered:
    """K references at the avatar's size.

    frames   (K, H, W, 3) uint8 RGB, the person's own colours continued under the matte's border.
    mattes   (K, H, W) float32 in 0..1.
    windows  the poses of up to three pictures up to and including each reference, K tracks.
    plate    the empty scene.
    track    poses that tell the body's measures; in pixels of the avatar's picture.
    fps      of the video; 25 for photos.
    picked   which frames of the video, or photos, they are.
    pictures (K, H, W, 3) uint8 RGB, untouched.
    colour   of the video, see `VideoInfo`.
    exact    mattes that are known exactly, as in training corpora; what training holds for true.
    home     (h, w, 3) uint8 RGB: of squares around a head (`portraits`), the picture that they are from.
    box      (3,) float32: x, y of the middle, and side, of the square in `home`.
    labels   (K, H, W) uint8: label maps of street scenes (`streets`), whose poses are all unknown; None: a person.
    """

    frames: npt.NDArray[np.uint8]
    mattes: Array
    windows: tuple[PoseTrack, ...]
    plate: background.Plate
    track: PoseTrack
    fps: Fraction
    picked: tuple[int, ...]
    pictures: npt.NDArray[np.uint8]
    colour: Colour = "bt601"
    exact: Array | None = None
    home: Image | None = None
    box: Array | None = None
    labels: npt.NDArray[np.uint8] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.frames.shape[2], self.frames.shape[1]

    @property
    def poses(self) -> PoseTrack:
        """The K references' own poses."""
        return PoseTrack.concatenate([w.select([len(w) - 1]) for w in self.windows])

    def window(self, k: int) -> PoseTrack | LabelTrack:
        """What reference `k` is drawn from."""
        return self.windows[k] if self.labels is None else LabelTrack(self.labels[k : k + 1], self.fps)


def arrays(gathered: Gathered) -> dict[str, npt.NDArray[np.generic]]:
    """What an avatar stores of its references."""
    if gathered.labels is not None:
        return _pictures(gathered) | {"labels": gathered.labels}
    poses, track = gathered.poses, gathered.track
    home = {key: x for key in ("home", "box") if (x := getattr(gathered, key)) is not None}
    return (
        home
        | _pictures(gathered, contact_shadow(gathered))
        | {f"{group}_{key}": getattr(t, key) for group, t in (("pose", poses), ("track", track)) for key in _KEYS}
    )


def _pictures(gathered: Gathered, shadow: float = 0.0) -> dict[str, npt.NDArray[np.generic]]:
    return {
        "frames": gathered.frames,
        "mattes": np.round(gathered.mattes * 255).astype(np.uint8),
        "plate": gathered.plate.image,
        "seen": np.round(gathered.plate.seen * 255).astype(np.uint8),
        "shadow": np.array([shadow], np.float32),
    }


_KEYS = ("body", "world", "face", "hands")
_PICTURES = ("frames", "mattes", "pictures")
_SOME = ("exact", "home", "box", "labels")
"""What only some references have."""


def packed(gathered: Gathered) -> dict[str, Any]:
    """All of it by name, as `checkpoint.save` takes it: what gathering took long to find is kept for an interrupted
    run."""
    tracks = {"track": gathered.track} | {f"window.{k}": w for k, w in enumerate(gathered.windows)}
    found = {f"{name}.{key}": getattr(track, key) for name, track in tracks.items() for key in _KEYS}
    found |= {key: getattr(gathered, key) for key in (*_PICTURES, *_SOME) if getattr(gathered, key) is not None}
    found |= {"plate": gathered.plate.image, "seen": gathered.plate.seen}
    return {key: torch.from_numpy(np.array(x, order="C")) for key, x in found.items()} | {
        "tracks": {name: [list(t.size), str(t.fps), list(t.missed)] for name, t in tracks.items()},
        "motion": float(gathered.plate.motion),
        "fps": str(gathered.fps),
        "picked": [int(i) for i in gathered.picked],
        "colour": gathered.colour,
    }


def unpacked(state: Mapping[str, Any]) -> Gathered:
    """The inverse of `packed`. Raises LookupError, TypeError or ValueError when `state` is something else."""

    def array(key: str) -> npt.NDArray[Any]:
        return np.asarray(state[key].numpy())

    tracks = {
        name: PoseTrack(
            **{key: array(f"{name}.{key}") for key in _KEYS}, size=tuple(size), fps=Fraction(fps), missed=tuple(missed)
        )
        for name, (size, fps, missed) in state["tracks"].items()
    }
    return Gathered(
        **{key: array(key) for key in _PICTURES},
        **{key: array(key) for key in _SOME if key in state},
        windows=tuple(tracks[f"window.{k}"] for k in range(len(tracks) - 1)),
        plate=background.Plate(array("plate"), array("seen"), state["motion"]),
        track=tracks["track"],
        fps=Fraction(state["fps"]),
        picked=tuple(state["picked"]),
        colour=state["colour"],
    )


def stored_track(stored: Mapping[str, npt.NDArray[np.generic]], group: str) -> PoseTrack:
    """The poses that `arrays` stored: `pose`, the K references' own, or `track`, those that measure the body."""
    height, width = stored["plate"].shape[:2]
    body, world, face, hands = (np.asarray(stored[f"{group}_{key}"], np.float32) for key in _KEYS)
    return PoseTrack(body, world, face, hands, (width, height))


def has_irises(stored: Mapping[str, npt.NDArray[np.generic]]) -> bool:
    """Whether the poses that `arrays` stored have irises: a driver's are looked for then, too."""
    return "track_face" in stored and stored["track_face"].shape[1:2] == (REFINED_POINTS,)


def check_stored(stored: Mapping[str, npt.NDArray[np.generic]], size: tuple[int, int], count: int) -> None:
    """Raises ValueError or KeyError for arrays that `arrays` cannot have stored: an avatar may come from anybody.

    Args:
        size: (width, height) of the avatar's picture.
        count: K.
    """
    picture = (size[1], size[0])
    for key, shape in {
        "frames": (count, *picture, 3), "mattes": (count, *picture), "plate": (*picture, 3), "seen": picture,
    }.items():  # fmt: skip
        if stored[key].dtype != np.uint8 or stored[key].shape != shape:
            raise ValueError(f"{key} is {stored[key].dtype} {stored[key].shape}, not uint8 {shape}")
    shadow = stored["shadow"]
    if shadow.dtype != np.float32 or shadow.shape != (1,) or not 0 <= float(shadow[0]) <= 1:
        raise ValueError("shadow is not one number from 0 to 1")
    if "labels" in stored:
        labels = stored["labels"]
        if labels.dtype != np.uint8 or labels.shape != (count, *picture):
            raise ValueError(f"labels is {labels.dtype} {labels.shape}, not uint8 {(count, *picture)}")
        if np.isin(labels, range(MOST, NONE)).any():
            raise ValueError("labels holds what is no class")
        return
    for group in ("pose", "track"):
        if any(stored[f"{group}_{key}"].dtype != np.float32 for key in _KEYS):
            raise ValueError(f"{group} is not float32")
        track = stored_track(stored, group)
        far = max(np.abs(np.nan_to_num(x, posinf=np.inf)).max(initial=0) for x in (track.body, track.face, track.hands))
        if not len(track) or not track.found.all() or far > 100 * max(size) or np.isinf(track.world).any():
            raise ValueError(f"{group} holds what is no pose")
        if group == "pose" and len(track) != count:
            raise ValueError(f"there are {len(track)} poses of {count} references")
    if "home" in stored:
        home, box = stored["home"], stored["box"]
        if home.dtype != np.uint8 or home.ndim != 3 or home.shape[2] != 3 or not 1 < min(home.shape[:2]) <= HOME:
            raise ValueError("home is no picture")
        sides = np.array([home.shape[1], home.shape[0], min(home.shape[:2])], float)
        if box.dtype != np.float32 or box.shape != (3,) or not (np.sign(box) > 0).all() or np.any(box > sides):
            raise ValueError("box does not lie in home")


def references(
    stored: Mapping[str, npt.NDArray[np.generic]],
    which: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
) -> References:
    """The tensors that a model encodes, a batch of one, on the CPU.

    Args:
        stored: from `arrays`.
        which: only these of the K references.
        size: (width, height) to scale to; None keeps the avatar's.
    """
    frames, mattes, plate = (np.asarray(stored[key], np.uint8) for key in ("frames", "mattes", "plate"))
    index = list(range(len(frames))) if which is None else list(which)
    labels: LabelTrack | None = None
    if "labels" in stored:
        labels = LabelTrack(np.asarray(stored["labels"], np.uint8)[index])
        track = empty_track(len(frames), (plate.shape[1], plate.shape[0]))
    else:
        track = stored_track(stored, "pose")
    pictures, shapes = [frames[i] for i in index], [mattes[i] for i in index]
    track = track.select(index)
    if size is not None and size != track.size:
        pictures, shapes = (
            [cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in xs] for xs in (pictures, shapes)
        )
        plate = np.asarray(cv2.resize(plate, size, interpolation=cv2.INTER_AREA), np.uint8)
        track = track.scaled(size)
        labels = labels and labels.scaled(size)
    matte = torch.from_numpy(np.stack(shapes).astype(np.float32) / 255)[None, :, None]
    rgb = torch.stack([pixels(p) for p in pictures])[None]
    maps = None if labels is None else seen_in(labels)
    return References(rgb, matte, poses(track), pixels(plate)[None], float(stored["shadow"][0]), labels=maps)


def pixels(image: Image) -> torch.Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32 in -1..1: the one place where pixels become tensors."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1


def poses(track: PoseTrack) -> Poses:
    """A track as one window of poses, a batch of one."""
    body, face, hands = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in (track.body, track.face, track.hands))
    return Poses(body, face, hands, (track.size[1], track.size[0]))


def seen_in(track: PoseTrack | LabelTrack) -> Any:
    """A track as what `RetargetModel.condition` takes, a batch of one: `Poses`, or `Labels` of scenes."""
    return poses(track) if isinstance(track, PoseTrack) else Labels(torch.from_numpy(track.classes)[None])


def contact_shadow(gathered: Gathered) -> float:
    """How much darker the floor is right under the feet than the plate there, 0..0.5: the median over the references;
    0 where the plate was not seen there."""
    found = []
    skeleton = parts.skeletons(gathered.poses)
    plate = gathered.plate.image.astype(np.float32).mean(2)
    for k, (picture, matte) in enumerate(zip(gathered.pictures, gathered.mattes, strict=True)):
        shade = parts.contact(skeleton.take([k]), plate.shape, 1.0, torch.zeros(1))[0].numpy()
        around = cv2.dilate(matte, np.ones((5, 5), np.uint8))
        floor = (shade > 0.4) & (around < 0.02) & (gathered.plate.seen > 0.1)
        if floor.sum() > 30:
            ratio = (picture.astype(np.float32).mean(2)[floor] + 4) / (plate[floor] + 4)
            found.append(1 - float(np.median(ratio)))
    return float(np.clip(np.median(found), 0, 0.5)) if found else 0.0


def working_size(width: int, height: int, short: int) -> tuple[int, int]:
    """(width, height), both even, with a short side of at most `short`; never enlarged."""
    scale = min(1.0, short / min(width, height))
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))
