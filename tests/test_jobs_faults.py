"""Whole jobs while the store fails them: what is committed is right, and the rest is done later."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faulty_store import Fault, FaultyStore
from jobs.cli import run as run_command
from jobs.config import Exit, ExplainConfig, InputConfig
from storage.locations import Location

SHARDS = 4
BUCKET = "s3://tests/faults"
Runner = Callable[[ExplainConfig], tuple[Exit, str]]


@pytest.fixture(scope="module")
def store(s3_server: Any) -> Iterator[FaultyStore]:
    with FaultyStore(s3_server.endpoint, seed=4) as store:
        yield store


@pytest.fixture(scope="module")
def undisturbed_in_s3(
    store: FaultyStore,
    s3_server: Any,
    small_config: ExplainConfig,
    run_job: Runner,
    tmp_path_factory: pytest.TempPathFactory,
) -> ExplainConfig:
    """A whole run of images in S3 to S3, both behind the proxy."""
    images = Location(f"{BUCKET}/images", s3_server.options())
    for path in Path(small_config.input.images).rglob("*.*g"):
        images.child(path.parent.name, path.name).create(path.read_bytes())
    options = tmp_path_factory.mktemp("storage") / "storage.json"
    front_door = {"client_kwargs": {"endpoint_url": store.endpoint}}
    options.write_text(json.dumps(s3_server.options() | front_door))
    config = replace(
        small_config,
        out=f"{BUCKET}/undisturbed",
        output_storage=str(options),
        input=InputConfig(images=images.url, storage=str(options)),
    )
    assert run_job(config)[0] is Exit.COMPLETE
    return config


@pytest.fixture
def config(
    undisturbed_in_s3: ExplainConfig, store: FaultyStore, request: Any
) -> Iterator[ExplainConfig]:
    """The same run in another place."""
    store.requests.clear()
    yield replace(undisturbed_in_s3, out=f"{BUCKET}/{request.node.name}")
    store.inject()


@pytest.fixture
def parts(s3_server: Any) -> Callable[[ExplainConfig], dict[str, bytes]]:
    """The parts of a run, read past the proxy."""

    def read(config: ExplainConfig) -> dict[str, bytes]:
        folder = Location(config.out, s3_server.options()).child("explanations")
        return {name: folder.child(name).read() for name in folder.names()}

    return read


def test_overload_and_lost_connections_cost_time_and_nothing_else(
    run_job, config, undisturbed_in_s3, store, parts
):
    store.inject(Fault("slow_down", 0.05), Fault("reset", 0.05), Fault("reset_after", 0.05))
    code, told = run_job(config)
    assert code is Exit.COMPLETE, told
    assert set(store.met) == {"slow_down", "reset", "reset_after"}
    assert parts(config) == parts(undisturbed_in_s3)


def test_credentials_that_expire_in_mid_run_leave_shards_undone_and_make_no_rows(
    run_job, config, undisturbed_in_s3, store, parts, capsys
):
    # One of the last images: others are read, and with them some parts may be written, before.
    store.inject(Fault("expired", path="cat/05"))
    code, told = run_job(config)
    assert code is Exit.INCOMPLETE
    assert "CredentialsRefused: s3://tests/faults/images/cat/05" in told
    assert "The provided token has expired" in told
    written = parts(config)
    assert 0 < len(written) < SHARDS
    assert written.items() <= parts(undisturbed_in_s3).items()

    store.inject(Fault("expired", path="summary"))
    assert run_command(config) == Exit.INCOMPLETE
    assert "has expired.; the same command resumes" in capsys.readouterr().out
    assert parts(config) == written

    store.inject()
    code, told = run_job(config)
    assert code is Exit.COMPLETE, told
    assert parts(config) == parts(undisturbed_in_s3)


@pytest.mark.slow
def test_a_listing_that_lags_loses_and_doubles_nothing(
    run_job, config, undisturbed_in_s3, store, parts
):
    store.inject(Fault("lagging", seconds=math.inf))
    for _ in range(2):  # the second finds its own parts only when it writes them
        code, told = run_job(config)
        assert code is Exit.COMPLETE, told
        assert parts(config) == parts(undisturbed_in_s3)
    store.inject()
    code, told = run_job(config)
    assert code is Exit.COMPLETE, told
    assert store.met["lagging"] > 2
