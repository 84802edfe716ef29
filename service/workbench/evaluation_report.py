"""An evaluation as text for a terminal, as JSON, and as a page with pictures. Formats; measures nothing."""

from collections.abc import Sequence
from typing import Any

from service.workbench import pages
from service.workbench.evaluation import Comparison, Evaluation
from service.workbench.fitting import Fitted
from service.workbench.measures import CONFIDENCE_BINS, TOP_K, ClassScore, Tally

_MOST_LINES = 30  # classes in a terminal, and in a confusion matrix that can be read
_WORST_CLASSES = 15
_MOST_PAIRS = 40


def as_json(first: Evaluation, comparison: Comparison | None, fitted: Fitted | None) -> dict[str, Any]:
    """Everything that was measured."""
    report = _measured(first)
    if comparison:
        report["against"] = _measured(comparison.second) | {
            "agreement": comparison.agreement,
            "only_first_right": comparison.only_first,
            "only_second_right": comparison.only_second,
            "p_value": comparison.p_value,
        }
    if fitted:
        changes = {change.name: {"before": change.before, "after": change.after} for change in fitted.changes}
        report["fitted"] = {"images": fitted.images, "output": list(fitted.lines), "held_out": changes}
    return report


def _measured(evaluation: Evaluation) -> dict[str, Any]:
    tally = evaluation.tally
    edges = [place / CONFIDENCE_BINS for place in range(CONFIDENCE_BINS + 1)]
    return {
        "model": evaluation.described.name,
        "version": str(evaluation.described.version),
        "task": evaluation.described.task,
        "images": tally.images,
        "errors": [{"file": file, "error": error} for file, error in evaluation.errors],
        "accuracy": tally.accuracy,
        f"top_{TOP_K}_accuracy": tally.top_k_accuracy,
        "classes": [score._asdict() for score in tally.classes],
        "averages": [score._asdict() for score in tally.averages],
        "confusion": [
            {"truth": tally.labels[truth], "predicted": tally.labels[predicted], "images": images}
            for (truth, predicted), images in sorted(tally.confusion.items())
        ],
        "calibration": {
            "expected_calibration_error": tally.expected_calibration_error,
            "bins": [each._asdict() for each in tally.bins],
        },
        "confidence": {"edges": edges, "images": tally.confidences.tolist()},
        "worst_mistakes": [
            {
                "file": mistake.file,
                "truth": [tally.labels[index] for index in mistake.truth],
                "predicted": tally.labels[mistake.predicted],
                "score": mistake.score,
            }
            for mistake in tally.mistakes
        ],
    }


def as_text(first: Evaluation, comparison: Comparison | None, fitted: Fitted | None) -> str:
    """For a terminal."""
    tally = first.tally
    lines = [f"{first.described}: {tally.images:,} images, {tally.errors:,} failed{_rate(first)}", ""]
    lines += _class_lines(tally)
    lines += ["", f"top-{TOP_K} accuracy {tally.top_k_accuracy:.4f} · "
              f"expected calibration error {tally.expected_calibration_error:.4f}"]  # fmt: skip
    if comparison:
        lines += ["", *_comparison_lines(comparison)]
    if fitted:
        lines += ["", f"fitted on half of {fitted.images:,} images; on the other half:"]
        lines += [f"  {each.name}: {each.before:.4f} -> {each.after:.4f}" for each in fitted.changes]
        lines += ["  in model.toml, under [output]:", *(f"    {line}" for line in fitted.lines)]
    return "\n".join(lines)


def _rate(evaluation: Evaluation) -> str:
    answered = evaluation.tally.images / evaluation.seconds if evaluation.seconds else 0.0
    return f", {answered:,.0f} a second" if answered else ""


def _class_lines(tally: Tally) -> list[str]:
    """The table that scikit-learn prints; of many classes only the worst."""
    shown = tally.classes
    title = ""
    if len(shown) > _MOST_LINES:
        shown = sorted(shown, key=lambda score: (score.f1, -score.support))[:_WORST_CLASSES]
        title = f"the {len(shown)} worst of {len(tally.classes)} classes"
    width = max([len(score.label) for score in shown] + [len("weighted avg"), len(title)])
    lines = [f"{title:>{width}}  {'precision':>9} {'recall':>9} {'f1-score':>9} {'support':>9}", ""]
    lines += [_score_line(score, width) for score in shown]
    name = "exact match" if tally.several else "accuracy"
    lines += ["", f"{name:>{width}}  {'':>9} {'':>9} {tally.accuracy:>9.4f} {tally.images:>9}"]
    return lines + [_score_line(score, width) for score in tally.averages]


def _score_line(score: ClassScore, width: int) -> str:
    return f"{score.label:>{width}}  {score.precision:>9.4f} {score.recall:>9.4f} {score.f1:>9.4f} {score.support:>9}"


def _comparison_lines(comparison: Comparison) -> list[str]:
    first, second = comparison.first, comparison.second
    difference = (first.tally.accuracy - second.tally.accuracy) * 100.0
    return [
        f"{first.described} {first.tally.accuracy:.4f} against {second.described} {second.tally.accuracy:.4f}: "
        f"{difference:+.2f} points",
        f"they agree on {comparison.agreement:.2%}; right alone: {first.described} {comparison.only_first:,}, "
        f"{second.described} {comparison.only_second:,} (p = {comparison.p_value:.3g}, McNemar)",
    ]


