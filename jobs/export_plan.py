"""What an export is made of: a finished run, what an audit found in it, and a place for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jobs.commands import ExportConfig
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
class Exported:
    """A finished run, what its summary.json says and an audit found, and where all that goes.

    `options` are those of the store of the run and of its images.
    """

    run: Run
    summary: Mapping[str, Any]
    found: Found | None
    folder: ExportFolder
    config: ExportConfig
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

        storage = self.config.input_storage
        return open_finished(self.config.run, storage, storage)

    @property
    def audited(self) -> Found:
        """What was found, for formats that need an audit."""
        assert self.found is not None, self.config.to
        return self.found


@dataclass(frozen=True)
class Written:
    """The files of an export, and counts of what is in them, by name."""

    files: list[CreatedFile]
    counts: Mapping[str, int]


def plan(config: ExportConfig) -> Exported:
    """The run, its audit and the place; raises ConfigurationError with all that is wrong."""
    problems: list[str] = []
    run, summary, found, out = None, None, None, None
    options: Mapping[str, Any] = {}
    try:
        options = read_options(config.input_storage)
        run = open_run(named(config.run, options))
        summary = finished_summary(run)
        found = _found(config, run, summary)
    except OF_RUN as error:
        problems.append(f"RUN: {error}")
    if config.per_class < 1:
        problems.append(f"--per-class must be at least 1; got {config.per_class}")
    try:
        out = _place(config, run)
    except OF_OUT as error:
        problems.append(f"--out: {error}")
    if problems or run is None or summary is None or out is None:
        raise ConfigurationError(problems)
    folder = ExportFolder(out, _identity(config, run, summary, found))
    return Exported(run, summary, found, folder, config, options)


def _place(config: ExportConfig, run: Run | None) -> Location:
    """Where the export goes, which can be written to. Raises OF_OUT."""
    out = named(config.out, read_options(config.output_storage))
    if run is not None and f"{out.url}/".startswith(f"{run.root.url}/"):
        raise ValueError(f"{out} lies in the run: name a place outside of it")
    entries(out)
    check_writable(out)
    return out


def _found(config: ExportConfig, run: Run, summary: Mapping[str, Any]) -> Found | None:
    if config.to not in NEED_AUDIT + MAY_HAVE_AUDIT:
        if config.audit is not None:
            raise ValueError(f"--to {config.to} holds nothing of an audit: leave out --audit")
        return None
    found = find(run, str(summary["parts_digest"]), config.audit)
    if found is None and config.to in NEED_AUDIT:
        raise ValueError(
            f"{run.root} has no audit of its present parts that has ended, and --to {config.to} "
            "is made of what one found: `saliency audit` it first"
        )
    return found


def _identity(
    config: ExportConfig, run: Run, summary: Mapping[str, Any], found: Found | None
) -> dict[str, str]:
    """All that changes a file of an export."""
    said = {"format": config.to, "run": run.id, "parts_digest": str(summary["parts_digest"])}
    said |= {"audit": "none", "findings": "none"}
    if found is not None:
        said |= {"audit": found.audit, "findings": found.digest}
    if config.to in ("huggingface", "fiftyone"):
        said["images"] = config.images
    if config.to == "virelay":
        said["per_class"] = str(config.per_class)
    return said
