"""docs/security.md, promise by promise, on whole jobs: what is read, stored, told and run."""

import ast
import io
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from rich.console import Console

from jobs.commands import VerifyConfig
from jobs.config import ConfigurationError, Exit, ExplainConfig, InputConfig
from jobs.prepare import prepare
from jobs.verify import verify
from storage.locations import Location
from storage.row_reader import read_rows
from storage.runs import open_run

ROOT = Path(__file__).resolve().parents[1]
Runner = Callable[[ExplainConfig], tuple[Exit, str]]


def refuse_secrets(folder: str | Path, secrets: list[str]) -> int:
    """How many files lie below a folder, none of which holds a secret in plain, also in Parquet."""
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".parquet":  # whose pages are compressed
            content += repr(pq.read_table(path).to_pylist()).encode()
            content += repr(pq.read_schema(path).metadata).encode()
        for secret in secrets:
            assert secret.encode() not in content, path
    return len(files)


class Signed(BaseHTTPRequestHandler):
    """Serves one picture to whoever has the signature of the day, and `files` to everybody."""

    picture, signature, status = b"", "", 403
    files: dict[str, bytes] = {}  # noqa: RUF012 - as `asked`
    asked: list[str] = []  # noqa: RUF012 - of the one server of a test

    def do_GET(self) -> None:
        self.asked.append(self.path)
        good = self.path.endswith(f"?X-Amz-Signature={self.signature}&user=hush")
        body = self.files.get(self.path, self.picture if good else b"")
        self.send_response(200 if body else self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def signed(image_folder: Path) -> Iterator[type[Signed]]:
    Signed.picture, Signed.status = (image_folder / "bee" / "001.jpg").read_bytes(), 403
    Signed.asked, Signed.files = [], {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Signed) as server:
        Signed.url = f"http://someone:hush@127.0.0.1:{server.server_port}"
        Signed.plain = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Signed
        server.shutdown()
        thread.join()


# What is read


def test_a_remote_manifest_of_local_files_ends_with_rows_and_exit_3(
    run_job, config, image_folder, signed, tmp_path, rows_of
):
    picture = str(image_folder / "bee" / "001.jpg")
    forbidden = [picture, f"file://{picture}", f"simplecache::file://{picture}", f"{signed.url}/a"]
    uris = [*forbidden, *(f"{signed.plain}/{number}.jpg" for number in range(6))]
    lines = [json.dumps({"uri": uri, "id": number}) for number, uri in enumerate(uris)]
    signed.files = {"/m.jsonl": "\n".join(lines).encode()}
    given = InputConfig(manifest=f"{signed.plain}/m.jsonl")
    code, told = run_job(replace(config, input=given))
    assert code is Exit.TOO_MANY_FAILED, told
    stored = rows_of(Location(config.out))
    assert [row["status"] for row in stored] == ["denied"] * 10
    assert "a remote manifest may not name local files; give --allow-local" in stored[0]["error"]
    assert "urls that are chained with '::' are not allowed" in stored[2]["error"]
    assert "the host's address is 127.0.0.1, and a remote manifest" in stored[5]["error"]
    assert set(signed.asked) == {"/m.jsonl"}  # by the driver, for the person who named it
    allowed = replace(given, allow_local=True, limit=2)
    again = replace(config, out=str(tmp_path / "allowed"), input=allowed)
    assert run_job(again)[0] is Exit.COMPLETE
    assert [row["status"] for row in rows_of(Location(again.out))] == ["ok", "ok"]


@pytest.mark.parametrize(
    "change",
    [
        lambda config, url: replace(config, input=InputConfig(images=url)),
        lambda config, url: replace(config, input=InputConfig(manifest=url)),
        lambda config, url: replace(config, input=replace(config.input, extend=url)),
        lambda config, url: replace(config, input=replace(config.input, storage=url)),
        lambda config, url: replace(config, model=replace(config.model, checkpoint=url)),
        lambda config, url: replace(config, model=replace(config.model, head=url)),
        lambda config, url: replace(config, model=replace(config.model, class_names=url)),
        lambda config, url: replace(config, out=url),
    ],
)
def test_urls_of_the_command_line_are_not_chained_either(config, change):
    for url, rule in (
        ("simplecache::s3://bucket/a.csv?Signature=hush", "simplecache::s3://bucket/a.csv: urls"),
        ("sftp://host/a.csv", "sftp://host/a.csv: a url is a local path or begins with one of fil"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            prepare(change(config, url))
        assert any(rule in line for line in caught.value.problems), caught.value.problems
        assert "hush" not in str(caught.value)


# What is stored


def write_list(signed: type[Signed], path: Path, signature: str, rows: int = 20) -> None:
    """A list of signed urls, for one of which the signature is wrong."""
    good = [f"{signed.url}/{i}.jpg?X-Amz-Signature={signature}&user=hush" for i in range(rows)]
    uris = [*good[:-1], f"{signed.url}/bad.jpg?X-Amz-Signature=bad-{signature}"]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"uri": uris}), path)
    else:
        path.write_text("\n".join(["uri", *uris]) + "\n")


