"""What is told of an evaluation: tables on the terminal, a table to read on, and a plot."""

import io
from collections.abc import Sequence

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from explainer.audit.significance import Estimate
from explainer.evaluation import ADCC_OF_MEANS, METRICS, Score
from jobs.summary import Attempt
from storage import evaluations
from storage.evaluations import Evaluation

TITLES = {
    ADCC_OF_MEANS: "ADCC of means",
    "adcc": "ADCC",
    "drop": "Drop",
    "increase": "Increase",
    "coherency": "Coherency",
    "complexity": "Complexity",
    "insertion": "Insertion",
    "deletion": "Deletion",
    "most_first": "Most first",
    "least_first": "Least first",
    "like_head": "Like head",
    "like_half": "Like half",
    "like_all": "Like all",
    "pointing": "Pointing",
    "mass": "Mass",
    "top_tenth": "Top tenth",
    "cost": "Cost",
}
TOGETHER = (
    (ADCC_OF_MEANS, "adcc", "drop", "coherency", "complexity"),
    ("insertion", "deletion", "most_first", "least_first", "cost"),
    ("like_head", "like_half", "like_all"),
    ("pointing", "mass", "top_tenth"),
)
BETTER = {**{name: metric.better for name, metric in METRICS.items()}, ADCC_OF_MEANS: "higher"}
ARROWS = {"higher": "↑", "lower": "↓", None: ""}


def tell(
    console: Console,
    evaluated: Evaluation,
    scores: Sequence[Score],
    attempt: Attempt,
    images_missing: int,
) -> None:
    """Print the tables and where they are, or what is missing."""
    for metrics in TOGETHER:
        _tell_table(console, scores, metrics)
    if scores:
        console.print(f"± half of a 95% interval over {scores[0].estimate.of} images")
    console.print(f"numbers, intervals and plot: {evaluated.run.root.shown}", markup=False)
    if attempt.problem is not None:
        console.print(attempt.problem, markup=False)
    for failure in attempt.failures:
        console.print(f"a shard left undone: {failure.error}", markup=False)
    if images_missing:
        console.print(
            f"incomplete: {images_missing} images are not yet judged; the same command does the "
            "rest",
            markup=False,
        )


def _tell_table(console: Console, scores: Sequence[Score], metrics: Sequence[str]) -> None:
    found = {(score.method, score.metric): score.estimate for score in scores}
    shown = [metric for metric in metrics if any(score.metric == metric for score in scores)]
    if not shown:
        return
    titles = [f"{TITLES[metric]} {ARROWS[BETTER[metric]]}" for metric in shown]
    table = Table(
        Column("method", no_wrap=True),
        *titles,
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for method in dict.fromkeys(score.method for score in scores):
        cells = [found.get((method, metric)) for metric in shown]
        table.add_row(Text(method), *(_cell(cell) for cell in cells))
    console.print(table)


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    half = (estimate.high - estimate.low) / 2
    return f"{estimate.value:.2f} ±{half:.2f}"


def table(scores: Sequence[Score]) -> pa.Table:
    """The scores as methods.parquet has them."""
    rows = [
        {
            "method": score.method,
            "metric": score.metric,
            "better": BETTER[score.metric],
            "value": score.estimate.value,
            "low": score.estimate.low,
            "high": score.estimate.high,
            "images": score.estimate.of,
            "difference": score.difference.value,
            "difference_low": score.difference.low,
            "difference_high": score.difference.high,
        }
        for score in scores
    ]
    return pa.Table.from_pylist(rows, schema=evaluations.methods())


def plot(scores: Sequence[Score]) -> bytes:
    """A panel a metric with each method's mean and interval, as PNG."""
    metrics = [name for name in TITLES if any(score.metric == name for score in scores)]
    methods = list(dict.fromkeys(score.method for score in scores))
    columns = 4
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(3.6 * columns, (0.7 + 0.22 * len(methods)) * rows), dpi=110)
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes, metric in zip(panels, metrics, strict=False):
        _panel(axes, metric, [score for score in scores if score.metric == metric], methods)
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _panel(axes: Axes, metric: str, scores: Sequence[Score], methods: Sequence[str]) -> None:
    """The first method at the top, and its mean as a line to hold the others against."""
    places = [len(methods) - 1 - methods.index(score.method) for score in scores]
    values = [score.estimate.value for score in scores]
    lows = [score.estimate.value - score.estimate.low for score in scores]
    highs = [score.estimate.high - score.estimate.value for score in scores]
    axes.axvline(values[0], color="0.8", linewidth=1)
    axes.errorbar(values, places, xerr=[lows, highs], fmt="o", markersize=4, capsize=2)
    if metric == "cost":
        axes.set_xscale("log")
    axes.set_yticks(range(len(methods)), list(reversed(methods)))
    axes.set_title(f"{TITLES[metric]} {ARROWS[BETTER[metric]]}", fontsize=10)
    axes.tick_params(labelsize=8)
