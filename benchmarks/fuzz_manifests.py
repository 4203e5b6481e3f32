"""Files that list or hold images, as hypothesis draws them: odd tables, odd texts."""

import io
import json
from dataclasses import dataclass
from functools import cache, partial

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from hypothesis import strategies as st

from benchmarks.fuzz_edits import edited, edits, often

# How a list is read: all of it, or by the selection or the columns that tell_fuzz_properties has.
HOWS = (*("all",) * 8, *("where",) * 2, "wide", "few", "few", "classes", "named", "inner")
_NAMES = (
    *("uri", "uri", "uri", "path", "URI", "image", "label", "label", "class", "image_id", "id"),
    *(
        "width",
        "row_group",
        "offset",
        "bytes",
        "",
        "a.b",
        "uri.path",
        "ü\u202e",
        "__row",
        "\0",
        "x y",
    ),
)
_FURTHER = ("width", "year", "", "a.b", "bytes", "row_group", "offset", "ü", "__row", "meta", "\0")


@dataclass(frozen=True)
class File:
    """A file of the name m`suffix`, and how it is to be read (one of HOWS)."""

    suffix: str
    how: str
    data: bytes


def _files(suffix: str, data: st.SearchStrategy[bytes]) -> st.SearchStrategy[File]:
    damaged = often(data, data, data, st.builds(edited, data, edits(2)))
    return st.builds(File, st.just(suffix), st.sampled_from(HOWS), damaged)


def parquet_files() -> st.SearchStrategy[File]:
    """Lists, and files of images, with types and names of any kind; half of them damaged."""
    return _files(".parquet", st.builds(_parquet, tables(), st.integers(0, 255)))


def csv_files() -> st.SearchStrategy[File]:
    """Tables as Arrow writes them, and texts of separators, quotes, line ends and odd encodings."""
    table = st.builds(_csv, _texts_of_a_table)
    return _files(".csv", often(table, table, _lines(",")))


def json_files() -> st.SearchStrategy[File]:
    """JSON lines of any values, and texts that resemble them."""
    sound = st.lists(_records(), min_size=1, max_size=6, unique_by=lambda record: record["uri"])
    odd = st.lists(st.dictionaries(st.sampled_from(_NAMES), _values(), max_size=4), max_size=4)
    lines = often(*[sound] * 5, odd, st.lists(_values(), max_size=4))
    joined = st.builds(lambda end, parts: end.join(map(json.dumps, parts)).encode(), _ends, lines)
    return _files(".jsonl", often(*[joined] * 6, _lines(":"), st.builds(_nested, DEPTHS)))


_ends = st.sampled_from(["\n", "\n", "\r\n", "\n\n", ""])
DEPTHS = st.sampled_from([10, 100, 2_000, 100_000])
_uris = st.one_of(
    st.sampled_from(
        ["/a.jpg", "b/c.png", "s3://b/k.jpg", "https://u:p@h/x?sig=1", "../x", "", "~/a"]
    ),
    st.text(max_size=12),
)
_own_uris = st.integers(0, 999).map("s3://b/{}.jpg".format) | st.text(min_size=1, max_size=9)


def _nested(depth: int) -> bytes:
    return b'{"uri": ' + b"[" * depth + b"]" * depth + b"}\n"


def _lines(separator: str) -> st.SearchStrategy[bytes]:
    pieces = st.sampled_from(
        [
            separator,
            separator,
            "\n",
            "\r\n",
            "\r",
            '"',
            '""',
            "\x00",
            "\ufeff",
            "uri",
            "label",
            "id",
            "{",
            "}",
            "[",
            "]",
            "'",
            "#",
            "1e999",
            "9" * 40,
            "NaN",
            " ",
            "\\",
            "\u2028",
            "ä",
            "a.jpg",
        ]
    )
    text = st.lists(pieces, max_size=40).map("".join)
    head = st.sampled_from([f"uri{separator}label\n", "uri\n", "\ufeffpath\n", ""])
    encodings = st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1", "utf-8-sig", "utf-32"])
    return st.builds(lambda a, b, code: (a + b).encode(code, "replace"), head, text, encodings)


def _values() -> st.SearchStrategy[object]:
    numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, -(2**63) - 1, 2**64]))
    leaves = st.one_of(st.none(), st.booleans(), numbers, _uris)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner),
        max_leaves=5,
    )


def _records() -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries(
        {"uri": _own_uris},
        optional={"label": _own_uris, "width": st.integers(-9, 9), "meta": st.just({"year": [1]})},
    )


def _labels(rows: int) -> st.SearchStrategy[pa.Array]:
    """Labels as they should be, of any type that labels may have."""
    number = st.none() | st.integers(0, 5)
    kinds = st.sampled_from(
        [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.int32(), pa.string()]
    )
    numbers = st.lists(number, min_size=rows, max_size=rows)
    made = st.builds(lambda values, kind: pa.array(values, pa.int64()).cast(kind), numbers, kinds)
    return made | made.map(lambda array: array.dictionary_encode()) | _arrays(rows)


