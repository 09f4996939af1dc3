"""Training corpora: videos → packed clips of frames, mattes, plates and poses, small enough to travel; or of street
scenes: of frames and label maps.

    CLIPS ─ prepare ─ corpus/NAME.npz + index.json ─ Corpus ─ training

A corpus is read with NumPy and OpenCV alone, so that a training machine needs neither mediapipe nor ffmpeg. Poses and
mattes are the estimator's, with the noise that is there in use, too; where exact mattes are known, these are the truth
that is trained for. Part mattes are not stored: `parts.part_mattes` makes them of matte and pose.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from .. import background, streets
from ..errors import InputError, NobodyFound, StorageError
from ..folders import replaced
from ..labels import NONE, Classes, LabelTrack, resized
from ..pose.base import empty_track
from ..references import Gathered, working_size
from ..skeleton import HAND_POINTS, JOINTS
from ..types import Array, Image, PoseTrack, Silent
from ..video import pictures_in

if TYPE_CHECKING:
    from .prepare import PrepareOptions

SCHEMA: Final = 1
INDEX: Final = "index.json"
ESTIMATED_AT: Final = 512
"""Short side of the pictures that mattes are estimated on: that of an avatar made with default options."""
UNIT: Final = 32
"""Coordinates are stored in 1/UNIT pixels."""
LOST: Final = -32768
"""Stored in place of NaN."""
FEWEST: Final = 6
"""A clip with fewer usable frames is left out."""
SMALLEST: Final = 48
"""Pixels of the training picture that a person must be tall or wide."""

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Entry:
    """A clip of a corpus.

    size    (width, height) of its training pictures.
    sha256  of the video it was made of.
    """

    clip: str
    person: str
    source: str
    licence: str
    split: Split
    frames: int
    size: tuple[int, int]
    exact: bool
    sha256: str


@dataclass(frozen=True)
class SceneEntry(Entry):
    """A clip of a street scene, whose name stands in the place of a person's.

    classes  how many its label maps take, see `streets.counted`.
    sha256   of pictures and label maps, see `streets.fingerprint`.
    """

    classes: int


# ------------------------------------------------------------------------------------------------ making one


def packed(path: Path, facts: Mapping[str, str], out: Path, options: PrepareOptions) -> Entry:
    """One clip's entry; its file is made unless it is there."""
    target = out / f"{facts['clip']}.npz"
    maps = Path(facts["labels"]) if "labels" in facts else None
    if maps is None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        digest = streets.fingerprint(_pictures(path), maps)
    made_with = options.deciding | {"schema": SCHEMA}
    if target.exists():
        meta = _meta(target)
        if meta is not None and meta["sha256"] == digest and meta["made_with"] == made_with:
            return _entry(meta, facts)
    if maps is not None:
        arrays, meta = pack_scene(path, maps, options)
    elif options.crop == "head":
        arrays, meta = _head(path, options)
    else:
        arrays, meta = pack(path, options)
    meta |= {"clip": facts["clip"], "sha256": digest, "made_with": made_with}
    try:
        with replaced(target) as part, part.open("wb") as file:
            np.savez_compressed(file, meta=np.array(json.dumps(meta)), **arrays)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error.strerror}.", "Free some space.") from error
    return _entry(meta, facts)


