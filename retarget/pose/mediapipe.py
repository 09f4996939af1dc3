"""The default pose estimator: mediapipe's Holistic with the models bundled in its wheel (body, hands, face mesh, mask).

Its body landmarks are BlazePose's 33 joints (Bazarevsky et al. 2020), the order of `skeleton.JOINTS`; left and right
are the person's own, for the hands as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from fractions import Fraction
from itertools import chain, islice, product
from queue import SimpleQueue

import cv2
import numpy as np
import numpy.typing as npt

from ..skeleton import FACE_POINTS, REFINED_POINTS, J
from ..types import Array, Image, PoseTrack, Progress
from .base import PoseOptions, empty_track, fitting, person_point, pixels_per_metre, teleports

CHUNK, WARM_UP = 60, 6
"""Pictures per piece of work, and pictures before it that are only looked at to have the tracker running."""
FOLLOWED = 480
"""The same for a person among others, who is followed from piece to piece."""

Window = tuple[int, int, int, int]
"""Left, top, width, height of a crop, in pixels; may reach beyond the picture."""

_CHATTER = re.compile(
    rb"(INFO: Created TensorFlow|WARNING: All log messages before absl|[IWE]\d{4} [\d:. ]+ *\d+ \S+\.cc:\d+\])[^\n]*\n?"
)
"""To the end of its line, wherever it begins: another thread may have been within a line of its own."""


class _Quiet:
    """Context manager, usable from several threads: keeps the chatter of mediapipe's C++ code off the screen.

    It offers no switch for it, so stderr (the descriptor) goes to a file meanwhile. On leaving, all of it but
    the chatter known here is written to the real stderr: nothing else is lost, only late.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._stack = contextlib.ExitStack()
                with contextlib.suppress(OSError, ValueError):
                    self._divert()

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()

    def _divert(self) -> None:
        if sys.stderr is not None:
            sys.stderr.flush()
        real = os.dup(2)
        self._stack.callback(os.close, real)
        file = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115

        def restore() -> None:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(real, 2)
            file.seek(0)
            if kept := _CHATTER.sub(b"", file.read()):
                os.write(2, kept)

        os.dup2(file.fileno(), 2)
        self._stack.callback(restore)


_quiet = _Quiet()
_spoken = False  # one warning of mediapipe comes with the first person it finds in the process


class _Holistic:
    """One mediapipe graph. `wipe` makes it forget the pictures before, so that equal pictures give equal results.

    points  of its face meshes: with irises 478, which another network finds (Grishchenko et al. 2020, attention mesh).
    """

    def __init__(self, *, static: bool, irises: bool = False) -> None:
        self.points = REFINED_POINTS if irises else FACE_POINTS
        with _quiet:
            from mediapipe.python.solutions.holistic import Holistic

            self._graph = Holistic(
                static_image_mode=static,
                model_complexity=1,
                smooth_landmarks=False,  # smoothing is `motion.smooth`'s work: without lag, and the same for all fps
                enable_segmentation=static,
                refine_face_landmarks=irises,
            )
            self.wipe()  # the models are loaded with the first picture

    def wipe(self) -> None:
        self._graph.process(np.zeros((64, 64, 3), np.uint8))

    def __call__(self, image: Image, out: PoseTrack, row: int) -> npt.NDArray[np.float32] | None:
        """Writes the pose into row `row` of `out` (meshes of `points`), in pixels of `image`; returns the mask, if
        static."""
        global _spoken
        with contextlib.nullcontext() if _spoken else _quiet:
            result = self._graph.process(np.ascontiguousarray(image))
        if result.pose_landmarks is None or result.pose_world_landmarks is None:
            return None
        _spoken = True
        height, width = image.shape[:2]
        # z has the scale of x: in units of the picture's width.
        scale = np.array([width, height, width], np.float32)
        out.body[row] = [(p.x, p.y, p.z, p.visibility) for p in result.pose_landmarks.landmark]
        out.body[row, :, :3] *= scale
        out.world[row] = [(p.x, p.y, p.z) for p in result.pose_world_landmarks.landmark]
        for target, found in (
            (out.face, result.face_landmarks),
            (out.hands[:, 0], result.left_hand_landmarks),
            (out.hands[:, 1], result.right_hand_landmarks),
        ):
            if found is not None:
                target[row] = np.array([(p.x, p.y, p.z) for p in found.landmark], np.float32) * scale
        mask = result.segmentation_mask
        return None if mask is None else np.clip(mask, 0, 1).astype(np.float32)

    def close(self) -> None:
        self._graph.close()


