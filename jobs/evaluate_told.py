"""What is told of an evaluation: tables on the terminal, a table to read on, and a plot."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from explainer.evaluation import METRICS
from explainer.resampling import ADCC_OF_MEANS, Interval, Score
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


@dataclass(frozen=True)
class Evaluated:
    """What all numbers came to, and by row why images have none."""

    scores: Sequence[Score]
    left_out: Mapping[int, str]


def tell(
    console: Console,
    evaluation: Evaluation,
    found: Evaluated | None,
    attempt: Attempt,
    images_missing: int,
) -> None:
    """Print the tables and where they are, or what is missing."""
    if found is not None:
        _tell_found(console, found)
    console.print(f"numbers, intervals and plot: {evaluation.run.root.shown}", markup=False)
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


def _tell_found(console: Console, found: Evaluated) -> None:
    for metrics in TOGETHER:
        _tell_table(console, found.scores, metrics)
    if found.scores:
        images = max(score.estimate.images for score in found.scores)
        console.print(f"± half of a 95% interval over {images} images")
    if found.left_out:
        row, why = next(iter(found.left_out.items()))
        console.print(
            f"{len(found.left_out)} images are left out, such as row {row} of the manifest: {why}",
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


def _cell(estimate: Interval | None) -> str:
    if estimate is None:
        return ""
    told = f"{estimate.value:.2f}"
    return f"{told} ±{estimate.half:.2f}" if estimate.images > 1 else told


def table(scores: Sequence[Score]) -> pa.Table:
    """The scores as methods.parquet has them."""
    columns = {
        "method": [score.method for score in scores],
        "metric": [score.metric for score in scores],
        "better": [BETTER[score.metric] for score in scores],
        "images": [score.estimate.images for score in scores],
        "reference": [scores[0].method] * len(scores),
        **_interval_columns(("value", "low", "high"), [score.estimate for score in scores]),
        **_interval_columns(
            ("difference", "difference_low", "difference_high"),
            [score.difference for score in scores],
        ),
    }
    schema = evaluations.methods()
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _interval_columns(
    names: Sequence[str], intervals: Sequence[Interval | None]
) -> dict[str, pa.Array]:
    """Value and ends of intervals, null where there is none or they are NaN."""
    rows = [
        (None, None, None) if each is None else (each.value, each.low, each.high)
        for each in intervals
    ]
    columns = zip(*rows, strict=True)
    return {
        name: pa.array(column, pa.float64(), from_pandas=True)
        for name, column in zip(names, columns, strict=True)
    }


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
    estimates = [score.estimate for score in scores]
    values = [estimate.value for estimate in estimates]
    # The ends of a percentile interval need not enclose the value.
    lows = [max(0.0, estimate.value - estimate.low) for estimate in estimates]
    highs = [max(0.0, estimate.high - estimate.value) for estimate in estimates]
    reference = [score.estimate.value for score in scores if score.method == methods[0]]
    for value in reference:
        axes.axvline(value, color="0.8", linewidth=1)
    axes.errorbar(values, places, xerr=[lows, highs], fmt="o", markersize=4, capsize=2)
    if metric == "cost":
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.5, len(methods) - 0.5)
    axes.set_yticks(range(len(methods)), list(reversed(methods)))
    axes.set_title(f"{TITLES[metric]} {ARROWS[BETTER[metric]]}", fontsize=10)
    axes.tick_params(labelsize=8)
