"""Fixtures that several test files share: a real S3 server, places to write to, photographs."""

import asyncio
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page
from rich.console import Console
from xdist.scheduler import LoadScopeScheduling

# `uv run` would make Ray's workers build an environment without the test dependencies.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
# The clusters of the tests listen on this machine only and live as long as the tests.
os.environ["RAY_AUTH_MODE"] = "disabled"
# More threads than cores compute here, of two pytests and of their clusters' replicas, and one that
# spins until another has its turn keeps that one from it: it waits asleep.
os.environ["OMP_WAIT_POLICY"] = "passive"

# Before `explainer`, which jaxtyping's hook loads: what is loaded meanwhile is compiled anew.
import timm  # noqa: F401

from benchmarks.browser import browsing, chromium
from benchmarks.weed import BUCKET, Weed, free_ports
from jobs.config import ExecutionConfig, Exit, ExplainConfig, InputConfig, ModelConfig
from storage.locations import Location

# Files that share the demo's run, which is dear.
OF_THE_DEMO = ("test_docs_notebook.py", "test_jobs_audit.py", "test_jobs_demo.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-size", action="store_true", help="also explain a few models at their own size"
    )


class WholeFiles(LoadScopeScheduling):
    """Of the two processes each takes whole files, and one both that look at the demo's run."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "demo" if file.endswith(OF_THE_DEMO) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WholeFiles:
    return WholeFiles(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models are fastest on one thread."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class S3Prefix:
    """A fresh prefix of the server's bucket."""

    server: Weed
    prefix: str

    @property
    def options(self) -> dict[str, Any]:
        return self.server.options()

    @property
    def options_without_rights(self) -> dict[str, Any]:
        return self.server.options("stranger", "strangers-secret")

    def url(self, name: str = "") -> str:
        return f"s3://{BUCKET}/{self.prefix}/{name}".rstrip("/")

    def location(self, name: str = "") -> Location:
        return Location(self.url(name), self.options)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """SeaweedFS, which honours If-None-Match, on free ports for the whole session."""
    server = Weed(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def s3(s3_server: Weed) -> S3Prefix:
    """A fresh prefix on the S3 server: `.url(name)`, `.options`, `.location(name)`."""
    return S3Prefix(s3_server, uuid.uuid4().hex)


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of each kind of store, so that a test runs over both."""
    if request.param == "local":
        return Location(str(tmp_path / "store"))
    prefix: S3Prefix = request.getfixturevalue("s3")
    return prefix.location()


@pytest.fixture(scope="session")
def enlivened() -> Callable[..., Any]:
    """Gives a model weights large enough for maps to have a shape; the same for the same model."""

    def enliven(model: Any, dtype: torch.dtype = torch.float64, scale: float = 0.25) -> Any:
        generator = torch.Generator().manual_seed(1)
        model.vit.to(dtype)
        for name, parameter in model.vit.named_parameters():
            if "backbone" in name:  # a convolutional stem's norms would amplify the noise
                continue
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            share = 4 * scale if name.startswith("head") else scale
            parameter.add_(share * noise.to(dtype))
        return model

    return enliven


@pytest.fixture(scope="session")
def random_crops() -> Callable[..., Any]:
    """Seeded uint8 crops of a model's input size."""

    def crops(model: Any, batch: int = 7) -> torch.Tensor:
        shape = (batch, 3, *model.preprocessing.input_size)
        generator = torch.Generator().manual_seed(2)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return crops


@pytest.fixture(scope="session")
def by_definition() -> Callable[..., Any]:
    """The definition's logits under every mask, at the block that a method uses on a model."""
    from explainer.reference import masked_logits

    def logits(model: Any, images: Any, method: Any) -> Any:
        return masked_logits(
            model.vit,
            model.normalise(images),
            model.grid,
            block=method.form(model).block,
            residual=method.residual,
            mask=method.mask,
        )

    return logits


@pytest.fixture(scope="session")
def relative_error() -> Callable[..., float]:
    """Largest error of an explanation's maps over the range of the definition's own.

    A range under 1e-2 would prove nothing and fails.
    """
    from explainer.reference import log_odds

    def error(got: Any, logits: torch.Tensor, score: str = "log_odds") -> float:
        of_class = log_odds if score == "log_odds" else lambda values, k: values[..., k]
        worst = 0.0
        for i, targets in enumerate(got.targets.tolist()):
            for rank, target in enumerate(targets):
                want = of_class(logits[i], target)
                span = want.max() - want.min()
                assert span >= 1e-2
                worst = max(worst, float((got.scores[i, rank].flatten() - want).abs().max() / span))
        return worst

    return error


@pytest.fixture(scope="session")
def photos() -> Path:
    """A folder of labelled photographs, one sub-folder a class."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "photos"
    folder = Path(os.environ.get("SALIENCY_PHOTOS", beside))
    if not folder.is_dir():
        pytest.skip("no photographs: set SALIENCY_PHOTOS to a folder with one sub-folder a class")
    return folder


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
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small pictures of noise, JPEG and PNG, in three class folders."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for number in range(60):
        name = ("ant", "bee", "cat")[number % 3]
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((80 + number, 60 + number))
        (folder / name).mkdir(exist_ok=True)
        picture.save(folder / name / f"{number:03d}.{'png' if number % 5 == 0 else 'jpg'}")
    return folder


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
    """60 images, 4 shards, two CPU replicas."""
    return ExplainConfig(
        model=tiny_model,
        out=str(tmp_path_factory.mktemp("finished") / "run"),
        input=InputConfig(images=str(image_folder)),
        execution=ExecutionConfig(address=ray_address, replicas=2, batch_size=8),
    )


@pytest.fixture(scope="session")
def undisturbed(
    small_config: ExplainConfig,
    run_job: Callable[[ExplainConfig], tuple[Exit, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> ExplainConfig:
    """A whole run of every picture five times, 300 in 19 shards: enough to be disturbed in."""
    folder = tmp_path_factory.mktemp("many")
    for path in Path(small_config.input.images or "").rglob("*.*g"):
        (folder / path.parent.name).mkdir(exist_ok=True)
        for copy in range(5):
            shutil.copy(path, folder / path.parent.name / f"{copy}-{path.name}")
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    config = replace(small_config, out=str(out), input=InputConfig(images=str(folder)))
    assert run_job(config)[0] is Exit.COMPLETE
    assert len(Location(config.out).child("explanations").names()) == 19
    return config


@pytest.fixture
def config(small_config: ExplainConfig, tmp_path: Path) -> ExplainConfig:
    """With one replica, since each costs seconds to start, and a place of its own."""
    execution = replace(small_config.execution, replicas=1)
    return replace(small_config, out=str(tmp_path / "run"), execution=execution)


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; while it is open, no other module's `asyncio.run` works here."""
    if chromium() is None:
        pytest.skip("no Chromium: install it, or set CHROMIUM")
    with browsing() as found:
        yield found
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[[Path], Page]]:
    """Opens a page, and holds at the end that it asked for nothing and complained of nothing."""
    noticed: list[str] = []
    asked: list[str] = []
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    page = context.new_page()
    page.on("console", lambda message: noticed.append(message.text))
    page.on("pageerror", lambda error: noticed.append(str(error)))
    page.on("dialog", lambda dialog: noticed.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))

    def go(path: Path) -> Page:
        page.goto(path.as_uri())
        return page

    yield go
    context.close()
    assert not noticed
    assert [url.startswith("data:") for url in asked].count(False) == 1