def _cores() -> int:
    """CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


class MediapipeEstimator:
    """`PoseEstimator` with mediapipe. Estimates one person: the most prominent, or the one at `options.person`."""

    name = "mediapipe-holistic-2"
    overlap = WARM_UP

    def __init__(self, options: PoseOptions | None = None, *, workers: int | None = None) -> None:
        """
        Args:
            options: which person, and whether with irises. Raises UsageError for a person that cannot be understood.
            workers: threads; by default one per CPU core, at most 4. The results do not depend on it.
        """
        options = options or PoseOptions()
        self._point, self._irises = person_point(options.person), options.irises
        self._workers = workers or min(4, _cores())

    def track(self, frames: Iterable[Image], *, fps: Fraction, progress: Progress) -> PoseTrack:
        """See `PoseEstimator.track`. Holds (workers + 2) · 66 pictures at most."""
        parts = [part for part, _ in self.pieces(frames, fps=fps, progress=progress)]
        if not parts:
            raise ValueError("no frames to track")
        track = PoseTrack.concatenate(parts)
        gone = self.strays(track.body)
        for array in (track.body, track.world, track.face, track.hands):
            array[gone] = np.nan
        return replace(track, missed=tuple(np.flatnonzero(~track.found).tolist()))

    def pieces(
        self, frames: Iterable[Image], *, fps: Fraction, progress: Progress, before: Array | None = None
    ) -> Iterator[tuple[PoseTrack, Array]]:
        """See `PoseEstimator.pieces`."""
        if self._point is None:
            yield from self._chunks(frames, fps, progress, before)
        else:
            yield from _followed(frames, fps, progress, self._point, before, self._irises)

    def strays(self, body: Array) -> npt.NDArray[np.bool_]:
        """See `PoseEstimator.strays`."""
        return teleports(body)

    def _chunks(
        self, frames: Iterable[Image], fps: Fraction, progress: Progress, tail: Array | None
    ) -> Iterator[tuple[PoseTrack, Array]]:
        """Tracks of `CHUNK` pictures each, estimated side by side in threads (mediapipe releases the GIL).

        With each its last `WARM_UP` poses. Each piece finds its person anew. Where that is another one than the piece
        before ended with (their poses in the shared pictures differ), it is done again, following the person of the
        piece before; where it finds nobody in most pictures, it is done again looking closer.
        """
        free: deque[_Holistic] = deque()
        made: list[_Holistic] = []
        stop = threading.Event()
        ticks: SimpleQueue[None] = SimpleQueue()

        def work(pictures: list[Image], warm: int) -> PoseTrack:
            try:
                graph = free.popleft()
            except IndexError:
                graph = _Holistic(static=False, irises=self._irises)
                made.append(graph)
            graph.wipe()
            height, width = pictures[0].shape[:2]
            out = empty_track(len(pictures), (width, height), fps, graph.points)
            for row, picture in enumerate(pictures):
                if stop.is_set():
                    break
                graph(picture, out, row)
                if row >= warm:
                    ticks.put(None)
            free.append(graph)
            return out

        def show() -> None:
            if steps := ticks.qsize():
                for _ in range(steps):
                    ticks.get()
                progress.advance(steps)

        def finished(future: Future[PoseTrack], pictures: list[Image], warm: int) -> tuple[PoseTrack, Array]:
            nonlocal tail
            while not wait_for([future], timeout=0.2).done:
                show()
            show()
            out = future.result()
            known = [] if tail is None else [body for body in tail if np.isfinite(body[0, 0])]
            stranger = tail is not None and _strangers(tail, out.body[:warm])
            out = out.select(slice(warm, None))
            if stranger or out.found.mean() < 0.5:
                last = known[-1] if known else None
                again, _ = _follow(pictures[warm:], fps, lambda: None, last=last, irises=self._irises)
                if stranger or again.found.sum() > out.found.sum():
                    out = again
            tail = out.body[-WARM_UP:].copy()
            _set_depth(out)
            return out, tail

        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="pose")
        try:
            running: deque[tuple[Future[PoseTrack], list[Image], int]] = deque()
            stream = iter(frames)
            before = list(islice(stream, 0 if tail is None else WARM_UP))
            while pictures := list(islice(stream, CHUNK)):
                piece, warm = before + pictures, len(before)
                running.append((pool.submit(work, piece, warm), piece, warm))
                before = pictures[-WARM_UP:]
                while len(running) > self._workers:
                    yield finished(*running.popleft())
            while running:
                yield finished(*running.popleft())
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            for graph in made:
                graph.close()

    def segment(self, frames: Sequence[Image]) -> list[tuple[PoseTrack, Array]]:
        """See `PoseEstimator.segment`. Where the whole picture shows nobody, crops and a padded picture are tried."""
        graphs = threading.local()
        made: list[_Holistic] = []

        def one(picture: Image) -> tuple[PoseTrack, Array]:
            if not hasattr(graphs, "own"):
                graphs.own = _Holistic(static=True, irises=self._irises)
                made.append(graphs.own)
            return _find(graphs.own, picture, self._point)

        with ThreadPoolExecutor(min(self._workers, max(1, len(frames)))) as pool:
            try:
                return list(pool.map(one, frames))
            finally:
                pool.shutdown(cancel_futures=True)
                for graph in made:
                    graph.close()

    def bystanders(self, frames: Sequence[Image], track: PoseTrack) -> list[list[tuple[float, float]]]:
        """Who else is in each picture, beside the person of the track: the middle of their hips, in its pixels.

        mediapipe finds one person only: so that one is painted over, and what is left of and right of them is looked
        at. Counted is who is seen well (visibility of the trunk at least 0.6) and at least 0.3 times as large: in 42
        clips of one person, nobody.
        """
        graph = _Holistic(static=True)
        try:
            return [_beside(graph, picture, body) for picture, body in zip(frames, track.body, strict=True)]
        finally:
            graph.close()


def _set_depth(track: PoseTrack) -> None:
    """Sets the body's z from the world coordinates: mediapipe's own z agrees with them in order (correlation 0.99), but
    is three to four times too deep."""
    track.body[..., 2] = track.world[..., 2] * pixels_per_metre(track)[:, None]


def _crop(picture: Image, window: Window) -> Image:
    """The part of the picture in `window`; grey where the window reaches beyond it."""
    height, width = picture.shape[:2]
    x, y, w, h = window
    if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
        return picture[y : y + h, x : x + w]
    out = np.full((h, w, 3), 127, np.uint8)
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if x1 > x0 and y1 > y0:
        out[y0 - y : y1 - y, x0 - x : x1 - x] = picture[y0:y1, x0:x1]
    return out


def _look(graph: _Holistic, picture: Image, window: Window, out: PoseTrack, row: int) -> Array | None:
    """Estimates inside `window`, writes into `out` in pixels of the whole picture; returns the whole picture's mask.

    A window that reaches far beyond the picture is cut.
    """
    height, width = picture.shape[:2]
    border = max(width, height) // 2
    x0, y0 = max(window[0], -border), max(window[1], -border)
    x1, y1 = min(window[0] + window[2], width + border), min(window[1] + window[3], height + border)
    if min(x1, width) - max(x0, 0) < 8 or min(y1, height) - max(y0, 0) < 8:  # hardly anything of the picture
        return None
    window = x0, y0, x1 - x0, y1 - y0
    part = _crop(picture, window)
    size = fitting((window[2], window[3]))
    if size != (window[2], window[3]):
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    mask = graph(part, out, row)
    if not np.isfinite(out.body[row, 0, 0]):
        return None
    scale = np.array([window[2] / size[0], window[3] / size[1], window[2] / size[0]], np.float32)
    shift = np.array([window[0], window[1], 0], np.float32)
    out.body[row, :, :3] = out.body[row, :, :3] * scale + shift
    out.face[row] = out.face[row] * scale + shift
    out.hands[row] = out.hands[row] * scale + shift
    if mask is None:
        return None
    mask = cv2.resize(mask, (window[2], window[3]), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    if window == (0, 0, width, height):
        return mask
    whole = np.zeros((height, width), np.float32)
    x, y, w, h = window
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    whole[y0:y1, x0:x1] = mask[y0 - y : y1 - y, x0 - x : x1 - x]
    return whole


def _around(body: Array, margin: float) -> Window:
    """The square-ish window around a pose (33, 4), `margin` of its larger side wider on each side."""
    low, high = body[:, :2].min(axis=0), body[:, :2].max(axis=0)
    side = float((high - low).max())
    low, high = low - margin * side, high + margin * side
    x, y = int(low[0]), int(low[1])
    return x, y, max(16, int(high[0]) - x), max(16, int(high[1]) - y)


def _windows(size: tuple[int, int], point: tuple[float, float] | None) -> Iterator[Window]:
    """Where to look for a person, one after the other: everything, then closer, then with a border around.

    Around `point` when it is given, else over the picture.
    """
    width, height = size
    if point is not None:
        for share in (0.5, 0.3, 0.8, 0.18, 1.2):
            side = int(max(size) * share)
            yield int(point[0] - side / 2), int(point[1] - side / 2), side, side
        return
    yield 0, 0, width, height
    border = max(size) // 4  # a person who fills the picture, cut off at its edges
    yield -border, -border, width + 2 * border, height + 2 * border
    for share in (0.6, 0.4, 0.25):  # a small person in a wide picture
        w = h = int(max(size) * share)
        w, h = min(w, width), min(h, height)
        for y, x in product(_outwards(height - h, 2), _outwards(width - w, 4)):
            yield x, y, w, h


def _outwards(room: int, steps: int) -> list[int]:
    """The numbers from 0 to `room` in `steps` steps, the middle first."""
    return sorted({room * i // steps for i in range(steps + 1)}, key=lambda v: abs(v - room / 2))


def _contains(body: Array, point: tuple[float, float]) -> bool:
    """Whether `point` lies in the box of the pose (33, 4)."""
    low, high = body[:, :2].min(axis=0), body[:, :2].max(axis=0)
    margin = 0.05 * float((high - low).max())
    return bool(((low - margin <= point) & (point <= high + margin)).all())


def _find(graph: _Holistic, picture: Image, point: tuple[float, float] | None) -> tuple[PoseTrack, Array]:
    """The person in one picture (at `point`) with a static graph, looked for in several windows."""
    height, width = picture.shape[:2]
    for n, window in enumerate(_windows((width, height), point)):
        out = empty_track(1, (width, height), points=graph.points)
        mask = _look(graph, picture, window, out, 0)
        if mask is None or (point is not None and not _contains(out.body[0], point)):
            continue
        if n or point is not None:  # found in a crop: look once more, framed as the detector likes it
            again = empty_track(1, (width, height), points=graph.points)
            better = _look(graph, picture, _around(out.body[0], 0.25), again, 0)
            if better is not None and (point is None or _contains(again.body[0], point)):
                out, mask = again, better
        _set_depth(out)
        return replace(out, missed=()), mask
    return empty_track(1, (width, height), points=graph.points), np.zeros((height, width), np.float32)


def _follow(
    frames: Iterable[Image],
    fps: Fraction,
    tick: Callable[[], None],
    *,
    point: tuple[float, float] | None = None,
    last: Array | None = None,
    lost: int = 0,
    irises: bool = False,
) -> tuple[PoseTrack, Array]:
    """The track of one person among others: who stands at `point` of the first picture, or had the pose `last` before.

    With it the pose that was found last, and a row of NaN for each picture since then; `lost` is their number before.

    mediapipe sees a window that moves along: the pose's box and 0.4 of its side around. It stands still while the
    person is well inside, so that the graph's own tracking works; when it moves, the graph forgets. A pose that is too
    far away counts as missed; after a second without the person, and then once a second, everybody near the last place
    and later everybody in the picture will do. With neither `point` nor `last`, everybody in the picture.
    """
    still, graph = _Holistic(static=True, irises=irises), _Holistic(static=False, irises=irises)
    rows: list[PoseTrack] = []
    window = None if last is None else _around(last, 0.4)
    pause = 0
    try:
        for picture in frames:
            height, width = picture.shape[:2]
            row = empty_track(1, (width, height), fps, graph.points)
            pause -= 1
            if last is None or window is None or lost > fps:
                if pause <= 0:
                    place = point if last is None else tuple(last[_MIDDLE, :2].mean(axis=0).tolist())
                    row = replace(_find(still, picture, place if lost <= 2 * fps else None)[0], fps=fps)
                    graph.wipe()
                    pause = round(fps)
            else:
                _look(graph, picture, window, row, 0)
            body = row.body[0]
            if np.isfinite(body[0, 0]) and (last is None or lost > fps or _near(last, body)):
                last, lost = body, 0
                inner = _around(body, 0.1)
                if window is None or not _inside(inner, window) or inner[2] + inner[3] < 0.45 * (window[2] + window[3]):
                    window = _around(body, 0.4)
                    graph.wipe()
            else:
                row = empty_track(1, (width, height), fps, graph.points)
                lost += 1
                graph.wipe()
            rows.append(row)
            tick()
    finally:
        still.close()
        graph.close()
    since = np.full((1 + min(lost, 1 + int(2 * fps)), len(J), 4), np.nan, np.float32)  # longer does not matter
    if last is not None:
        since[0] = last
    return PoseTrack.concatenate(rows) if rows else empty_track(0, (1, 1), fps, graph.points), since


def _followed(
    frames: Iterable[Image],
    fps: Fraction,
    progress: Progress,
    point: tuple[float, float],
    since: Array | None,
    irises: bool,
) -> Iterator[tuple[PoseTrack, Array]]:
    """`_follow` in tracks of `FOLLOWED` pictures. mediapipe's own memory cannot be kept: it begins anew with each."""
    stream = iter(frames)
    for _ in islice(stream, 0 if since is None else WARM_UP):
        pass
    while first := list(islice(stream, 1)):
        last = None if since is None or not np.isfinite(since[0, 0, 0]) else since[0]
        piece = chain(first, islice(stream, FOLLOWED - 1))
        lost = 0 if since is None else len(since) - 1
        out, since = _follow(piece, fps, progress.advance, point=point, last=last, lost=lost, irises=irises)
        _set_depth(out)
        yield out, since


