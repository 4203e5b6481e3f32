"""One pass over a run's parts for its report: who is taken for whom, and which maps stand out."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from explainer.drift import correlations
from storage import schema
from storage.parts import in_order
from storage.runs import Run

READERS = 8
EXEMPLARS, FAILURES = 3, 5
OF_IMAGE = ["row", "image_id", "status", "error", "label", "label_name", "predicted", "target_rank"]
OF_MAP = ["predicted_name", "probability", "target", "saliency"]
MEANT = ["target_probability", "border_mass", "entropy"]
Grid = tuple[int, int]
Key = tuple[int, int]  # the manifest's row, and the class that a map explains


class Pair(NamedTuple):
    """What an image is labelled, and what it is called; `label` is None where the label is no class
    of the model."""

    label: int | None
    label_name: str | None
    predicted: int


@dataclass(frozen=True)
class Shown:
    """An image with its map [rows, columns] in [0, 1], as the report shows it.

    `agreement` is the correlation of the map with the mean of its class's; 0 where it is constant.
    """

    row: int
    image_id: str
    label_name: str | None
    predicted_name: str
    probability: float
    target: int
    saliency: NDArray[np.float32]
    agreement: float


@dataclass
class OfClass:
    """What the maps that explain a class add up to, and those that agree most and least with it."""

    maps: int = 0
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    most: list[Shown] = field(default_factory=list)
    least: list[Shown] = field(default_factory=list)

    def add(self, other: "OfClass") -> None:
        """Add the maps of other parts."""
        self.maps += other.maps
        self.sums = self.sums + other.sums
        self.most = heapq.nsmallest(EXEMPLARS, self.most + other.most, key=_from_the_most)
        self.least = heapq.nsmallest(EXEMPLARS, self.least + other.least, key=_from_the_least)

    @property
    def means(self) -> dict[str, float]:
        """Means over the maps."""
        names = ("agreement", *MEANT)
        return {n: float(v / self.maps) for n, v in zip(names, self.sums, strict=True)}

    def exemplars(self, most: int) -> tuple[list[Shown], list[Shown]]:
        """At most so many of the maps that agree most, and of the others that agree least."""
        agreeing = self.most[:most]
        shown = {(image.row, image.target) for image in agreeing}
        others = [image for image in self.least if (image.row, image.target) not in shown]
        return agreeing, others[:most]


@dataclass
class Scan:
    """What a report needs of a run's rows, beside the class heatmaps.

    `pairs` counts images by label and prediction, `failures` holds by status a few images and their
    errors, `wanted` the images that were asked for, by row and target, `digests` the parts'.
    """

    classes: dict[int, OfClass] = field(default_factory=lambda: defaultdict(OfClass))
    pairs: Counter[Pair] = field(default_factory=Counter)
    names: dict[int, str] = field(default_factory=dict)
    failures: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    wanted: dict[tuple[int, int], Shown] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """sha256, as hex, over the parts' content digests in order."""
        return sha256(b"".join(self.digests)).hexdigest()

    def add(self, other: "Scan") -> None:
        """Add what comes after."""
        for target, of_class in other.classes.items():
            self.classes[target].add(of_class)
        self.pairs.update(other.pairs)
        self.names.update(other.names)
        self.wanted.update(other.wanted)
        self.digests += other.digests
        for status, images in other.failures.items():
            self.failures[status] = (self.failures[status] + images)[:FAILURES]


def scan(run: Run, grid: Grid, means: Mapping[int, NDArray[Any]], wanted: Collection[Key]) -> Scan:
    """Read every part once. `means` are the classes' mean maps [cells], `wanted` images by row and
    target, which are kept, and with them their rows' first targets.

    Raises StorageUnavailable.
    """
    result = Scan()
    read = partial(_scan_part, run, grid, means, frozenset(wanted))
    for of_part in in_order(read, sorted(run.committed()), READERS):
        result.add(of_part)
    return result