@pytest.fixture(scope="session")
def shot() -> Callable[..., None]:
    """Keeps what a test saw, to be looked at."""

    def take(page: Page, name: str, *, whole: bool = True) -> None:
        folder = Path(__file__).resolve().parents[1] / "build" / "screenshots"
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=folder / f"{name}.png", full_page=whole)

    return take


HOSTILE_CLASSES = ("pentagon", "a/b", "../up", "<script>alert(1)</script>", '\u202e"=1+1", x')
HOSTILE_IDS = (
    *("a/b/c.jpg", "../../etc/passwd", "line\nend", "<b>.jpg", '"quoted", =1+1', "\u202egpj.exe"),
    *(f"image {number}" for number in range(6, 24)),
)


@dataclass(frozen=True)
class AuditedRun:
    """A finished run of images with hostile names, one of which is missing, and its audit."""

    root: Path
    audit: str
    class_names: tuple[str, ...]
    image_ids: tuple[str, ...]
    missing: int


def _write_hostile_images(folder: Path) -> Path:
    """24 pictures of many sizes and their list: some without a label, one with a strange one."""
    random, lines = np.random.default_rng(7), []
    for number, image_id in enumerate(HOSTILE_IDS):
        coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        size = (70 + 5 * number, 180 - 6 * number)
        name = "new\nline.jpg" if number == 3 else f"{number:03d}.{'png' if number % 5 else 'jpg'}"
        exif = Image.Exif()
        if number == 5:
            exif[0x0112] = 6  # turned by a quarter
        if number != 7:
            Image.fromarray(coarse).resize(size).save(folder / name, exif=exif)
        label = {8: None, 9: "stranger"}.get(number, HOSTILE_CLASSES[number % 5])
        lines.append({"image_id": image_id, "uri": name, "label": label})
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "list.jsonl"