def _inside(inner: Window, outer: Window) -> bool:
    return (
        inner[0] >= outer[0]
        and inner[1] >= outer[1]
        and inner[0] + inner[2] <= outer[0] + outer[2]
        and inner[1] + inner[3] <= outer[1] + outer[3]
    )


_MIDDLE = tuple(J[f"{side}_{name}"] for side in ("left", "right") for name in ("shoulder", "hip"))


def _near(a: Array, b: Array) -> bool:
    """Whether two poses (33, 4) of consecutive pictures can be one person's: less than half a body's size apart."""
    size = float((a[:, :2].max(axis=0) - a[:, :2].min(axis=0)).max())
    return bool(np.hypot(*(a[_MIDDLE, :2].mean(axis=0) - b[_MIDDLE, :2].mean(axis=0))) < 0.5 * size)


def _strangers(a: Array, b: Array) -> bool:
    """Whether two estimates (T, 33, 4) of the same pictures show different people, in the last one that has both."""
    both = np.flatnonzero(np.isfinite(a[:, 0, 0]) & np.isfinite(b[:, 0, 0]))
    return bool(len(both)) and not _near(a[both[-1]], b[both[-1]])


_TRUNK = tuple(J[f"{side}_{name}"] for side in ("left", "right") for name in ("shoulder", "hip", "knee"))


