"""What `evaluate` measured, as JSON, as a table, as a page with curves.

Importing this module loads nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SETTING = ("kind", "init", "frames", "steps")
"""What a row was made with."""
USUAL = {"frames": 5, "steps": 20}
"""K and T that are measured if no others are asked for."""
PANELS = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "mse": "MSE (less is better)",
    "fg_psnr": "fg PSNR (dB)",
    "fg_ssim": "fg SSIM",
    "face_ssim": "face SSIM",
    "lpips": "LPIPS (less is better)",
    "fid": "FID (less is better)",
}
"""The figures that are drawn, and their titles."""


class Report(dict[str, Any]):
    """The figures, as JSON has them: their names are those of `metrics.Scores`, and `lpips` and `fid` where they could
    be measured; null where nothing could be.

    clips     [{"clip": name, "references": [frames used, for the largest K], "methods": {method: row}}]
    mean      {method: row of means, with "clips": over how many}: over the clips of which all was measured; if there is
              none, over those that have the row
    failures  [{"clip": name, "type", "error", "remedy"}]: what could not be measured; "frames" names the K if others
              of that clip could
    notes     [sentence]: what to know when reading the figures
    options, version  what was measured
    weights   {init: sha256 of the weights it starts from, or null for nothing learned}

    A row holds `SETTING` and the figures: "kind" (the model's name, `warp` or `copy`), "init" (name or stem of the
    file), "frames" (K), "steps" (T). `warp` and `copy` have neither init nor steps: null. Methods are called by their
    kind, with what else tells them apart: `dance`, `warp K=5`, `dance meta K=5 T=20`.
    """

    @property
    def failures(self) -> list[dict[str, str]]:
        return list(self["failures"])

    def rows(self) -> list[dict[str, Any]]:
        """One flat record for each clip and method, the means last."""
        parts = [*self["clips"], {"clip": "mean", "methods": self["mean"]}]
        return [{"clip": p["clip"], "method": m} | figures for p in parts for m, figures in p["methods"].items()]

    def columns(self) -> list[str]:
        """The figures that are there, in their order."""
        from .metrics import FIGURES
        from .perceptual_metrics import FIGURES as PERCEPTUAL

        return [f for f in (*FIGURES, *PERCEPTUAL) if any(row.get(f) is not None for row in self.rows())]

    def markdown(self) -> str:
        """The rows as a table."""
        return _table(("clip", "method", *self.columns()), self.rows())

    def page(self) -> str:
        """All of it for people: the means as in MetaPix's Table 1, its curves, notes, failures, and all rows."""
        heads = {"kind": "method", "frames": "K", "steps": "T"}
        means = [{heads.get(k, k): v for k, v in row.items()} for row in self["mean"].values()]
        parts = ["# Evaluation", _table(("method", "init", "K", "T", "clips", *self.columns()), means)]
        parts += [f"![{title}]({name})" for name, (title, _, _) in self._curves().items()]
        failures = [f"{f['clip']}{_with(f)}: {f['error']}" for f in self.failures]
        for title, sentences in (("Notes", self["notes"]), ("Not measured", failures)):
            parts += [f"## {title}", "\n".join(f"- {sentence}" for sentence in sentences)] if sentences else []
        return "\n\n".join([*parts, "## All clips", self.markdown()]) + "\n"

    def save(self, folder: Path) -> None:
        """Write report.json, report.md and, where there are several K or T, k.png and t.png; each appears complete.

        Curves over K are those of the default T if it was measured, else of the largest; curves over T likewise.
        """
        from .folders import replace_file
        from .plots import curves

        folder.mkdir(exist_ok=True)
        self.save_json(folder / "report.json")
        replace_file(folder / "report.md", self.page().encode())
        for name, (title, x_label, panels) in self._curves().items():
            curves(folder / name, panels, title=title, x_label=x_label, log_x=x_label == "T", dashed=("warp", "copy"))

    def save_json(self, path: Path) -> None:
        """Write all figures; the file appears when it is complete."""
        from .folders import replace_file

        replace_file(path, (json.dumps(self, indent=2) + "\n").encode())

    def _curves(self) -> dict[str, tuple[str, str, Any]]:
        """File name → its title, the name of x, and what `plots.curves` draws."""
        found = {}
        rows = self["mean"].values()
        for name, letter, x, other, fixed in (
            ("k.png", "K", "frames", "T", "steps"),
            ("t.png", "T", "steps", "K", "frames"),
        ):
            xs = sorted({row[x] for row in rows} - {None})
            if len(xs) > 1:
                among = {row[fixed] for row in rows} - {None}
                at = USUAL[fixed] if USUAL[fixed] in among else max(among)
                panels = {
                    title: self._lines(figure, x, xs, fixed, at)
                    for figure, title in PANELS.items()
                    if figure in self.columns()
                }
                found[name] = f"Means over {letter} ({other} = {at})", letter, panels
        return found

    def _lines(self, figure: str, x: str, xs: list[int], fixed: str, at: int) -> dict[str, Any]:
        """Label → points of `figure` over the setting `x`, where `fixed` is `at`. Rows without a setting (the baselines
        have no T) are the same at all of its values."""
        lines: dict[str, dict[int, float | None]] = {}
        for row in self["mean"].values():
            if row[fixed] in (at, None):
                for place in xs if row[x] is None else [row[x]]:
                    lines.setdefault(row["init"] or row["kind"], {})[place] = row[figure]
        return {label: (sorted(line), [line[x] for x in sorted(line)]) for label, line in lines.items()}


def _with(failure: Mapping[str, Any]) -> str:
    return f" with K={failure['frames']}" if "frames" in failure else ""


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(key)) for key in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
