"""What changed of each class from one run to another: its accuracy, its heatmap and its maps."""

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from explainer.audit.significance import benjamini_hochberg
from explainer.drift import correlations, heatmap_drift, maps_drift
from jobs.aggregate import ClassHeatmap, read_means
from jobs.compare_findings import ClassKey
from jobs.comparison import Accuracy, ClassComparison, Heatmaps, Maps, accuracy_of
from jobs.map_sample import Drawn, MapSample, maps_of
from storage.pairs import Join, Pairs
from storage.runs import Run

Grid = tuple[int, int]


@dataclass(frozen=True)
class ClassKeys:
    """Which class of one run is which of the other: by index where both have one class list, else
    by name, unless that is of two classes of a run."""

    is_one_list: bool
    ambiguous: tuple[str, ...]

    @classmethod
    def of(cls, a: Run, b: Run, heatmaps: tuple[pa.Table, pa.Table]) -> "ClassKeys":
        """From run.json, and the names of the classes that have a heatmap."""
        lists = [run.description["fingerprint_of"]["model"].get("class_names") for run in (a, b)]
        is_one_list = lists[0] is not None and lists[0] == lists[1]
        twice: set[str] = set()
        for table in () if is_one_list else heatmaps:
            counts = Counter(each.name for each in read_means(table))
            twice |= {name for name, count in counts.items() if count > 1}
        return cls(is_one_list, tuple(sorted(twice)))

    def key(self, side: str, target: int, name: str) -> Hashable:
        """What is equal for the same class of both runs."""
        if self.is_one_list:
            return target
        return (side, target) if name in self.ambiguous else name

    @property
    def both(self) -> tuple[ClassKey, ClassKey]:
        """`key` of either run."""
        return (
            lambda target, name: self.key("a", target, name),
            lambda target, name: self.key("b", target, name),
        )


def draw(rows: pa.Table, sample: MapSample, join: Join) -> pa.Table:
    """Add joined rows' maps to the sample: the rows with the maps' correlation in their place."""
    found = np.full(len(rows), np.nan)
    if join.has_maps:
        has_maps = rows["has_maps"].to_numpy()
        both = rows.filter(rows["has_maps"])
        a, b = (maps_of(both[name], join.cells) for name in ("map_a", "map_b"))
        found[has_maps] = correlations(a[:, None], b[:, None])
        sample.add(both["target_a"].to_numpy(), Drawn(both["draw"].to_numpy(), a, b))
    correlation = pa.array(found, pa.float32(), from_pandas=True)
    return rows.drop_columns(["map_a", "map_b"]).append_column("map_correlation", correlation)


def compare_classes(
    pairs: Pairs,
    sample: MapSample,
    heatmaps: tuple[pa.Table, pa.Table],
    grids: tuple[Grid, Grid],
    keys: ClassKeys,
) -> list[ClassComparison]:
    """All classes that a run explains or a label names, the largest change of accuracy first."""
    names = pairs.names()
    means = [
        {keys.key(side, of.target, of.name): of for of in read_means(table)}
        for side, table in zip("ab", heatmaps, strict=True)
    ]
    told = {k: of.name for side in reversed(means) for k, of in side.items()}
    outcomes = {}
    for target, (label, counts) in pairs.outcomes_of_classes().items():
        name = names[0].get(target, label)
        number = keys.key("a", target, name)
        outcomes[number] = accuracy_of(counts)
        told.setdefault(number, name)
    accuracies = _over_all(outcomes)
    drifts = _maps(pairs, sample, grids[0], keys, names[0]) if grids[0] == grids[1] else {}
    compared = [
        ClassComparison(
            name=name,
            accuracy=accuracies.get(number),
            heatmaps=_heatmaps(means[0].get(number), means[1].get(number), grids),
            maps=drifts.get(number),
        )
        for number, name in told.items()
    ]
    return sorted(compared, key=_change, reverse=True)


def _change(of: ClassComparison) -> tuple[float, float, str]:
    accuracy = abs(of.accuracy.difference.value) if of.accuracy else 0.0
    return accuracy, of.maps.drift.moved if of.maps else 0.0, of.name


def _over_all(outcomes: Mapping[Hashable, Accuracy]) -> dict[Hashable, Accuracy]:
    q_values = benjamini_hochberg([of.p_value for of in outcomes.values()])
    return {
        number: replace(of, q_value=q)
        for (number, of), q in zip(outcomes.items(), q_values, strict=True)
    }


def _heatmaps(
    a: ClassHeatmap | None, b: ClassHeatmap | None, grids: tuple[Grid, Grid]
) -> Heatmaps | None:
    if a is None or b is None or grids[0] != grids[1]:
        return None
    one, other = (each.mean.reshape(grids[0]) for each in (a, b))
    return Heatmaps(a.count, b.count, heatmap_drift(one, other))


def _maps(
    pairs: Pairs, sample: MapSample, grid: Grid, keys: ClassKeys, names: Mapping[int, str]
) -> dict[Hashable, Maps]:
    """Drift of maps of the same images, with q-values over all classes."""
    found: dict[Hashable, Maps] = {}
    for target, (images, median) in pairs.correlations_of_classes().items():
        drawn = sample.of(target)
        if drawn is None:
            continue
        a, b = (maps.astype(np.float32).reshape(-1, *grid) for maps in (drawn.a, drawn.b))
        drift = maps_drift(a, b, seed=target)
        number = keys.key("a", target, names[target])
        found[number] = Maps(images, median, len(a), drift, q_value=1.0)
    q_values = benjamini_hochberg([of.drift.p_value for of in found.values()])
    return {
        number: replace(of, q_value=q)
        for (number, of), q in zip(found.items(), q_values, strict=True)
    }