def _beside(graph: _Holistic, picture: Image, body: Array) -> list[tuple[float, float]]:
    height, width = picture.shape[:2]
    low, high = body[:, :2].min(axis=0), body[:, :2].max(axis=0)
    side = float((high - low).max())
    if not np.isfinite(side):
        return []
    x0, y0 = np.clip(low - 0.08 * side, 0, (width, height)).astype(int)
    x1, y1 = np.clip(high + 0.08 * side, 0, (width, height)).astype(int)
    hidden = picture.copy()
    hidden[y0:y1, x0:x1] = 127
    found = []
    for left, right in ((0, int(x0)), (int(x1), width)):
        if right - left < 0.12 * width:
            continue
        out = empty_track(1, (width, height), points=graph.points)
        if _look(graph, hidden, (left, 0, right - left, height), out, 0) is None:
            continue
        xy = out.body[0, :, :2]
        inside = ((xy >= (left, 0)) & (xy <= (right, height))).all(axis=1)
        seen = float((out.body[0, :, 3] * inside)[list(_TRUNK)].mean())
        if seen >= 0.6 and float((xy.max(axis=0) - xy.min(axis=0)).max()) >= 0.3 * side:
            x, y = xy[list(_MIDDLE)].mean(axis=0)
            found.append((float(x), float(y)))
    return found


def mask_in(picture: Image, box: npt.NDArray[np.floating]) -> Array:
    """The soft mask (H, W) of the person in `box` (x0, y0, x1, y1) of a picture; zero when nobody is found there."""
    height, width = picture.shape[:2]
    graph = _Holistic(static=True)
    try:
        corners = np.zeros((2, 4), np.float32)
        corners[:, :2] = np.asarray(box).reshape(2, 2)
        mask = _look(graph, picture, _around(corners, 0.15), empty_track(1, (width, height)), 0)
    finally:
        graph.close()
    return np.zeros((height, width), np.float32) if mask is None else mask
