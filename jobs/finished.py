"""A finished run as people look at it: its rows, maps and images, without its model."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from explainer.preprocess import Preprocessing
from jobs.config import ConfigurationError
from jobs.images import input_of, may_be_local, stored_manifest
from jobs.options import read_options
from storage.images import Fetched, Reading, fetch
from storage.manifests import ManifestError
from storage.parts import PartsDamaged, read_whole
from storage.row_reader import RowReader
from storage.rows import RowSource
from storage.runs import NotARun, Run, finished_summary, open_run, part_name
from storage.trust import named

# A snapshot's row groups hold so many rows: fewer at once would read them several times.
ROWS_AT_ONCE = 4096
IMAGES_AT_ONCE = 64  # in memory together


@dataclass(frozen=True)
class Finished:
    """A run whose every row is written; `source` are its manifest's rows."""

    run: Run
    summary: Mapping[str, Any]
    source: RowSource
    reading: Reading

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a saliency map."""
        rows, columns = self.run.description["grid"]
        return int(rows), int(columns)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """How the run's images were cropped: which part of an image a map lies on."""
        stored: Mapping[str, Any] = self.run.description["fingerprint_of"]["preprocessing"]
        values: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()
        }
        return Preprocessing(**values)

    def explanations(self, row: int) -> list[dict[str, Any]]:
        """The rows of `explanations` about a row of the manifest, one for each target.

        Raises PartsDamaged where there are none, StorageUnavailable.
        """
        place = bisect_right(self._parts, row, key=self._first_row) - 1
        if place < 0:
            raise PartsDamaged(f"{self.run.root} has no part that begins with row {row} or before")
        index = self._parts[place]
        part = read_whole(self.run, index)
        found: list[dict[str, Any]] = part.filter(pc.equal(part["row"], row)).to_pylist()
        if not found:
            raise PartsDamaged(f"{self.run.root}: {part_name(index)} lacks row {row}")
        return found

    @cached_property
    def _parts(self) -> list[int]:
        return sorted(self.run.committed())

    def _first_row(self, index: int) -> int:
        """The first row of a part: how many it has may hang on the files that hold the images."""
        known = self._first_rows
        if index not in known:
            known[index] = int(self.run.read_part(index, ["row"])["row"][0].as_py())
        return known[index]

    @cached_property
    def _first_rows(self) -> dict[int, int]:
        return {}

    def files(self, rows: Sequence[int]) -> Iterator[tuple[int, Fetched]]:
        """The image files of rows of the manifest, which are rising, each with its own error.

        Raises StorageUnavailable, and ValueError where the manifest is no longer the run's.
        """
        start = 0
        with closing(RowReader(self.source)) as reader:
            while start < len(rows):
                stop = bisect_left(rows, rows[start] + ROWS_AT_ONCE)
                wanted = rows[start : min(stop, start + IMAGES_AT_ONCE)]
                table = reader.read(wanted[0], wanted[-1] + 1)
                chosen = table.take(pa.array([row - wanted[0] for row in wanted]))
                yield from zip(wanted, fetch(chosen, self.reading), strict=True)
                start += len(wanted)


def open_finished(url: str, input_storage: str | None, output_storage: str | None) -> Finished:
    """The run at `url`, which must be finished; the storages are JSON files of fsspec options.

    The run is read by those of `output_storage`, its images by those of `input_storage`. Raises
    ConfigurationError with all that is wrong; StorageUnavailable.
    """
    problems: list[str] = []
    options: dict[str, Any] = {}
    try:
        options = read_options(input_storage)
    except (OSError, ValueError) as error:
        problems.append(f"--input-storage: {error}")
    try:
        run = open_run(named(url, read_options(output_storage)))
        summary = finished_summary(run)
        source = stored_manifest(run, options).source(run.manifest)
    except (NotARun, ManifestError, OSError, ValueError, ImportError) as error:
        raise ConfigurationError([*problems, f"RUN: {error}"]) from error
    if problems:
        raise ConfigurationError(problems)
    asked = input_of(run)
    return Finished(
        run, summary, source, Reading(options, asked.uri_column, allow_local=may_be_local(asked))
    )
