"""The image files of a run's rows, for exports that hold copies of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.export_plan import Exported
from storage.exports import ExportError
from storage.images import Fetched
from storage.locations import StorageUnavailable

# Image files in memory at the same time.
AT_ONCE = 128


@dataclass
class Copies:
    """Reads images again, and counts those that cannot be read now though the run explained them.

    `lost` holds by row why.
    """

    exported: Exported
    read: int = 0
    lost: dict[int, str] = field(default_factory=dict)

    def files(self, rows: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
        """Each row's file, None for one that cannot be read; rows are rising.

        Raises StorageUnavailable where the store fails, and once most of the run's images are lost.
        """
        for start in range(0, len(rows), AT_ONCE):
            for row, fetched in self.exported.finished.files(rows[start : start + AT_ONCE]):
                self._count(row, fetched)
                yield row, fetched.data
            self._refuse_loss(self.exported.explained // 2)

    def counts(self) -> Mapping[str, int]:
        """What is told at the end. Raises StorageUnavailable where more are lost than read: then
        the store is at fault, or the images are no longer there."""
        self._refuse_loss(self.read)
        return {"images not to be read now": len(self.lost)} if self.lost else {}

    def _refuse_loss(self, most: int) -> None:
        if len(self.lost) > most:
            why = next(iter(self.lost.values()))
            raise StorageUnavailable(
                f"{len(self.lost)} of {len(self.lost) + self.read} images that the run explained "
                f"cannot be read now, the first because of: {why}"
            )

    def _count(self, row: int, fetched: Fetched) -> None:
        if fetched.data is None:
            self.lost[row] = f"{fetched.status}: {fetched.error}"
        else:
            self.read += 1


def refuse_inner_images(exported: Exported) -> None:
    """Raise ExportError where images have no uri of their own, and are to be referred to."""
    if exported.config.images == "refer" and exported.finished.source.places:
        raise ExportError(
            "--images refer: the images of this run lie within other files (tar or Parquet), so "
            "they have no url of their own: give --images copy"
        )
