"""Images of a manifest by their ids: one pass over its rows, in memory that does not grow."""

from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from storage.rows import RowSource

MOST_ALIKE = 3
# Of Jaro and Winkler's similarity, which is 1 for equal texts.
LEAST_ALIKE = 0.8


def rows_of_ids(source: RowSource, ids: Sequence[str]) -> dict[str, int]:
    """The rows of the image_ids that the manifest has; reading ends with the last that is found.

    Raises ValueError where the manifest cannot be read as it was, StorageUnavailable.
    """
    wanted = pa.array(ids, pa.string())

    def read() -> dict[str, int]:
        found: dict[str, int] = {}
        start = 0
        for table in source.tables():
            places = pc.index_in(table["image_id"], wanted)
            for place in pc.indices_nonzero(places.is_valid()).to_pylist():
                found[ids[places[place].as_py()]] = start + place
            if len(found) == len(ids):
                break
            start += len(table)
        return found

    return source.attempt(read)


def alike(source: RowSource, ids: Sequence[str]) -> dict[str, list[str]]:
    """For each of some texts the image_ids that it may have been meant as, the likeliest first.

    Those that end with the text or hold it come first, then those that differ by a few letters.
    Raises as `rows_of_ids`.
    """

    def read() -> dict[str, list[str]]:
        best: dict[str, list[tuple[int, float, str]]] = {each: [] for each in ids}
        # Ids are data: nothing in them reaches a file.
        database = duckdb.connect(config={"threads": "1", "enable_external_access": "false"})
        for table in source.tables():
            database.register("manifest", table.select(["image_id"]))
            for each in ids:
                found = database.execute(_ALIKE, {"text": each}).fetchall()
                best[each] = sorted(best[each] + found)[:MOST_ALIKE]
            database.unregister("manifest")
        return {each: [image_id for *_, image_id in found] for each, found in best.items()}

    return source.attempt(read)


_ALIKE = f"""
    SELECT CASE WHEN ends_with(image_id, $text) THEN 0 WHEN contains(image_id, $text) THEN 1 ELSE 2
           END AS distance, -jaro_winkler_similarity(image_id, $text) AS unlike, image_id
    FROM manifest WHERE $text != '' AND (distance < 2 OR unlike <= -{LEAST_ALIKE})
    ORDER BY ALL LIMIT {MOST_ALIKE}
"""
