"""`pictures`: several frames at once. What it does when memory or precision do not suffice: `reliability`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from retarget import device, rendering
from retarget.models import build
from retarget.references import arrays, references
from retarget.rendering import Memory, pictures

SIZE = (128, 160)
CPU = device.choose("cpu", "fp32")


@pytest.fixture
def bodies(puppet):
    return [puppet.body((25 + 8 * i, 25 + 12 * i), (25, 20 + 5 * i), legs=6 + i, at=(60 + i, 76)) for i in range(7)]


@pytest.fixture
def track(puppet, bodies):
    return replace(puppet.track(*bodies), fps=Fraction(24))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build("dance", {"density": 24, "width": 8, "depth": 2, "window": 2}).eval()
    torch.nn.init.normal_(model.synthesis.last.weight, 0, 0.1)
    return model


@pytest.fixture
def identity(puppet, bodies, model):
    return model.encode(references(arrays(puppet.gathered(bodies[0], bodies[3], bodies[6]))))


def lamps() -> Iterator[np.ndarray]:
    """A scene that changes with every second frame."""
    for i in range(100):
        scene = np.full((160, 128, 3), 40 + 30 * i, np.uint8)
        yield scene
        yield scene


def drawn(monkeypatch, count, *arguments, **options) -> np.ndarray:
    monkeypatch.setattr(rendering, "at_once", lambda _: count)
    return np.stack(list(pictures(*arguments, CPU, **options)))


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("options", [{}, {"calm": 0.6}, {"transparent": True}])
def test_several_frames_at_once_are_the_same(monkeypatch, model, identity, track, count, options):
    one_by_one = drawn(monkeypatch, 0, model, identity, track, SIZE, **options)
    assert np.abs(np.diff(one_by_one.astype(int), axis=0)).mean((1, 2, 3)).min() > 0.5  # no two frames alike
    several = drawn(monkeypatch, count, model, identity, track, SIZE, **options)
    assert np.abs(several.astype(int) - one_by_one).max() <= 1  # other threads, other sums


def test_each_frame_stands_before_its_own_scene(monkeypatch, model, identity, track):
    one_by_one, several = (
        drawn(monkeypatch, n, model, identity, track, SIZE, plates=lamps(), calm=0.3) for n in (0, 2)
    )
    assert np.abs(several.astype(int) - one_by_one).max() <= 1


def test_what_comes_after_goes_on_where_the_frames_end_that_were_shown(monkeypatch, model, identity, track):
    """Not where those end that were begun."""
    whole = drawn(monkeypatch, 3, model, identity, track, SIZE, calm=0.5)
    latest = [Memory()]
    stream = pictures(model, identity, track, SIZE, CPU, calm=0.5, latest=latest)
    begun = [next(stream) for _ in range(3)]
    memory = latest[0]
    stream.close()
    rest = list(pictures(model, identity, track, SIZE, CPU, calm=0.5, first=3, latest=[memory]))
    np.testing.assert_array_equal([*begun, *rest], whole)


def test_nothing_goes_on_when_nobody_wants_more(monkeypatch, model, identity, track):
    before, threads = torch.get_num_threads(), threading.active_count()
    monkeypatch.setattr(rendering, "at_once", lambda _: 2)
    stream = pictures(model, identity, track, SIZE, CPU)
    next(stream)
    assert threads < threading.active_count() <= threads + 2
    stream.close()
    assert threading.active_count() == threads
    assert torch.get_num_threads() == before


def test_what_fails_in_a_thread_is_told_at_its_frame(monkeypatch, model, identity, track):
    """As if it had been drawn alone; and what failed while it was worked out, too."""
    monkeypatch.setattr(rendering, "at_once", lambda _: 2)
    real, at = type(model).condition, track.body[4]

    def condition(self, poses, *rest):
        if np.array_equal(poses.body[0, 0].numpy(), at):
            raise ZeroDivisionError
        return real(self, poses, *rest)

    monkeypatch.setattr(type(model), "condition", condition)
    shown = []
    with pytest.raises(ZeroDivisionError):
        shown.extend(pictures(model, identity, track, SIZE, CPU))
    stream = pictures(model, identity, track, SIZE, CPU)
    assert [next(stream).shape for _ in range(4)] == [(160, 128, 3)] * 4
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_one_frame_at_a_time_has_all_cores(monkeypatch, model, identity, track):
    threads = torch.get_num_threads()
    monkeypatch.setattr(rendering, "at_once", lambda _: 2)
    real = type(model).forward

    def forward(self, *arguments):
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        return real(self, *arguments)

    try:
        torch.set_num_threads(3)
        stream = pictures(model, identity, track, SIZE, CPU)
        next(stream)
        assert torch.get_num_threads() == 1
        stream.close()
        monkeypatch.setattr(type(model), "forward", forward)
        stream = pictures(model, identity, track, SIZE, CPU)
        next(stream)
        assert torch.get_num_threads() == 3
        assert len(list(stream)) == len(track) - 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("cores", "count"), [(1, 0), (2, 2), (16, rendering.MOST)])
def test_a_cpu_draws_as_many_as_it_has_cores_up_to_a_few(monkeypatch, cores, count):
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    assert rendering.at_once(CPU) == count