@pytest.mark.parametrize("name", ["list.csv", pytest.param("list.parquet", marks=pytest.mark.slow)])
def test_signatures_of_urls_are_stored_nowhere_and_a_list_signed_anew_resumes(
    run_job, config, signed, tmp_path, name, rows_of
):
    first, second = "first-signature", "second-signature"
    execution = replace(config.execution, max_failed=0.1)
    config = replace(config, execution=execution, input=InputConfig(manifest=str(tmp_path / name)))
    signed.signature = first
    write_list(signed, tmp_path / name, first)
    code, told = run_job(config)
    assert code is Exit.COMPLETE, told
    stored = rows_of(Location(config.out))
    plain = [f"{signed.plain}/{i}.jpg" for i in range(19)] + [f"{signed.plain}/bad.jpg"]
    assert [row["uri"] for row in stored] == [row["image_id"] for row in stored] == plain
    assert [row["status"] for row in stored] == ["ok"] * 19 + ["denied"]
    assert stored[-1]["error"] == f"{signed.plain}/bad.jpg: HTTP 403"
    run = open_run(Location(config.out))
    if name == "list.csv":
        kept = pq.read_table(run.manifest.url)
        assert kept["uri"].to_pylist() == kept["image_id"].to_pylist() == plain
    else:
        assert not Path(run.manifest.url).exists()

    signed.signature = second
    write_list(signed, tmp_path / name, second)
    before = run.part(0).read()
    run.part(1).delete()
    run.summary.delete()
    code, again = run_job(config)
    assert code is Exit.COMPLETE, again
    assert rows_of(Location(config.out)) == stored
    assert run.part(0).read() == before
    assert Location(config.out).child("attempts").names() == ["1.json", "2.json"]
    assert refuse_secrets(config.out, [first, second, "hush"]) >= 8
    console = Console(file=io.StringIO(), width=200)
    assert verify(VerifyConfig(config.out), console) is Exit.COMPLETE, console.file.getvalue()
    run.part(1).replace(run.part(0).read())  # whose rows are now told beside the manifest's
    assert verify(VerifyConfig(config.out), console) is Exit.INCOMPLETE
    for text in (told, again, console.file.getvalue()):
        assert not [secret for secret in (first, second, "hush") if secret in text]


@pytest.mark.slow
def test_an_outage_tells_no_signature(run_job, config, signed, tmp_path):
    write_list(signed, tmp_path / "list.csv", "other-signature")
    given = replace(config, input=InputConfig(manifest=str(tmp_path / "list.csv")))
    for signed.status, words in ((403, "images are denied, such as http"), (503, "HTTP 503")):
        code, told = run_job(given)
        assert code is Exit.INCOMPLETE
        assert words in told
        assert "hush" not in told
        assert "other-signature" not in told
    assert refuse_secrets(config.out, ["hush", "other-signature"]) >= 4


def test_urls_that_differ_in_their_queries_alone_need_an_id_column(config, tmp_path):
    (tmp_path / "m.csv").write_text("uri,name\nhttps://h/a?id=1,x\nhttps://h/a?id=2,y\n")
    given = InputConfig(manifest=str(tmp_path / "m.csv"))
    with pytest.raises(ConfigurationError) as caught:
        prepare(replace(config, input=given))
    assert (
        "1 image_ids occur more than once: the first are ['https://h/a'] (of a url the part behind "
        "? does not count). Give each row an image_id of its own (--id-column)"
    ) in str(caught.value)
    prepared = prepare(replace(config, input=replace(given, id_column="name")))
    assert prepared.manifest.data is not None
    stored = pq.read_table(io.BytesIO(prepared.manifest.data))
    assert stored["uri"].to_pylist() == ["https://h/a"] * 2
    rows = read_rows(prepared.manifest.source(Location("/nowhere")), 0, 2)
    assert rows["uri"].to_pylist() == ["https://h/a?id=1", "https://h/a?id=2"]
    assert "id=1" not in repr(prepared.manifest)