def _write_audit(run: Any) -> str:
    """An audit's tables, as `saliency audit` writes them: four cues, one of them on no image."""
    import pyarrow as pa

    from storage import audit_schema, schema
    from storage.audits import open_or_create_audit

    summary = run.read_summary()
    identity = {"run": run.description["fingerprint"], "parts_digest": summary["parts_digest"]}
    audit = open_or_create_audit(run, identity)
    common = {"reason": "a reason, with\na line", "images": 9, "explained": 9, "candidates": 1}
    found = [(0, 0, "shortcut", 0.5), (2, 1, "compact cue: look at it", 0.2)]
    found += [(3, 0, "not testable", 0.0), (1, 0, "cleared", 0.0), (4, None, "cleared", 0.0)]
    findings = [
        {"target": target, "target_name": HOSTILE_CLASSES[target], "cue": cue, "verdict": verdict}
        | {"severity": severity, "passes": 1, **common}
        for target, cue, verdict, severity in found
    ]
    corner, row_of_cells = [10, 11, 14, 15], [4, 5, 6, 7]
    held = [(0, 0, 0, corner), (0, 0, 3, [0]), (0, 0, 5, corner), (0, 0, 23, [0, 15])]
    held += [(2, 1, 3, row_of_cells), (2, 1, 21, row_of_cells), (1, 0, 16, corner)]
    carriers = [
        {"target": target, "cue": cue, "verdict": {f[:2]: f[2] for f in found}[target, cue]}
        | {"row": row, "likeness": 1 - row / 100, "cells": [i in cells for i in range(16)]}
        for target, cue, row, cells in held
    ]
    for place, rows, columns in (
        (audit.findings, findings, audit_schema.findings()),
        (audit.carriers, carriers, audit_schema.carriers((4, 4))),
    ):
        table = pa.Table.from_pylist(rows, schema=columns)
        place.replace(schema.encode_parquet(table, {"audit": audit.run.id}))
    ended = {"ended": "2026-11-27T00:00:00+00:00"}
    audit.run.write_summary({"state": "incomplete", "classes_missing": 1, **ended})
    return str(audit.run.root.name)


@pytest.fixture(scope="session")
def make_audited(
    tiny_model: ModelConfig,
    ray_address: str,
    run_job: Callable[[ExplainConfig], tuple[Exit, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], AuditedRun]:
    """Makes an AuditedRun whose maps are of a target such as top:3."""
    from jobs.config import MethodConfig
    from storage.runs import open_run

    def make(target: str) -> AuditedRun:
        folder = tmp_path_factory.mktemp("hostile")
        names = folder / "names.txt"
        names.write_text("".join(f"{name}\n" for name in HOSTILE_CLASSES))
        config = ExplainConfig(
            model=replace(tiny_model, class_names=str(names)),
            out=str(folder / "run"),
            input=InputConfig(manifest=str(_write_hostile_images(folder))),
            method=MethodConfig(target=target),
            execution=ExecutionConfig(address=ray_address, replicas=1, batch_size=8, max_failed=1),
        )
        code, told = run_job(config)
        assert code is Exit.COMPLETE, told
        audit = _write_audit(open_run(Location(config.out)))
        return AuditedRun(folder / "run", audit, HOSTILE_CLASSES, HOSTILE_IDS, 7)

    return make


@pytest.fixture(scope="session")
def audited(make_audited: Callable[[str], AuditedRun]) -> AuditedRun:
    """Maps of the predicted class; tests leave it as it is."""
    return make_audited("predicted")


@pytest.fixture(scope="session")
def audited_top(make_audited: Callable[[str], AuditedRun]) -> AuditedRun:
    """Three maps an image; tests leave it as it is."""
    return make_audited("top:3")


@pytest.fixture(scope="session")
def barriers() -> Callable[[Page], list[tuple[str, str]]]:
    """What axe finds on a page that is serious or critical: the rule, and the first place."""

    def found(page: Page) -> list[tuple[str, str]]:
        violations = Axe().run(page).response["violations"]
        serious = [each for each in violations if each["impact"] in ("serious", "critical")]
        return [(each["id"], each["nodes"][0]["html"]) for each in serious]

    return found