_DAMAGED: Final = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, EOFError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, cv2.error),
)


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All arrays of a file, which is closed whatever happens. Raises one of `_DAMAGED`."""
    with path.open("rb") as file, np.load(file) as kept:
        return {key: kept[key] for key in kept.files}


def _meta(path: Path) -> dict[str, Any] | None:
    """What describes a packed clip; None when any of its file is damaged."""
    try:
        return dict(json.loads(str(_arrays(path)["meta"])))
    except _DAMAGED:
        return None


def _entry(meta: Mapping[str, Any], facts: Mapping[str, str]) -> Entry:
    split: Split = "val" if facts["split"] == "val" else "train"
    known = (
        meta["clip"], facts["person"], facts["source"], facts["licence"], split, meta["frames"],
        (meta["size"][0], meta["size"][1]), meta["exact"], meta["sha256"],
    )  # fmt: skip
    return SceneEntry(*known, meta["classes"]) if "classes" in meta else Entry(*known)


def _head(path: Path, options: PrepareOptions) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """`pack` of a square around the head."""
    from .. import portraits

    with tempfile.TemporaryDirectory(prefix="retarget-") as folder:
        portrait = portraits.cropped(
            [path], Path(folder), size=ESTIMATED_AT, person="largest", whole=True, progress=Silent()
        )
        return pack(portrait.paths[0], options)


def pack(path: Path, options: PrepareOptions) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """A clip's arrays, as `Clip` reads them, and what describes them.

    Raises NobodyFound or InputError, with the reason why a clip is of no use, and what `video` and `pose` raise.
    """
    from .. import motion
    from ..pose import PoseOptions, estimate, estimate_images
    from ..video import open_reader, probe

    info = probe(path)
    track = estimate(path, PoseOptions(irises=options.crop == "head"))
    step = max(1, round(float(info.fps) / options.fps))
    numbers = np.flatnonzero(track.found)
    numbers = numbers[numbers % step == 0]
    if len(numbers) < FEWEST:
        raise NobodyFound(
            f"a person is seen in {len(numbers)} of the frames only.", f"At least {FEWEST} frames are needed."
        )
    large = working_size(info.width, info.height, ESTIMATED_AT)
    size = working_size(info.width, info.height, options.side)
    wanted = set(numbers.tolist())
    with open_reader(path, size=large) as frames:
        pictures = [frame for i, frame in enumerate(frames) if i in wanted]
    numbers = numbers[: len(pictures)]
    masks = [mask for _, mask in estimate_images(pictures)]
    plate = background.make_plate(pictures, masks)
    # Of a head that is followed, what is behind it moves, and is painted with it.
    if plate.camera_moves and options.crop == "none":
        raise InputError("the camera moves.", "Use clips of a camera at rest.")
    mattes = [background.refine_matte(p, m, plate) for p, m in zip(pictures, masks, strict=True)]
    small = [_resized(p, size) for p in pictures]
    mattes = [_resized(m, size) for m in mattes]
    exact = _exact(path, numbers, size)
    boxes = np.stack([_box(np.maximum(m, 0 if exact is None else exact[i])) for i, m in enumerate(mattes)])
    extent = (boxes[:, 2:] - boxes[:, :2]).max(1)
    if np.median(extent) < SMALLEST:
        raise NobodyFound("the person is too small.", "Use clips that show the whole person, as large as can be.")
    poses = motion.fill_gaps(track).select(numbers).scaled(size)
    arrays = {
        "numbers": numbers.astype(np.int32),
        "boxes": boxes.astype(np.int16),
        "rgb": _blob(
            [_webp(p[y0:y1, x0:x1], options.quality) for p, (x0, y0, x1, y1) in zip(small, boxes, strict=True)]
        ),
        "matte": _blob([_png(m[y0:y1, x0:x1]) for m, (x0, y0, x1, y1) in zip(mattes, boxes, strict=True)]),
        "plate": _blob([_webp(_resized(plate.image, size), options.quality)]),
        "seen": _blob([_png(_resized(plate.seen, size))]),
        "body": _stored(poses.body[..., :3]),
        "visibility": np.round(poses.body[..., 3] * 255).astype(np.uint8),
        "face": _stored(poses.face[..., :2]),
        "hands": _stored(poses.hands),
    }
    if exact is not None:
        arrays["exact"] = _blob([_png(m[y0:y1, x0:x1]) for m, (x0, y0, x1, y1) in zip(exact, boxes, strict=True)])
    meta = {
        "frames": len(numbers), "size": list(size), "exact": exact is not None, "fps": str(info.fps),
        "motion": plate.motion, "colour": info.colour,
    }  # fmt: skip
    return arrays, meta


def pack_scene(path: Path, maps: Path, options: PrepareOptions) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """`pack` of a street scene, a video or a folder of pictures, with its label maps.

    Raises InputError, with the reason why it is of no use, and what `streets.opened` raises.
    """
    film, known = streets.opened(_pictures(path), maps)
    step = max(1, round(float(film.fps) / options.fps))
    numbers = np.arange(0, len(film), step, dtype=np.int32)
    if len(numbers) < FEWEST:
        raise InputError(
            f"{len(numbers)} of its {len(film)} pictures are kept at --fps {options.fps:g}, and {FEWEST} are needed.",
            f"There are {float(film.fps):g} per second: use a larger --fps.",
        )
    size = working_size(*film.size, options.side)
    if min(size) < SMALLEST:
        raise InputError(f"its pictures have only {size[0]} x {size[1]} pixels.", f"{SMALLEST} or more are needed.")
    pictures = [_webp(_resized(picture, size), options.quality) for picture in film.every(step)]
    labels = np.stack([resized(one, size) for one in known.every(step)])
    if (labels == NONE).all():
        raise InputError("its label maps hold no class.", "Give maps with one number or colour per class.")
    meta = {
        "frames": len(numbers), "size": list(size), "exact": False, "fps": str(film.fps), "colour": film.colour,
        "classes": streets.counted(labels),
    }  # fmt: skip
    return {"numbers": numbers, "rgb": _blob(pictures), "labels": _blob([_lossless(one) for one in labels])}, meta


def _pictures(path: Path) -> list[Path]:
    """The files of a scene."""
    return pictures_in(path) if path.is_dir() else [path]


def _resized(picture: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _exact(path: Path, numbers: npt.NDArray[np.intp], size: tuple[int, int]) -> list[Array] | None:
    beside = path.with_suffix(".npz")
    if not beside.exists():
        return None
    try:
        known = _arrays(beside)
        count, height, width = known["mask_shape"].tolist()
        if numbers[-1] >= count:
            return None
        masks = np.unpackbits(known["mask_bits"][numbers], axis=1)[:, : height * width].reshape(-1, height, width)
    except _DAMAGED:
        return None
    return [_resized(m.astype(np.float32), size) for m in masks]


def _box(matte: Array) -> npt.NDArray[np.intp]:
    """x0, y0, x1, y1 around the person with a margin; outside of it the plate stands for the picture."""
    height, width = matte.shape
    ys, xs = np.nonzero(matte > 0.05)
    if len(ys) == 0:
        return np.array([0, 0, 8, 8])
    margin = 6 + 0.06 * max(np.ptp(ys), np.ptp(xs))
    low = np.maximum([xs.min() - margin, ys.min() - margin], 0)
    high = np.minimum([xs.max() + 1 + margin, ys.max() + 1 + margin], (width, height))
    return np.concatenate([low, high]).astype(np.intp)


def _webp(picture: npt.NDArray[Any], quality: int) -> npt.NDArray[np.uint8]:
    done, code = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])
    assert done
    return np.asarray(code.reshape(-1), np.uint8)


def _png(matte: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Sixteen levels are enough for a matte, and small."""
    return _lossless((np.round(np.clip(matte, 0, 1) * 15) * 17).astype(np.uint8))


