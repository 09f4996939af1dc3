"""The plugin that writes docs/reliability.md, in a pytest of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability.report import Row, read, write

pytest_plugins = ("pytester",)

TESTS = """
from pathlib import Path

import pytest

@pytest.mark.reliability("1. Resume", "killed | at once", "goes on")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_many(n):
    if n == 2:
        pytest.skip("no ffmpeg")

@pytest.mark.reliability("2. Bad input", "empty file", "a sentence")
@pytest.mark.reliability("9. Exit codes", "empty file", "3")
def test_two():
    assert {good}

@pytest.mark.reliability(section="5. Out of memory", case="on a GPU", expected="half the batch")
def test_gpu():
    pytest.skip("needs a GPU")

@pytest.mark.parametrize("n", [
    pytest.param(0, marks=pytest.mark.reliability("1. Resume", "zero", "nothing")),
    pytest.param(1, marks=pytest.mark.reliability("1. Resume", "one", "something")),
])
def test_each(n):
    assert n == 0

def test_unmarked():
    pass
"""


def run(pytester: pytest.Pytester, *words: str) -> list[Row]:
    # What the project turns into errors is not this test's business.
    pytester.runpytest("-p", "reliability.report", "-W", "default", "--reliability-report", "docs/page.md", *words)
    return read((pytester.path / "docs" / "page.md").read_text(encoding="utf-8"))


def results(rows: list[Row]) -> dict[tuple[str, str], str]:
    return {(row.section, row.case): row.result for row in rows}


def test_what_was_proved(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS.format(good=True))
    rows = run(pytester)
    assert results(rows) == {
        ("1. Resume", "killed | at once"): "passed (2 of 3, 1 skipped: no ffmpeg)",
        ("1. Resume", "one"): "**failed** 1 of 1",
        ("1. Resume", "zero"): "passed",
        ("2. Bad input", "empty file"): "passed",
        ("5. Out of memory", "on a GPU"): "skipped: needs a GPU",
        ("9. Exit codes", "empty file"): "passed",
    }
    names = ("test_many", "test_each", "test_each", "test_two", "test_gpu", "test_two")
    assert [row.test for row in rows] == [f"test_it.py::{name}" for name in names]
    assert read(write(rows)) == rows


def test_a_subset_renews_its_own_rows_only(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS.format(good=True))
    before = results(run(pytester))
    pytester.makepyfile(test_it=TESTS.format(good=False))
    after = results(run(pytester, "-k", "two or unmarked"))
    assert {case: before[case] for case in before if case[1] != "empty file"}.items() <= after.items()
    assert after["2. Bad input", "empty file"] == after["9. Exit codes", "empty file"] == "**failed** 1 of 1"


def test_rows_of_cases_that_are_gone_go(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS.format(good=True))
    run(pytester)
    pytester.makepyfile(test_it=TESTS.format(good=True).replace("killed | at once", "killed"))
    told = results(run(pytester, "-k", "two"))
    assert ("1. Resume", "killed | at once") not in told
    assert ("1. Resume", "one") in told


def test_rows_of_tests_that_are_gone_go(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TESTS.format(good=True))
    run(pytester)
    pytester.makepyfile(test_it=TESTS.format(good=True).replace("test_many", "test_some"))
    assert {row.test for row in run(pytester, "-k", "two")} == {
        f"test_it.py::{name}" for name in ("test_two", "test_gpu", "test_each")
    }


@pytest.mark.slow
def test_workers_prove_the_same(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xdist")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makepyfile(test_it=TESTS.format(good=True))
    rows = []
    for words in (("-p", "no:xdist"), ("-n", "2")):
        pytester.runpytest_subprocess(
            "-p", "reliability.report", "-W", "default", "--reliability-report", "docs/page.md", *words
        )
        rows.append(read((pytester.path / "docs" / "page.md").read_text(encoding="utf-8")))
    assert rows[0] == rows[1]
    assert len(rows[0]) == 6
