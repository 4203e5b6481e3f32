"""Which images of which classes an audit looks at: one pass over a run's parts."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.parts import in_order
from storage.runs import Run

COLUMNS = ("row", "status", "label", "predicted", "target")
READERS = 16
PRUNED_AT = 2**18
# Images of other classes that cues are pasted into, spread evenly over the classes.
POOL = 128
# Of the classes that a class is mistaken for, the first so many, and so many of their images.
RIVAL_CLASSES, RIVALS = 3, 40


@dataclass(frozen=True)
class ClassImages:
    """A class's sampled images, as rows of the manifest in rising order.

    `explained`: those that are predicted as the class, and have a map of it. `discovery`: the half
    in which cues are looked for. `rivals`: images of the classes that it is mistaken for.
    """

    target: int
    rows: NDArray[np.int64]
    explained: NDArray[np.bool_]
    discovery: NDArray[np.bool_]
    rivals: "Recipients"


@dataclass(frozen=True)
class Recipients:
    """Images that are predicted as what they are, as rows of the manifest, and their classes."""

    rows: NDArray[np.int64]
    classes: NDArray[np.int64]

    def only(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "Recipients":
        """Some of them."""
        return Recipients(self.rows[chosen], self.classes[chosen])


@dataclass(frozen=True)
class Candidates:
    """Images with maps, and the class that each counts for: its label, else its prediction.

    `order` is a random number of each image, from its row and the audit's seed alone.
    """

    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    predicted: NDArray[np.int64]
    explained: NDArray[np.bool_]
    order: NDArray[np.uint64]

    @classmethod
    def joined(cls, parts: Iterable["Candidates"]) -> "Candidates":
        """Those of several parts."""
        every = list(parts)
        return cls(
            np.concatenate([part.rows for part in every]),
            np.concatenate([part.classes for part in every]),
            np.concatenate([part.predicted for part in every]),
            np.concatenate([part.explained for part in every]),
            np.concatenate([part.order for part in every]),
        )

    def only(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "Candidates":
        """Some of them."""
        return Candidates(
            self.rows[chosen],
            self.classes[chosen],
            self.predicted[chosen],
            self.explained[chosen],
            self.order[chosen],
        )

    def rank(self) -> NDArray[np.int64]:
        """Each image's place in the random order of its class, from 0."""
        by_class = np.lexsort((self.order, self.classes))
        classes = self.classes[by_class]
        first = np.searchsorted(classes, classes)
        rank = np.empty(len(classes), np.int64)
        rank[by_class] = np.arange(len(classes)) - first
        return rank

    def first(self, images: int) -> "Candidates":
        """At most so many of each class."""
        return self.only(self.rank() < images)


def candidates(run: Run, images: int, seed: int) -> Candidates:
    """At most `images` of each class of a run, drawn by `seed`. Raises StorageUnavailable."""

    def read(index: int) -> Candidates:
        return of_part(run.read_part(index, list(COLUMNS)), seed).first(images)

    found, rows = [of_part(_NOTHING, seed)], 0
    for part in in_order(read, sorted(run.committed()), READERS):
        found.append(part)
        rows += len(part.rows)
        if rows > PRUNED_AT + len(found[0].rows):  # seldom: each time all are sorted
            found, rows = [Candidates.joined(found).first(images)], 0
    return Candidates.joined(found).first(images)


def of_part(table: pa.Table, seed: int) -> Candidates:
    """The candidates among a part's rows, which have COLUMNS at least."""
    ok = table.filter(pc.equal(table["status"], "ok"))
    of = pc.coalesce(ok["label"], ok["predicted"])
    rows, classes, predicted = (
        column.to_numpy().astype(np.int64) for column in (ok["row"], of, ok["predicted"])
    )
    has_map = pc.and_(pc.equal(ok["predicted"], of), pc.equal(ok["target"], of)).to_numpy()
    unique, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    explained = np.zeros(len(unique), bool)
    np.logical_or.at(explained, inverse, has_map)
    order = random_order(unique, seed)
    return Candidates(unique, classes[first], predicted[first], explained, order)


def class_images(found: Candidates) -> list[ClassImages]:
    """The sampled images of each class, by class."""
    rank = found.rank()
    result = []
    for target in np.unique(found.classes):
        mine = np.flatnonzero(found.classes == target)
        mine = mine[np.argsort(found.rows[mine])]
        # Halves of the explained and of the others alike.
        halves = np.zeros(len(mine), bool)
        for group in (found.explained[mine], ~found.explained[mine]):
            members = np.flatnonzero(group)
            ordered = members[np.argsort(rank[mine[members]])]
            halves[ordered[::2]] = True
        near = recipients(found.only(np.isin(found.classes, rivals(found, int(target)))), RIVALS)
        rows, explained = found.rows[mine], found.explained[mine]
        result.append(ClassImages(int(target), rows, explained, halves, near))
    return result


def rivals(found: Candidates, target: int) -> NDArray[np.int64]:
    """The classes that images of a class are most often taken for, or whose images for it."""
    taken = found.predicted[(found.classes == target) & (found.predicted != target)]
    taking = found.classes[(found.predicted == target) & (found.classes != target)]
    names, counts = np.unique(np.concatenate([taken, taking]), return_counts=True)
    return names[np.lexsort((names, -counts))][:RIVAL_CLASSES]


def recipients(found: Candidates, most: int = POOL) -> Recipients:
    """Some rightly predicted images, as evenly over the classes as they are there."""
    right = found.only(found.explained)
    order = np.lexsort((right.order, right.rank()))[:most]
    chosen = order[np.argsort(right.rows[order])]
    return Recipients(right.rows[chosen], right.classes[chosen])


_NOTHING = pa.table(
    {name: pa.array([], pa.string() if name == "status" else pa.int64()) for name in COLUMNS}
)


def random_order(rows: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A random number for each row: SplitMix64 (Steele, Lea and Flood 2014) of row and seed."""
    with np.errstate(over="ignore"):
        state = rows.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))
