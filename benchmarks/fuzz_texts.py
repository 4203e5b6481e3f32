"""Conditions in SQL and urls, as hypothesis draws them."""

from hypothesis import strategies as st

from benchmarks.fuzz_edits import often

_COLUMNS = [
    "uri",
    "label",
    "width",
    "meta",
    "meta.year",
    '"uri"',
    "manifest",
    "__row",
    "nothing",
    "*",
]
_OPERATORS = [
    *(
        "=",
        "<",
        "<>",
        "AND",
        "OR",
        "NOT",
        "LIKE",
        "IN",
        "IS NULL",
        "BETWEEN",
        "||",
        "~",
        "::INT",
        "->",
    ),
    *(
        ",",
        ".",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ";",
        "--",
        "/*",
        "*/",
        "\n",
        "\0",
        "$1",
        "?",
        ":",
        "#1",
    ),
]
_VALUES = [
    "1",
    "-1",
    "1e999",
    "9" * 40,
    "'a'",
    "''",
    "'%'",
    "NULL",
    "true",
    "'",
    '"',
    "$$a$$",
    "x'ff'",
]
_CLAUSES = [
    *(
        "UNION",
        "SELECT",
        "FROM",
        "WHERE",
        "LIMIT 1",
        "ORDER BY",
        "GROUP BY 1",
        "HAVING",
        "SAMPLE 1",
    ),
    *(
        "WITH a AS",
        "VALUES",
        "QUALIFY",
        "CASE WHEN",
        "THEN",
        "END",
        "lambda x:",
        "COLUMNS(*)",
        "ALL",
    ),
]
# What would read, write or change something; FILE becomes a path that is watched.
_ATTACKS = [
    "read_text('FILE')",
    "read_csv('FILE')",
    "FROM 'FILE'",
    "COPY manifest TO 'FILE.new'",
    "ATTACH 'FILE.new' AS a",
    "INSTALL httpfs",
    "LOAD httpfs",
    "EXPORT DATABASE 'FILE.new'",
    "SET enable_external_access = true",
    "PRAGMA database_list",
    "CALL pragma_version()",
    "glob('*')",
    "getenv('HOME')",
    "EXISTS (FROM read_blob('FILE'))",
    "CREATE TABLE t AS",
    "query('FROM read_text(''FILE'')')",
    "sniff_csv('FILE')",
    "parquet_scan('FILE')",
    "nextval('s')",
    "current_setting('home_directory')",
    "write_log('x')",
    "true) UNION (SELECT 1",
    "true); SELECT (1",
    "true) UNION SELECT 999 WHERE (true",
    "true) ORDER BY (uri",
    "true) LIMIT (1",
    "true) OFFSET (1",
    "true) USING SAMPLE (1",
    "true) GROUP BY (__row",
    "true) AS x, (true",
    "max(width) > 1",
    "row_number() OVER () = 1",
    "unnest([1, 2]) = 1",
    "error('x')",
    "random() < 0.5",
    "true) -- (",
    "width = 1) OR (true",
]
_HEAPS = st.sampled_from([""] * 8 + ["(" * 300, "NOT " * 900, "- " * 400, "1 + " * 800])


def conditions() -> st.SearchStrategy[str]:
    """Pieces of SQL in any order, with attempts at files, and texts of any characters."""
    pieces = st.sampled_from(_COLUMNS + _OPERATORS + _VALUES + _CLAUSES + _ATTACKS)
    free = st.lists(pieces | st.text(max_size=4), max_size=9).map(" ".join)
    simple = st.tuples(*map(st.sampled_from, (_COLUMNS, _OPERATORS, _VALUES))).map(" ".join)
    valid = st.tuples(*map(st.sampled_from, (_COLUMNS[:4], _OPERATORS[:3], _VALUES[:2])))
    attack = st.sampled_from(_ATTACKS)
    joined = st.builds("{} {} {}".format, simple, st.sampled_from(["AND", "OR", ")", ""]), attack)
    listed = often(free, free, simple, valid.map(" ".join), attack, joined)
    return st.builds(str.__add__, _HEAPS, listed)


_SCHEMES = [
    *(
        "s3",
        "s3a",
        "gs",
        "http",
        "https",
        "HTTP",
        "hf",
        "az",
        "file",
        "local",
        "FILE",
        "ftp",
        "data",
    ),
    *(
        "simplecache",
        "filecache",
        "zip",
        "tar",
        "memory",
        "reference",
        "github",
        "s3 ",
        " file",
        "",
    ),
]
_HOSTS = [
    *(
        "example.org",
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "2130706433",
        "0x7f.1",
    ),
    *(
        "u:p@10.0.0.1",
        "169.254.169.254",
        "bucket",
        "",
        "..",
        "%2e%2e",
        "a:b:c",
        "host:99999",
        "[",
        "\0",
    ),
]
_SEGMENTS = [
    "a",
    "..",
    ".",
    "%2e%2e",
    "%252e",
    "..\\..",
    "a..b",
    "",
    "~",
    "*",
    "?",
    "#",
    "::",
    "\n",
    "\udcff",
]


def uris() -> st.SearchStrategy[str]:
    """Urls and paths with schemes, hosts and segments of many kinds, and texts of any kind."""
    path = st.lists(st.sampled_from(_SEGMENTS) | st.text(max_size=5), max_size=5).map("/".join)
    ends = st.sampled_from(["", "", "?q=..", "?sig=a/../b", "#x", "::file:///etc/passwd"])
    slashes = st.sampled_from(["://", "://", "://", ":/", ":", "::", "", "://file://"])
    made = st.builds(
        "{}{}{}/{}{}".format,
        st.sampled_from(_SCHEMES),
        slashes,
        st.sampled_from(_HOSTS),
        path,
        ends,
    )
    store = st.sampled_from(["s3://", "gs://b/", "hf://datasets/", "https://example.org/"])
    plain = st.builds(str.__add__, store, st.lists(st.text(max_size=5), max_size=3).map("/".join))
    return often(made, made, plain, path, st.text(max_size=30))


def addresses() -> st.SearchStrategy[str]:
    """IPv4 and IPv6 addresses, near the borders of special networks and elsewhere."""
    near = st.sampled_from(
        [
            "10.0.0.1",
            "100.64.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fe80::1%eth0",
        ]
    )
    return st.one_of(st.ip_addresses().map(str), near)