def test_a_question_mark_in_the_name_of_a_file_or_key_stays(config, tmp_path):
    uris = ["/a?b.jpg", "s3://bucket/a?b.jpg", "s3://bucket/user@c.jpg"]
    (tmp_path / "m.csv").write_text("\n".join(["uri", *uris]))
    prepared = prepare(replace(config, input=InputConfig(manifest=str(tmp_path / "m.csv"))))
    assert prepared.manifest.given is None
    assert pq.read_table(io.BytesIO(prepared.manifest.data))["uri"].to_pylist() == uris


# Credentials

SECRETS = ["AKIAOFATEST", "very-secret-text", "bearer-of-a-test"]


def session_folder() -> Path:
    """Where the Ray cluster of the tests logs."""
    return Path(ray._private.worker._global_node.get_session_dir_path())


@pytest.mark.parametrize("kind", [pytest.param("dead", marks=pytest.mark.slow), "wrong", "web"])
def test_credentials_are_in_no_file_message_log_or_runtime_environment(
    run_job, config, signed, s3, tmp_path, kind
):
    key, secret, token = SECRETS
    headers = {"headers": {"Authorization": f"Bearer {token}"}}
    uri, options = {
        "dead": ("s3://b/k", {"key": key, "secret": secret, "endpoint_url": "http://127.0.0.1:1"}),
        "wrong": (s3.url("k"), {**s3.options, "secret": secret}),
        "web": (f"{signed.plain}/a", headers),
    }[kind]
    signed.status = 401
    (tmp_path / "options.json").write_text(json.dumps(options))
    (tmp_path / "m.csv").write_text("uri,id\n" + "".join(f"{uri},{i}\n" for i in range(4)))
    storage = str(tmp_path / "options.json")
    given = InputConfig(manifest=str(tmp_path / "m.csv"), storage=storage)
    code, told = run_job(replace(config, input=given))
    assert code is Exit.INCOMPLETE
    assert "left undone: " in told
    far = replace(config, input=InputConfig(manifest=f"{uri}/m.csv", storage=storage))
    if kind != "web":
        far = replace(far, output_storage=storage, out=s3.url("out"))
    with pytest.raises(ConfigurationError) as caught:
        prepare(far)
    environments = repr(ray.get_runtime_context().runtime_env) + repr(
        ray.get_runtime_context().get_runtime_env_string()
    )
    for secret in SECRETS:
        assert secret not in told + str(caught.value) + environments
    assert refuse_secrets(config.out, SECRETS) >= 3
    logs = session_folder() / "logs"
    assert any(logs.iterdir())
    for path in logs.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [secret for secret in SECRETS if secret.encode() in content], path


def test_a_file_of_options_that_is_none_is_not_quoted(config, tmp_path):
    (tmp_path / "bad.json").write_text('{"secret": "very-secret-text"')
    with pytest.raises(ConfigurationError) as caught:
        prepare(replace(config, input=replace(config.input, storage=str(tmp_path / "bad.json"))))
    assert "is not JSON; want an object of fsspec options" in str(caught.value)
    assert "very-secret-text" not in str(caught.value)


# What is run


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_no_input_is_unpickled(config, tmp_path):
    trap = tmp_path / "trap"
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(5, 48), "extra": Trap(trap)}, buffer)
    (tmp_path / "evil.pth").write_bytes(buffer.getvalue())
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Trap(trap), protocol=2))
    for name in ("evil.pth", "plain.pth"):
        for field in ("checkpoint", "head"):
            model = replace(config.model, **{field: str(tmp_path / name)})
            with pytest.raises(ConfigurationError, match=f"{name} is not readable by torch with"):
                prepare(replace(config, model=model))
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Trap(trap), protocol=2),
    }
    schema = pa.schema([pa.field("uri", pa.string(), metadata=metadata)])
    pq.write_table(pa.table({"uri": ["/a.jpg"]}, schema=schema), tmp_path / "m.parquet")
    prepare(replace(config, input=InputConfig(manifest=str(tmp_path / "m.parquet"))))
    assert not trap.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert trap.exists()  # so it would have been seen


FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "yaml", "joblib"}
LISTENING_MODULES = {"http", "socketserver", "xmlrpc", "flask", "fastapi", "uvicorn"}


def test_no_module_evaluates_unpickles_or_listens():
    loads = []
    for path in [
        path for name in ("jobs", "explainer", "storage") for path in (ROOT / name).rglob("*.py")
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = {name.partition(".")[0] for name in names}
            assert not found & (FORBIDDEN_MODULES | LISTENING_MODULES), path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "__import__", "os.system"), path
            assert not called.endswith((".listen", ".extractall", ".extract", ".unpack_archive"))
            if called in ("torch.load", "np.load", "torch.jit.load", "torch.hub.load"):
                loads.append((path.name, called, ast.unparse(node).count("weights_only=True")))
    assert loads == [("checkpoints.py", "torch.load", 1)]