def _unique(rows: int) -> st.SearchStrategy[pa.Array]:
    """Uris that are all different, in each of Arrow's encodings of text."""
    kinds = st.sampled_from([pa.string(), pa.large_string(), pa.string_view()])
    texts = st.lists(_own_uris, min_size=rows, max_size=rows, unique=True)
    either = texts | st.just([f"/{number}.jpg" for number in range(rows)])
    made = st.builds(pa.array, either, kinds)
    return made | either.map(lambda values: pa.array(values, pa.string()).dictionary_encode())


@cache
def _arrays(rows: int) -> st.SearchStrategy[pa.Array]:
    """A column of one type, with nulls, as it was drawn or in another of Arrow's encodings."""

    def column(values: st.SearchStrategy[object], kind: pa.DataType) -> st.SearchStrategy[pa.Array]:
        some = st.lists(st.none() | values, min_size=rows, max_size=rows)
        return some.map(partial(pa.array, type=kind))

    small = st.integers(0, 100)
    texts = column(_uris, pa.string())
    unique = st.just(pa.array([f"/{i}.jpg" for i in range(rows)]))
    others = [column(_uris, kind) for kind in (pa.large_string(), pa.string_view())]
    others += [
        column(small, kind)
        for kind in (
            *(pa.int8(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64()),
            *(
                pa.decimal128(9, 2),
                pa.date32(),
                pa.timestamp("us"),
                pa.duration("s"),
                pa.time64("ns"),
            ),
        )
    ]
    others += [
        column(st.integers(0, 2**64 - 1), pa.uint64()),
        column(st.floats(), pa.float64()),
        column(st.booleans(), pa.bool_()),
        column(st.binary(max_size=20), pa.binary()),
        column(st.binary(max_size=20), pa.large_binary()),
        column(st.binary(min_size=4, max_size=4), pa.binary(4)),
        column(st.lists(_uris, max_size=2), pa.list_(pa.string())),
        column(st.just({"bytes": b"x", "path": "a"}), _struct(pa.binary())),
        column(st.just({"bytes": "x", "path": "a"}), _struct(pa.string())),
        column(st.just({}), pa.struct([("uri", pa.string())])),
        column(st.just([("a", "b")]), pa.map_(pa.string(), pa.string())),
        st.just(pa.nulls(rows)),
        texts.map(lambda array: array.dictionary_encode()),
        column(small, pa.int32()).map(lambda array: array.dictionary_encode()),
        column(st.binary(max_size=4), pa.binary()).map(lambda array: array.dictionary_encode()),
        st.just(
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * rows, pa.binary(16)))
        ),
        st.just(pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"] * rows, pa.string()))),
    ]
    return often(unique, texts, st.one_of(*others))


def _struct(kind: pa.DataType) -> pa.DataType:
    return pa.struct([("bytes", kind), ("path", pa.string())])


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Up to 9 rows: most often a list with unique uris and odd columns, else columns of any names,
    some there twice.
    """
    rows = draw(st.sampled_from([1, 2, 2, 3, 3, 9, 0]))
    if draw(st.integers(0, 3)):
        names = draw(st.lists(st.sampled_from(_FURTHER), max_size=3, unique=True))
        columns = [draw(_arrays(rows)) for _ in names]
        label, unique = draw(_labels(rows)), draw(_unique(rows))
        return pa.Table.from_arrays([*columns, label, unique], names=[*names, "label", "uri"])
    names = draw(st.lists(st.sampled_from(_NAMES), min_size=1, max_size=5))
    return pa.Table.from_arrays([draw(_arrays(rows)) for _ in names], names=names)


def _parquet(table: pa.Table, how: int) -> bytes:
    sink = io.BytesIO()
    options = {
        "compression": ("none", "snappy", "zstd", "gzip")[how % 4],
        "use_dictionary": how % 8 < 4,
        "row_group_size": (1, 2, 100)[how % 3],
        "data_page_version": ("1.0", "2.0")[how % 2],
        "store_schema": how % 16 < 8,
    }
    try:
        pq.write_table(table, sink, **options)
    except (pa.ArrowException, OSError):  # a type that Parquet has not
        pq.write_table(pa.table({"uri": ["a"]}), sink := io.BytesIO())
    return sink.getvalue()


_texts_of_a_table = st.builds(
    lambda names, rows: pa.Table.from_arrays(
        [pa.array([row[at] for row in rows], pa.string()) for at in range(len(names) + 1)],
        ["uri", *names],
    ),
    st.lists(st.sampled_from([*_FURTHER, "label", "id"]), max_size=3, unique=True),
    st.lists(
        st.tuples(_own_uris, _uris, _uris, _own_uris), max_size=6, unique_by=lambda row: row[0]
    ),
)


def _csv(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa_csv.write_csv(table, sink)
    return sink.getvalue()