def _lossless(numbers: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    done, code = cv2.imencode(".png", numbers, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done
    return np.asarray(code.reshape(-1), np.uint8)


def _blob(codes: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Files one after the other, their number and lengths (int32) before them."""
    head = np.array([len(codes), *(len(c) for c in codes)], "<i4").view(np.uint8)
    return np.concatenate([head, *codes])


def _files(blob: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
    count = int(blob[:4].view("<i4")[0])
    lengths = blob[4 : 4 + 4 * count].view("<i4")
    ends = 4 + 4 * count + np.cumsum(lengths)
    return [blob[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def _stored(points: Array) -> npt.NDArray[np.int16]:
    """Coordinates as int16, one plane per axis (they pack better)."""
    whole = np.where(np.isfinite(points), np.clip(np.round(points * UNIT), -32767, 32767), LOST)
    return np.ascontiguousarray(np.moveaxis(whole.astype(np.int16), -1, 0))


def _points(stored: npt.NDArray[np.int16]) -> Array:
    points = np.moveaxis(stored, 0, -1).astype(np.float32) / UNIT
    points[np.moveaxis(stored, 0, -1) == LOST] = np.nan
    return np.asarray(points, np.float32)


# ------------------------------------------------------------------------------------------------ reading one


@dataclass(frozen=True)
class Clip:
    """A packed clip, unpacked.

    pictures (N, H, W, 3) uint8 RGB: the person's surroundings as filmed, the plate elsewhere.
    mattes   (N, H, W) float32 in 0..1, the estimator's.
    exact    the same, exact; None where nobody knows them.
    track    N poses, in pixels of the pictures; face z is 0, world coordinates are unknown.
    labels   (N, H, W) uint8: label maps of a street scene, which is in the matte from border to border, and whose poses
             are all unknown; None: a person.
    """

    pictures: npt.NDArray[np.uint8]
    mattes: Array
    exact: Array | None
    plate: background.Plate
    track: PoseTrack
    labels: Classes | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def gathered(self, index: Sequence[int]) -> Gathered:
        """The references of an avatar made of these frames, as `gathering.from_video` gives them, or
        `streets.gathered`."""
        if self.labels is not None:
            return streets.scene(self.pictures[list(index)], self.labels[list(index)], self.track.fps, index)
        pictures, mattes = self.pictures[list(index)], self.mattes[list(index)]
        frames = np.stack([background.unmix(p, m) for p, m in zip(pictures, mattes, strict=True)])
        windows = tuple(self.track.select([i]) for i in index)
        return Gathered(
            frames, mattes, windows, self.plate, self.track, self.track.fps, tuple(index), pictures,
            exact=None if self.exact is None else self.exact[list(index)],
        )  # fmt: skip

    def window(self, i: int) -> PoseTrack | LabelTrack:
        """What frame `i` is drawn from."""
        return self.track.select([i]) if self.labels is None else LabelTrack(self.labels[i : i + 1], self.track.fps)


class Corpus:
    """A folder that `prepare` made. Raises InputError when it is none."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.index: dict[str, Any] = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            if self.index["schema"] != SCHEMA:
                raise ValueError
            self.entries = entries_of(self.index)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.folder} is not a corpus of this version.", "Make one: retarget prepare CLIPS --out corpus."
            ) from error

    def persons(self, split: Split) -> dict[str, list[Entry]]:
        """The clips of each person of a split, in order of their names."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            if entry.split == split:
                found.setdefault(entry.person, []).append(entry)
        return dict(sorted(found.items()))

    @property
    def classes(self) -> int:
        """How many label maps take, in a corpus of street scenes; 0 in one of people."""
        return max((entry.classes for entry in self.entries if isinstance(entry, SceneEntry)), default=0)

    @property
    def digest(self) -> str:
        """A hash of all that was packed."""
        return hashlib.sha256(json.dumps([asdict(e) for e in self.entries]).encode()).hexdigest()

    def clip(self, name: str) -> Clip:
        """One clip. Raises InputError when its file is missing or damaged."""
        return _read(self.folder / f"{name}.npz")


def entries_of(index: Mapping[str, Any]) -> list[Entry]:
    return [(SceneEntry if "classes" in e else Entry)(**e | {"size": tuple(e["size"])}) for e in index["clips"]]


@lru_cache(maxsize=16)
def _read(path: Path) -> Clip:
    try:
        a = _arrays(path)
        meta = json.loads(str(a["meta"]))
        width, height = meta["size"]
        if "labels" in a:
            return _scene(a, (width, height), Fraction(meta["fps"]))
        plate = _decoded(_files(a["plate"])[0])
        pictures = np.repeat(plate[None], meta["frames"], 0)
        mattes = np.zeros((meta["frames"], height, width), np.float32)
        exact = np.zeros_like(mattes) if "exact" in a else None
        blobs = {key: _files(a[key]) for key in ("rgb", "matte", "exact") if key in a}
        for i, (x0, y0, x1, y1) in enumerate(a["boxes"].tolist()):
            pictures[i, y0:y1, x0:x1] = _decoded(blobs["rgb"][i])
            mattes[i, y0:y1, x0:x1] = _matte(blobs["matte"][i])
            if exact is not None:
                exact[i, y0:y1, x0:x1] = _matte(blobs["exact"][i])
        seen = _matte(_files(a["seen"])[0])
        count = meta["frames"]
        body = np.concatenate([_points(a["body"]), a["visibility"][..., None].astype(np.float32) / 255], -1)
        flat = _points(a["face"])
        face = np.concatenate([flat, np.zeros_like(flat[..., :1])], -1)
        track = PoseTrack(
            body, np.full((count, len(JOINTS), 3), np.nan, np.float32), face,
            _points(a["hands"]).reshape(count, 2, HAND_POINTS, 3), (width, height), Fraction(meta["fps"]),
        )  # fmt: skip
        return Clip(pictures, mattes, exact, background.Plate(plate, seen, meta["motion"]), track)
    except _DAMAGED as error:
        raise InputError(f"{path} is missing or damaged.", "Run retarget prepare again.") from error


def _scene(a: Mapping[str, npt.NDArray[Any]], size: tuple[int, int], fps: Fraction) -> Clip:
    pictures = np.stack([_decoded(code) for code in _files(a["rgb"])])
    labels = np.stack([np.asarray(cv2.imdecode(code, cv2.IMREAD_UNCHANGED), np.uint8) for code in _files(a["labels"])])
    if not pictures.shape[:3] == labels.shape == (len(a["numbers"]), *size[::-1]):
        raise ValueError("pictures and label maps do not belong together")
    whole = np.broadcast_to(np.float32(1), labels.shape)  # takes no memory
    nobody = empty_track(len(labels), size, fps)
    return Clip(pictures, whole, None, background.Plate(pictures[0], whole[0], 0.0), nobody, labels)


def _decoded(code: npt.NDArray[np.uint8]) -> Image:
    return np.ascontiguousarray(cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1])


def _matte(code: npt.NDArray[np.uint8]) -> Array:
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255, np.float32)
