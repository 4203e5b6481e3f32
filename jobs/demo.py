"""`saliency demo`: draw a dataset with planted shortcuts, explain it, audit it, write a report."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel

from explainer.audit.verdicts import Verdict
from jobs import heatmaps, pictures
from jobs.aggregate import read_means
from jobs.audit import audit
from jobs.cluster import connected
from jobs.commands import ReportConfig
from jobs.config import (
    AuditConfig,
    ConfigurationError,
    ExecutionConfig,
    Exit,
    ExplainConfig,
    InputConfig,
    ModelConfig,
)
from jobs.explain import explain
from jobs.findings import Report
from jobs.options import read_options
from jobs.prepare import INPUT_ERRORS
from jobs.replica_config import ReplicaConfig
from jobs.report import report
from storage.locations import Location
from storage.runs import open_run
from storage.schema import grid_of
from storage.trust import named

MODEL = Path(__file__).parent / "demo_model" / "model.safetensors"
ARCHITECTURE = "vit_tiny_patch16_224"
REPLICAS = 2
WRITERS = 16


def demo(out: str, images: int, output_storage: str | None, console: Console) -> Exit:
    """Write the pictures to `out`/pictures and the run to `out`; repeated, it resumes."""
    console.print(
        f"drawing {images} pictures of {len(pictures.CLASS_NAMES)} classes; half of "
        f"'{pictures.WATERMARKED}' carry a watermark, most of '{pictures.STICKERED}' a sticker"
    )
    try:
        root = named(out, read_options(output_storage))
        write_pictures(root.child("pictures"), images)
    except INPUT_ERRORS as error:
        raise ConfigurationError([f"--out: {error}"]) from error
    config = ExplainConfig(
        model=ModelConfig(ARCHITECTURE, checkpoint=str(MODEL)),
        out=out,
        input=InputConfig(images=root.child("pictures").url, storage=output_storage),
        execution=ExecutionConfig(replicas=REPLICAS),
        output_storage=output_storage,
    )
    with connected(None):
        code = explain(config, console)
        if code is not Exit.COMPLETE:
            return code
        show_class_heatmaps(root, console)
        audited = audit(
            AuditConfig(
                run=out,
                execution=ReplicaConfig(replicas=REPLICAS),
                input_storage=output_storage,
                output_storage=output_storage,
            ),
            console,
        )
    compare_with_plants(audited.report, console)
    report(ReportConfig(out, input_storage=output_storage, output_storage=output_storage), console)
    return audited.code


def write_pictures(folder: Location, count: int) -> None:
    """`count` pictures, spread evenly over one sub-folder a class; the same each time."""

    def write(number: int) -> None:
        name = pictures.CLASS_NAMES[number % len(pictures.CLASS_NAMES)]
        seed = number // len(pictures.CLASS_NAMES)
        picture = pictures.draw(name, seed)
        folder.child(name, f"{seed:05d}.jpg").create(pictures.jpeg(picture))

    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(write, range(count)))


def compare_with_plants(report: Report, console: Console) -> None:
    """Say which of the planted shortcuts an audit found, and what else it called one."""
    shortcuts = {
        report.name(finding.evidence.target): finding.of_cue.paste.lift
        for finding in report.findings
        if finding.verdict is Verdict.SHORTCUT and finding.of_cue and finding.of_cue.paste
    }
    found = {name: lift for name, lift in shortcuts.items() if name in pictures.PLANT_RATES}
    console.print(
        f"planted {len(pictures.PLANT_RATES)}, found {len(found)}, "
        f"false alarms {len(shortcuts) - len(found)}"
    )
    for name, lift in found.items():
        console.print(
            f"  {name}: pasted into other classes' pictures, its cue flips {lift.value:.0%} "
            f"[{lift.low:.0%}, {lift.high:.0%}] more of them than any control"
        )


def show_class_heatmaps(root: Location, console: Console) -> None:
    """Print the class heatmaps of the two planted classes."""
    table = open_run(root).read_class_heatmaps()
    grid = grid_of(table.schema)
    by_name = {heatmap.name: heatmap for heatmap in read_means(table)}
    captions = {
        pictures.WATERMARKED: "watermarked",
        pictures.STICKERED: "with a moving sticker",
    }
    panels = [
        Panel.fit(heatmaps.terminal(by_name[name].mean.reshape(grid)), title=f"{name} ({kind})")
        for name, kind in captions.items()
        if name in by_name
    ]
    console.print("mean saliency of all images that the model calls so (brighter: more)")
    console.print(Columns(panels))