def as_html(first: Evaluation, comparison: Comparison | None, fitted: Fitted | None) -> str:
    """One file to open or to send."""
    tally = first.tally
    sections = [_headline(tally)]
    if comparison:
        sections.append(pages.section("Against " + str(comparison.second.described), _comparison_table(comparison)))
    if fitted:
        sections.append(_fitted_section(fitted))
    sections.append(_mistakes(tally))
    sections.append(_calibration(tally))
    if not tally.several:
        sections.append(_confusion(tally))
    sections.append(_classes(tally))
    if first.errors:
        rows = first.errors[:_MOST_PAIRS]
        sections.append(pages.section(f"{len(first.errors):,} images failed", pages.table(("file", "error"), rows)))
    subtitle = f"{tally.images:,} images, {first.described.task}, {len(tally.labels):,} labels"
    return pages.page(f"{first.described} evaluated", subtitle, sections)


def _headline(tally: Tally) -> str:
    averages = {score.label: score for score in tally.averages}
    macro = averages.get("macro avg")
    return pages.figures(
        [
            ("exact match" if tally.several else "accuracy", f"{tally.accuracy:.2%}"),
            (f"top-{TOP_K} accuracy", f"{tally.top_k_accuracy:.2%}"),
            ("macro F1", f"{macro.f1:.4f}" if macro else "-"),
            ("calibration error", f"{tally.expected_calibration_error:.4f}"),
            ("failed", f"{tally.errors:,}"),
        ]
    )


def _comparison_table(comparison: Comparison) -> str:
    first, second = comparison.first, comparison.second
    names = ("", str(first.described), str(second.described))
    lines = [
        ("accuracy", f"{first.tally.accuracy:.2%}", f"{second.tally.accuracy:.2%}"),
        (f"top-{TOP_K} accuracy", f"{first.tally.top_k_accuracy:.2%}", f"{second.tally.top_k_accuracy:.2%}"),
        ("calibration error", *(f"{each.tally.expected_calibration_error:.4f}" for each in (first, second))),
        ("right where the other is wrong", f"{comparison.only_first:,}", f"{comparison.only_second:,}"),
    ]
    says = f"They agree on {comparison.agreement:.2%}. McNemar's exact test: p = {comparison.p_value:.3g}."
    return pages.table(names, lines) + f"<p>{says}</p>"


def _fitted_section(fitted: Fitted) -> str:
    lines = [(each.name, f"{each.before:.4f}", f"{each.after:.4f}") for each in fitted.changes]
    note = f"Fitted on half of {fitted.images:,} images, judged on the other half. " + "; ".join(fitted.lines)
    return pages.section("Fitted", pages.table(("", "before", "after"), lines), note=note)


def _mistakes(tally: Tally) -> str:
    items = [
        pages.shot(
            mistake.file,
            " | ".join(tally.labels[index] for index in mistake.truth) or "no label",
            f"taken for {tally.labels[mistake.predicted]}, {mistake.score:.3f}",
        )
        for mistake in tally.mistakes
    ]
    if not items:
        return pages.section("Worst mistakes", note="There is none.")
    return pages.section("Worst mistakes", pages.shots(items), note="The surest first; above, what it is.")


def _calibration(tally: Tally) -> str:
    plot = pages.Plot((0.0, 1.0), (0.0, 1.0))
    plot.line([(0.0, 0.0), (1.0, 1.0)], dashed=True)
    plot.line([(each.confidence, each.accuracy) for each in tally.bins])
    largest = max((each.images for each in tally.bins), default=1)
    for each in tally.bins:
        size = 2.5 + 6.0 * (each.images / largest) ** 0.5
        plot.dot(each.confidence, each.accuracy, size=size, title=f"{each.images:,} images, {each.accuracy:.3f} right")
    edges = [place / CONFIDENCE_BINS for place in range(CONFIDENCE_BINS + 1)]
    shares = (100.0 * tally.confidences / max(1, int(tally.confidences.sum()))).tolist()
    return pages.section(
        "Calibration",
        pages.charts(
            [
                plot.figure("Reliability: on the dashed line scores are probabilities", "best score", "share right"),
                pages.bars("How sure it is", edges, shares, "best score", "% of images"),
            ]
        ),
    )


def _confusion(tally: Tally) -> str:
    occurring = sorted({index for pair in tally.confusion for index in pair})
    if len(occurring) <= _MOST_LINES:
        counts = [[tally.confusion.get((truth, predicted), 0) for predicted in occurring] for truth in occurring]
        labels = [tally.labels[index] for index in occurring]
        note = "Rows are what it is, columns what it was taken for."
        return pages.section("Confusion", pages.matrix(labels, counts), note=note)
    return pages.section("Most confused", pages.table(("is", "taken for", "images"), _pairs(tally)))


def _pairs(tally: Tally) -> list[tuple[str, str, str]]:
    wrong = [(images, pair) for pair, images in tally.confusion.items() if pair[0] != pair[1]]
    most = sorted(wrong, key=lambda entry: (-entry[0], entry[1]))[:_MOST_PAIRS]
    return [(tally.labels[truth], tally.labels[predicted], f"{images:,}") for images, (truth, predicted) in most]


def _classes(tally: Tally) -> str:
    def cells(score: ClassScore) -> Sequence[str]:
        numbers = (f"{value:.4f}" for value in (score.precision, score.recall, score.f1))
        return (score.label, *numbers, f"{score.support:,}")

    lines = [cells(score) for score in [*tally.averages, *tally.classes]]
    return pages.section("Classes", pages.table(("label", "precision", "recall", "F1", "images"), lines))
