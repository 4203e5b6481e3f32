"""What an export is made of: a finished run, what an audit found in it, and a place for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jobs.config import ConfigurationError
from jobs.export_findings import Found, find
from jobs.options import check_writable, read_options
from storage.export_folders import CreatedFile, ExportFolder
from storage.exports import entries
from storage.locations import CredentialsRefused, Location, WriteRefused
from storage.runs import NotARun, Run, finished_summary, open_run
from storage.trust import named

if TYPE_CHECKING:
    from jobs.finished import Finished

# Whether a format holds what an audit found.
NEED_AUDIT = ("carriers", "coco")
MAY_HAVE_AUDIT = ("relabel", "huggingface", "fiftyone")
OF_RUN = (NotARun, OSError, ValueError, ImportError)
OF_OUT = (WriteRefused, CredentialsRefused, OSError, ValueError, ImportError)


@dataclass(frozen=True)
class Request:
    """What is exported to where; the storages are JSON files of fsspec options."""

    run: str
    out: str
    sort_by: str = "target"
    input_storage: str | None = None
    output_storage: str | None = None
    to: str = "parquet"
    audit: str | None = None
    images: str = "copy"
    per_class: int = 100


@dataclass(frozen=True)
class Exported:
    """A finished run, what its summary.json says and an audit found, and where all that goes.

    `options` are those of the store of the run and of its images.
    """

    run: Run
    summary: Mapping[str, Any]
    found: Found | None
    folder: ExportFolder
    request: Request
    options: Mapping[str, Any]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a map."""
        rows, columns = self.run.description["grid"]
        return int(rows), int(columns)

    @property
    def targets_per_image(self) -> int:
        return int(self.run.description["targets_per_image"])

    @property
    def images(self) -> int:
        """The images of the run, failed ones among them."""
        return int(self.summary["rows"])

    @property
    def explained(self) -> int:
        """Of these the ones with maps."""
        return int(self.summary["statuses"].get("ok", 0))

    @property
    def rows(self) -> int:
        """The rows of its explanations."""
        return self.images + self.explained * (self.targets_per_image - 1)

    @cached_property
    def finished(self) -> "Finished":
        """The same run with its images. Raises ConfigurationError where its list is gone."""
        from jobs.finished import open_finished  # loads torch, which lists and tables do not need

        storage = self.request.input_storage
        return open_finished(self.request.run, storage, storage)

    @property
    def audited(self) -> Found:
        """What was found, for formats that need an audit."""
        assert self.found is not None, self.request.to
        return self.found


@dataclass(frozen=True)
class Written:
    """The files of an export, and counts of what is in them, by name."""

    files: list[CreatedFile]
    counts: Mapping[str, int]


def plan(request: Request) -> Exported:
    """The run, its audit and the place; raises ConfigurationError with all that is wrong."""
    problems: list[str] = []
    run, summary, found, out = None, None, None, None
    options: Mapping[str, Any] = {}
    try:
        options = read_options(request.input_storage)
        run = open_run(named(request.run, options))
        summary = finished_summary(run)
        found = _found(request, run, summary)
    except OF_RUN as error:
        problems.append(f"RUN: {error}")
    if request.per_class < 1:
        problems.append(f"--per-class must be at least 1; got {request.per_class}")
    try:
        out = place(request, run)
    except OF_OUT as error:
        problems.append(f"--out: {error}")
    if problems or run is None or summary is None or out is None:
        raise ConfigurationError(problems)
    folder = ExportFolder(out, _identity(request, run, summary, found))
    return Exported(run, summary, found, folder, request, options)


def place(request: Request, run: Run | None) -> Location:
    """Where the export goes, which can be written to. Raises OF_OUT."""
    out = named(request.out, read_options(request.output_storage))
    if run is not None and f"{out.url}/".startswith(f"{run.root.url}/"):
        raise ValueError(f"{out} lies in the run: name a place outside of it")
    entries(out)
    check_writable(out)
    return out


def _found(request: Request, run: Run, summary: Mapping[str, Any]) -> Found | None:
    if request.to not in NEED_AUDIT + MAY_HAVE_AUDIT:
        if request.audit is not None:
            raise ValueError(f"--to {request.to} holds nothing of an audit: leave out --audit")
        return None
    found = find(run, str(summary["parts_digest"]), request.audit)
    if found is None and request.to in NEED_AUDIT:
        raise ValueError(
            f"{run.root} has no audit of its present parts that has ended, and --to {request.to} "
            "is made of what one found: `saliency audit` it first"
        )
    return found


def _identity(
    request: Request, run: Run, summary: Mapping[str, Any], found: Found | None
) -> dict[str, str]:
    """All that changes a file of an export."""
    said = {"format": request.to, "run": run.id, "parts_digest": str(summary["parts_digest"])}
    said |= {"audit": "none", "findings": "none"}
    if found is not None:
        said |= {"audit": found.audit, "findings": found.digest}
    if request.to in ("huggingface", "fiftyone"):
        said["images"] = request.images
    if request.to == "virelay":
        said["per_class"] = str(request.per_class)
    return said
