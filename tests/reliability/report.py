"""`pytest --reliability-report=docs/reliability.md`: what tests marked `reliability(section, case, expected)` proved.

A test may carry several marks, and several tests one case. A run of some tests renews their rows and leaves the others
as they are; rows of tests that are no more go. With pytest-xdist, whose workers run the tests, the marks come with what
the workers report.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import NamedTuple

import pytest

HEAD = """\
# Reliability

What happens when things go wrong, and the tests that hold it. The tests write this table (`make reliability`).
"""
PROPERTY = "reliability"
COLUMNS = ("case", "expected", "test", "result", "version, date")


class Row(NamedTuple):
    """A line of the table; `test` is a node id without parameters."""

    section: str
    case: str
    expected: str
    test: str
    result: str
    when: str


def read(page: str) -> list[Row]:
    """The rows of a page that `write` made."""
    rows, section = [], ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == len(COLUMNS) and tuple(cells) != COLUMNS and set(cells[0]) != {"-"}:
            rows.append(Row(section, *cells[:2], cells[2].strip("`"), *cells[3:]))
    return rows


def write(rows: list[Row]) -> str:
    """The page: a table for each section."""
    lines = [HEAD]
    for section in sorted({row.section for row in rows}):
        lines += [f"## {section}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        for row in sorted(row for row in rows if row.section == section):
            cells = (row.case, row.expected, f"`{row.test}`", row.result, row.when)
            lines.append(f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def exists(test: str, root: Path) -> bool:
    """Whether the file of a test still names it."""
    file, _, name = test.partition("::")
    path = root / file
    return path.is_file() and f"def {name.split('::')[-1]}(" in path.read_text(encoding="utf-8")


class Report:
    """Collects the outcomes of marked tests while pytest runs, and writes the page at the end."""

    def __init__(self, page: Path, root: Path, *, worker: bool = False) -> None:
        self.page, self.root, self.worker = page, root, worker
        self.collected = False  # all tests are known, those that were left out as well
        self.cases: dict[str, list[tuple[str, str, str]]] = {}  # node id → its marks
        self.outcomes: dict[str, tuple[str, str]] = {}  # node id → outcome, why skipped

    @pytest.hookimpl(tryfirst=True)  # before -k leaves any out
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.collected = True
        for item in items:
            if marks := [_case(*mark.args, **mark.kwargs) for mark in item.iter_markers("reliability")]:
                self.cases[item.nodeid] = marks
                item.user_properties.append((PROPERTY, marks))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        marks = dict(report.user_properties).get(PROPERTY)
        if marks is None or (report.when != "call" and report.passed):
            return
        self.cases[report.nodeid] = [_case(*mark) for mark in marks]
        why = str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        if self.outcomes.get(report.nodeid, ("",))[0] != "failed":
            self.outcomes[report.nodeid] = (report.outcome, why)

    def pytest_sessionfinish(self) -> None:
        from retarget import __version__

        # A case may be one parameter of a test, or all of them.
        found: dict[tuple[str, str, str, str], list[tuple[str, str]]] = {}
        for node, outcome in self.outcomes.items():
            for case in self.cases[node]:
                found.setdefault((*case, _test(node)), []).append(outcome)
        if not found or self.worker:
            return
        when = f"{__version__}, {datetime.date.today().isoformat()}"
        new = [Row(*place, _result(outcomes), when) for place, outcomes in found.items()]
        renewed = {(row.section, row.case, row.test) for row in new}
        known = {(*case[:2], _test(node)) for node, cases in self.cases.items() for case in cases}
        seen = {test for _, _, test in known}
        old = read(self.page.read_text(encoding="utf-8")) if self.page.exists() else []
        kept = [
            row
            for row in old
            for place in ((row.section, row.case, row.test),)
            if place not in renewed
            and (place in known if self.collected and row.test in seen else exists(row.test, self.root))
        ]
        self.page.parent.mkdir(parents=True, exist_ok=True)
        self.page.write_text(write(kept + new), encoding="utf-8")


def _test(node: str) -> str:
    """A node id without parameters."""
    return node.partition("[")[0]


def _case(section: str, case: str, expected: str) -> tuple[str, str, str]:
    return section, case, expected


def _result(outcomes: list[tuple[str, str]]) -> str:
    """One word for all parameters of a test, with what was not as it should be."""
    count = {word: sum(outcome == word for outcome, _ in outcomes) for word in ("passed", "failed", "skipped")}
    if count["failed"]:
        return f"**failed** {count['failed']} of {len(outcomes)}"
    if not count["passed"]:
        return f"skipped: {outcomes[0][1]}"
    skipped = f", {count['skipped']} skipped: {_why(outcomes)}" if count["skipped"] else ""
    return "passed" + (f" ({count['passed']} of {len(outcomes)}{skipped})" if len(outcomes) > 1 else "")


def _why(outcomes: list[tuple[str, str]]) -> str:
    return "; ".join(sorted({why for outcome, why in outcomes if outcome == "skipped"}))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability-report", type=Path, metavar="FILE", help="write what the marked tests proved there")


def pytest_configure(config: pytest.Config) -> None:
    if (page := config.getoption("--reliability-report")) is not None:
        report = Report(config.invocation_params.dir / page, config.rootpath, worker=hasattr(config, "workerinput"))
        config.pluginmanager.register(report)
