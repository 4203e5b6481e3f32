"""A Ray cluster, and small runs on it that tests share."""

import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.weed import free_ports
from jobs.config import ExecutionConfig, Exit, ExplainConfig, InputConfig, ModelConfig
from storage.locations import Location


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """A Ray cluster with four logical CPUs, shared by all tests.

    This process stays connected: jobs in it find processes that have imported torch already.
    """
    import ray
    from ray.cluster_utils import Cluster

    from jobs.cluster import OWN_CLUSTER, connect

    (port,) = free_ports(1)  # the default one may be another cluster's
    arguments = {"num_cpus": 4, "include_dashboard": False, "dashboard_port": port}
    arguments["_system_config"] = OWN_CLUSTER
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        connect(cluster.address)
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="session")
def tiny_model() -> ModelConfig:
    """A ViT of 3 blocks on a 4 x 4 grid with random weights and 5 classes."""
    arguments = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}
    return ModelConfig("vit_tiny_patch16_224", "random:0", model_args=json.dumps(arguments))


@pytest.fixture(scope="session")
def run_job() -> Callable[[ExplainConfig], tuple[Exit, str]]:
    """Runs a job in this process: its exit code, and what it told."""
    from jobs.explain import explain

    def run(config: ExplainConfig) -> tuple[Exit, str]:
        console = Console(file=io.StringIO(), width=200)
        code = explain(config, console)
        return code, console.file.getvalue()

    return run


@pytest.fixture(scope="session")
def small_config(
    image_folder: Path,
    tiny_model: ModelConfig,
    ray_address: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> ExplainConfig:
    """60 images, 4 shards, and one CPU replica, since each costs seconds to start."""
    return ExplainConfig(
        model=tiny_model,
        out=str(tmp_path_factory.mktemp("finished") / "run"),
        input=InputConfig(images=str(image_folder)),
        execution=ExecutionConfig(address=ray_address, replicas=1, batch_size=8),
    )


@pytest.fixture(scope="session")
def undisturbed(
    small_config: ExplainConfig,
    run_job: Callable[[ExplainConfig], tuple[Exit, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> ExplainConfig:
    """By two replicas every picture five times, 300 in 19 shards: enough to be disturbed in."""
    folder = tmp_path_factory.mktemp("many")
    for path in Path(small_config.input.images or "").rglob("*.*g"):
        (folder / path.parent.name).mkdir(exist_ok=True)
        for copy in range(5):
            shutil.copy(path, folder / path.parent.name / f"{copy}-{path.name}")
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    execution = replace(small_config.execution, replicas=2)
    config = replace(
        small_config, out=str(out), input=InputConfig(images=str(folder)), execution=execution
    )
    assert run_job(config)[0] is Exit.COMPLETE
    assert len(Location(config.out).child("explanations").names()) == 19
    return config


@pytest.fixture
def config(small_config: ExplainConfig, tmp_path: Path) -> ExplainConfig:
    """The same in a place of its own."""
    return replace(small_config, out=str(tmp_path / "run"))


@pytest.fixture(scope="session")
def done_when() -> Callable[..., AbstractContextManager[None]]:
    """Has `act` called, by a thread, as soon as `condition` holds, while a block is at work."""

    @contextmanager
    def watched(condition: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
        left = threading.Event()

        def watch() -> None:
            while not left.is_set():
                if condition():
                    act()
                    return
                time.sleep(0.005)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            left.set()
            thread.join()

    return watched


@pytest.fixture(scope="session")
def parts_of() -> Callable[[ExplainConfig], dict[str, bytes]]:
    """The parts of a run by name, as they are stored."""

    def parts(config: ExplainConfig) -> dict[str, bytes]:
        folder = Location(config.out).child("explanations")
        return {name: folder.child(name).read() for name in folder.names()}

    return parts


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Location], list[dict[str, Any]]]:
    """All rows of the run at a place, in order of the manifest; maps as they are stored."""
    from storage.runs import open_run

    def rows(root: Location) -> list[dict[str, Any]]:
        run = open_run(root)
        parts = [run.read_part(index) for index in sorted(run.committed())]
        return [row for part in parts for row in part.to_pylist()]

    return rows


@pytest.fixture(scope="session")
def job_of() -> Callable[..., Any]:
    """What a worker is told of a manifest's images, with a tiny model made of `arguments`."""
    from explainer import ReciproCam, Target, load_model
    from jobs.worker import Job
    from storage.images import Reading
    from storage.runs import open_or_create

    def job(manifest: Any, out: Path, arguments: dict[str, Any]) -> Job:
        run = open_or_create(Location(str(out)), {"fingerprint_of": {"a": 1}})
        run.manifest.create(manifest.data)
        return Job(
            model=load_model("vit_tiny_patch16_224", seed=0, model_args=arguments),
            method=ReciproCam(),
            target=Target("predicted"),
            run=run,
            rows=manifest.source(run.manifest),
            reading=Reading({}, allow_local=True),
            batch_size=4,
            precision="float32",
            device="cpu",
            threads=None,
        )

    return job


@pytest.fixture(scope="session")
def finished(
    small_config: ExplainConfig, run_job: Callable[[ExplainConfig], tuple[Exit, str]]
) -> ExplainConfig:
    """The configuration of a run that is complete; tests leave it as it is."""
    code, told = run_job(small_config)
    assert code is Exit.COMPLETE, told
    return small_config


@dataclass(frozen=True)
class Demonstration:
    """A whole `saliency demo`: where, its exit code and what it told."""

    out: str
    images: int
    code: Exit
    told: str


@pytest.fixture(scope="session")
def demonstration(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Demonstration:
    """The demo as users run it, on the cluster of the tests; they leave its run as it is."""
    from jobs.demo import demo

    images, out = 480, str(tmp_path_factory.mktemp("demonstration") / "demo")
    console = Console(file=io.StringIO(), width=120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", ray_address)
        code = demo(out, images, None, console)
    return Demonstration(out, images, code, console.file.getvalue())
