"""`saliency demo`: draw a dataset with planted shortcuts, explain it, show what the model sees."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel

from jobs import heatmaps, pictures
from jobs.aggregate import read_means
from jobs.config import (
    ConfigurationError,
    ExecutionConfig,
    Exit,
    ExplainConfig,
    InputConfig,
    ModelConfig,
)
from jobs.explain import explain
from jobs.options import read_options
from jobs.prepare import INPUT_ERRORS
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
    code = explain(config, console)
    if code is Exit.COMPLETE:
        show_class_heatmaps(root, console)
    return code


def write_pictures(folder: Location, count: int) -> None:
    """`count` pictures, spread evenly over one sub-folder a class; the same each time."""

    def write(number: int) -> None:
        name = pictures.CLASS_NAMES[number % len(pictures.CLASS_NAMES)]
        seed = number // len(pictures.CLASS_NAMES)
        picture = pictures.draw(name, seed)
        folder.child(name, f"{seed:05d}.jpg").create(pictures.jpeg(picture))

    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(write, range(count)))


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