def _scan_part(
    run: Run, grid: Grid, means: Mapping[int, NDArray[Any]], wanted: frozenset[Key], index: int
) -> Scan:
    table = run.read_part(index, OF_IMAGE + OF_MAP + MEANT)
    result = scan_table(table, grid, means, wanted)
    result.digests.append(table.schema.metadata[schema.CONTENT_DIGEST.encode()])
    return result


def scan_table(
    table: pa.Table, grid: Grid, means: Mapping[int, NDArray[Any]], wanted: Collection[Key]
) -> Scan:
    """What the rows of one part add."""
    result = Scan()
    first = table.filter(pc.fill_null(pc.equal(table["target_rank"], 0), True))
    known = first.filter(pc.is_valid(first["predicted"]))
    pairs = zip(*(known[name].to_pylist() for name in Pair._fields), strict=True)
    result.pairs.update(Pair(*pair) for pair in pairs)
    _note_failures(first.filter(pc.not_equal(first["status"], "ok")), result)
    explained = table.filter(pc.equal(table["status"], "ok"))
    if not len(explained):
        return result
    called = explained.select(["predicted", "predicted_name"])
    named = called.group_by(called.column_names).aggregate([]).to_pydict()
    result.names = dict(zip(*named.values(), strict=True))
    maps = schema.maps_to_numpy(explained["saliency"], (1, grid[0] * grid[1]))[:, 0]
    targets = explained["target"].to_numpy()
    agreement = agreements(maps, targets, means)
    numbers = [explained[name].to_numpy() for name in MEANT]
    values = np.stack([agreement, *numbers], axis=1).astype(np.float64)
    show = partial(_shown, explained, maps.reshape(-1, *grid), agreement)
    for target, places in _by_class(targets):
        ranked = places[np.argsort(agreement[places], kind="stable")]
        least, most = ranked[:EXEMPLARS], ranked[::-1][:EXEMPLARS]
        result.classes[target] = OfClass(
            len(places),
            values[places].sum(0),
            [show(int(i)) for i in most],
            [show(int(i)) for i in least],
        )
    if wanted:
        rows, ranks = explained["row"].to_numpy(), explained["target_rank"].to_numpy()
        found = np.isin(rows, list({row for row, _ in wanted}))
        # Of an image's many targets that one alone that is asked for, or the first.
        for place in np.flatnonzero(found):
            if ranks[place] and (int(rows[place]), int(targets[place])) not in wanted:
                continue
            result.wanted[int(rows[place]), int(targets[place])] = show(int(place))
    return result


def agreements(
    maps: NDArray[Any], targets: NDArray[Any], means: Mapping[int, NDArray[Any]]
) -> NDArray[np.float64]:
    """How each map [n, cells] correlates with its class's mean map; 0 where one is constant, or
    there is no mean."""
    nothing = np.zeros(maps.shape[1])
    own = np.stack([nothing, *(means.get(target, nothing) for target in targets.tolist())])[1:]
    both = (each.astype(np.float64)[:, None] for each in (maps, own))
    return np.asarray(np.nan_to_num(correlations(*both)))


def _note_failures(failed: pa.Table, result: Scan) -> None:
    columns = (failed[name].to_pylist() for name in ("status", "image_id", "error"))
    for status, image_id, error in zip(*columns, strict=True):
        if len(result.failures[status]) < FAILURES:
            result.failures[status].append((image_id, error or ""))


def _by_class(targets: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each class, and the places of its maps, rising."""
    order = np.argsort(targets, kind="stable")
    for places in np.split(order, np.flatnonzero(np.diff(targets[order])) + 1):
        yield int(targets[places[0]]), places


def _shown(
    table: pa.Table, maps: NDArray[Any], agreement: NDArray[np.float64], place: int
) -> Shown:
    row = table.slice(int(place), 1).drop_columns(["saliency"]).to_pylist()[0]
    names = ("row", "image_id", "label_name", "predicted_name", "probability", "target")
    return Shown(
        **{name: row[name] for name in names},
        saliency=maps[place].astype(np.float32),
        agreement=float(agreement[place]),
    )


def _from_the_most(shown: Shown) -> tuple[float, int]:
    return -shown.agreement, shown.row


def _from_the_least(shown: Shown) -> tuple[float, int]:
    return shown.agreement, shown.row
