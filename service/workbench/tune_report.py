"""What `fovea tune` tried, as text, JSON and a page with a picture of the trade-off. Formats; measures nothing."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson

from service.workbench import pages
from service.workbench.trials import Trial


def write(folder: Path, model: str, bound_ms: float, trials: Sequence[Trial], winner: Trial | None) -> None:
    """`report.json` and `report.html` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    report = {"model": model, "p99_ms": bound_ms, "trials": [asdict(trial) for trial in trials]}
    report["chosen"] = asdict(winner.candidate) if winner else None
    (folder / "report.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    (folder / "report.html").write_text(as_html(model, bound_ms, trials, winner), encoding="utf-8")


def as_text(trials: Sequence[Trial], winner: Trial | None) -> str:
    """The best of each candidate, the most throughput first."""
    lines = [f"{'':2}{'instances':>9} {'threads':>7} {'batch':>5} {'delay ms':>8} {'clients':>7} "
             f"{'images/s':>9} {'p50 ms':>7} {'p99 ms':>7} {'windows':>7}"]  # fmt: skip
    for trial in _ranked(trials):
        cells = " ".join(f"{cell:>{width}}" for cell, width in zip(_cells(trial), _WIDTHS, strict=True))
        lines.append(("* " if trial is winner else "  ") + cells)
    return "\n".join(lines)


_WIDTHS = (9, 7, 5, 8, 7, 9, 7, 7, 7)


def _ranked(trials: Sequence[Trial]) -> list[Trial]:
    """What was measured most comes first."""
    return sorted(trials, key=lambda trial: (-trial.windows, -(trial.best.rate if trial.best else 0.0)))


def _cells(trial: Trial) -> tuple[str, ...]:
    tried, best = trial.candidate, trial.best
    keys = (tried.instances, tried.intra_op_threads, tried.max_batch_size)
    named = (*(str(value) for value in keys), f"{tried.max_queue_delay_ms:g}")
    if best is None:
        return (*named, "-", "-", "-", "-", "-")
    figures = (f"{best.rate:.1f}", f"{best.p50_ms:.1f}", f"{best.p99_ms:.1f}")
    return (*named, str(best.clients), *figures, str(trial.windows))


def as_html(model: str, bound_ms: float, trials: Sequence[Trial], winner: Trial | None) -> str:
    """One file to open or to send."""
    head = ("", "instances", "threads", "batch", "delay ms", "clients", "images/s", "p50 ms", "p99 ms", "windows")
    sections = []
    if winner and winner.best:
        chosen = [("images a second", f"{winner.best.rate:.1f}"), ("p99", f"{winner.best.p99_ms:.1f} ms")]
        sections.append(pages.figures([*chosen, ("chosen", str(winner.candidate))]))
    sections.append(pages.section("Trade-off", pages.charts([_picture(bound_ms, trials, winner)])))
    rows = [("chosen" if trial is winner else "", *_cells(trial)) for trial in _ranked(trials)]
    sections.append(pages.section("Tried", pages.table(head, rows), note="The best of each that kept the bound."))
    return pages.page(f"{model} tuned", f"p99 at most {bound_ms:g} ms, on this machine, without HTTP", sections)


def _picture(bound_ms: float, trials: Sequence[Trial], winner: Trial | None) -> str:
    """Every window measured; the curve is the chosen candidate under more and more clients."""
    points = [(trial, point) for trial in trials for point in trial.points]
    most_ms = max([bound_ms * 1.2, *(min(point.p99_ms, bound_ms * 3.0) for _, point in points)])
    plot = pages.Plot((0.0, most_ms), (0.0, max([1.0, *(point.rate for _, point in points)]) * 1.05))
    plot.line([(bound_ms, 0.0), (bound_ms, max([1.0, *(point.rate for _, point in points)]))], dashed=True)
    for trial, point in points:
        if point.p99_ms <= most_ms:
            plot.dot(point.p99_ms, point.rate, size=3.0, title=f"{trial.candidate}, {point.clients} clients")
    if winner:
        plot.line([(point.p99_ms, point.rate) for point in winner.points if point.p99_ms <= most_ms])
        if winner.best:
            plot.dot(winner.best.p99_ms, winner.best.rate, size=6.0, title=str(winner.candidate), strong=True)
    title = "Up is more throughput, left is less waiting; the dashed line is the bound, the large dot what was chosen"
    return plot.figure(title, "p99 in ms", "images a second")
