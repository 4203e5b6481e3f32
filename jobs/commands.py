"""The commands beside explain, audit and evaluate: a dataclass each; its fields are the options."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class DemoConfig:
    """Draw a dataset with planted shortcuts, explain it with a model that fell for them."""

    out: str = "saliency-demo"
    """Where to write pictures and run: a path or a URL (s3://...)."""
    images: int = 480
    """How many pictures to draw."""
    output_storage: str | None = None
    """JSON file of fsspec options for writing."""


@dataclass(frozen=True)
class ExportConfig:
    """Write a finished run, and what an audit found in it, in the form that another tool opens
    (docs/export.md)."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory: a path or a URL (s3://...)."""
    out: str
    """Where the export goes, an empty folder: a path or a URL (s3://...)."""
    to: Literal["parquet", "carriers", "relabel", "coco", "huggingface", "virelay", "fiftyone"] = (
        "parquet"
    )
    """Format: a copy sorted by class, lists of carriers, a table for relabelling, boxes of cues, or
    a dataset that the tool of that name opens."""
    sort_by: Literal["target", "label", "predicted"] = "target"
    """Of parquet: the column whose classes lie together; rows without one are last."""
    audit: str | None = None
    """Which of the run's audits, by the name of its folder. Default: the one that ended last."""
    images: Literal["copy", "refer"] = "copy"
    """Of huggingface and fiftyone: copy the images, or name where they are."""
    per_class: int = 100
    """Of virelay: most images of a class."""
    input_storage: str | None = None
    """JSON file of fsspec options for reading the run and its images."""
    output_storage: str | None = None
    """JSON file of fsspec options for writing the export."""


@dataclass(frozen=True)
class ReportConfig:
    """Write what a finished run and its audit found as one HTML file, which needs no network."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory: a path or a URL (s3://...)."""
    out: str | None = None
    """Where the page goes: a path or a URL. Default: report.html in the run's directory."""
    audit: str | None = None
    """Which of the run's audits is told. Default: the one that ended last."""
    against: str | None = None
    """The run before: also tell what changed since, as `saliency compare` does."""
    pictures: bool = True
    """Show images of the dataset; without them the images are not read."""
    input_storage: str | None = None
    """JSON file of fsspec options for reading images and manifest."""
    output_storage: str | None = None
    """JSON file of fsspec options for reading the run and writing the page."""


@dataclass(frozen=True)
class VerifyConfig:
    """Check that a run is whole: every row, part, digest and total; exits 1 with a list if not."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory: a path or a URL (s3://...)."""
    input_storage: str | None = None
    """JSON file of fsspec options for reading the run and its manifest."""


@dataclass(frozen=True)
class StatusConfig:
    """Tell how far a run is, from its directory; exits 0 where it is complete, 1 where not yet, 3
    where too many images failed (docs/watching.md)."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory: a path or a URL (s3://...)."""
    failures: bool = False
    """Also of an unfinished run count images by status: reads a little of every part."""
    json: bool = False
    """Print all that is known as JSON; with --watch as a line each time."""
    watch: bool = False
    """Look every ten seconds until no driver is at work on the run."""
    output_storage: str | None = None
    """JSON file of fsspec options for reading the run."""


@dataclass(frozen=True)
class ShowConfig:
    """Show images of a finished run: a PNG of each with its map, and what its row says; exits 1
    where one has no map."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory: a path or a URL (s3://...)."""
    ids: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGE_ID...", help_behavior_hint="(one or more)"),
    ]
    """Images by their names, as the column image_id has them."""
    out: str = "."
    """Folder for the pictures: a path or a URL (s3://...)."""
    target: str | None = None
    """Show the maps of this class alone, where images have several."""
    input_storage: str | None = None
    """JSON file of fsspec options for reading the images."""
    output_storage: str | None = None
    """JSON file of fsspec options for reading the run and writing the pictures."""


@dataclass(frozen=True)
class CompareConfig:
    """Tell what changed from one finished run to another of the same images: answers, maps and
    findings."""

    run_a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_A")]
    """The run before: a path or a URL (s3://...)."""
    run_b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_B")]
    """The run after: a path or a URL (s3://...)."""
    out: str | None = None
    """Also write joined rows, classes and findings here, an empty folder: a path or a URL."""
    json: bool = False
    """Print the whole comparison as JSON instead of tables."""
    fail_on: Literal["new-shortcut"] | None = None
    """Exit with code 4 where run B's audit calls a cue a shortcut that run A's does not."""
    input_storage: str | None = None
    """JSON file of fsspec options for reading both runs."""
    input_storage_b: str | None = None
    """The same for run B alone, where it lies in another store."""
    output_storage: str | None = None
    """JSON file of fsspec options for writing."""


@dataclass(frozen=True)
class SubmitConfig:
    """Have a Ray cluster run any of the other commands, given behind -- (docs/clusters.md)."""

    command: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="-- COMMAND...", help_behavior_hint="(explain --images s3://...)"),
    ]
    """A command and its options; what it reads and writes lies where the cluster reaches it."""
    address: str | None = None
    """Url of the cluster's dashboard, such as http://head:8265. Default: RAY_API_SERVER_ADDRESS, or
    RAY_ADDRESS."""
    follow: bool = False
    """Tell the job's log as it comes, and exit with its exit code."""
