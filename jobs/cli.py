"""The command `saliency`: one function a sub-command; each loads what it needs only when called."""

import logging
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from jobs.config import (
    AuditConfig,
    ConfigurationError,
    EvaluateConfig,
    Exit,
    ExplainConfig,
    StoresDownError,
)
from jobs.terminal import Terminal, plain


@dataclass(frozen=True)
class Demo:
    """Draw a dataset with planted shortcuts, explain it with a model that fell for them."""

    out: str = "saliency-demo"
    """Where to write pictures and run: a path or a URL (s3://...)."""
    images: int = 480
    """How many pictures to draw."""
    output_storage: str | None = None
    """JSON file of fsspec options for writing."""


@dataclass(frozen=True)
class Export:
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
class Report:
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
class Verify:
    """Check that a run is whole: every row, part, digest and total; exits 1 with a list if not."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory: a path or a URL (s3://...)."""
    input_storage: str | None = None
    """JSON file of fsspec options for reading the run and its manifest."""


@dataclass(frozen=True)
class Status:
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
class Show:
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
class Compare:
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
class Submit:
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


AnyCommand = (
    ExplainConfig
    | AuditConfig
    | EvaluateConfig
    | Demo
    | Export
    | Report
    | Status
    | Verify
    | Show
    | Compare
    | Submit
)
Command = (
    Annotated[ExplainConfig, tyro.conf.subcommand("explain")]
    | Annotated[AuditConfig, tyro.conf.subcommand("audit")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Submit, tyro.conf.subcommand("submit")]
)


def main() -> None:
    """Run one sub-command and exit with its code."""
    logging.basicConfig(level=logging.WARNING)
    sys.exit(run(parse(sys.argv[1:])))


def parse(arguments: Sequence[str]) -> AnyCommand:
    """A command line; one that does not parse is told, and ends this process with code 2."""
    command: AnyCommand = tyro.cli(
        Command,
        args=arguments,
        prog="saliency",
        description="Explain every image of a dataset, and see where a vision transformer looks.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    return command


def run(command: AnyCommand) -> int:
    """Run a parsed command; what its user can mend is told in a line a problem."""
    console = Terminal(highlight=False, soft_wrap=True, emoji=False)  # of which :-1: is one
    if not isinstance(command, Submit):  # which talks to another's cluster and starts none
        set_ray_environment(
            command.execution.address
            if isinstance(command, ExplainConfig | AuditConfig | EvaluateConfig)
            else None
        )
    from storage.lease import RunHeld
    from storage.locations import StorageUnavailable
    from storage.manifests import NothingNew
    from storage.runs import FingerprintMismatch, NotARun

    try:
        return STARTS[type(command)](command, console)
    except NothingNew as error:
        console.print(f"{error}; nothing to do", markup=False)
        return Exit.COMPLETE
    except (StorageUnavailable, StoresDownError) as error:
        console.print(f"{error}; the same command resumes", markup=False, style="red")
        return Exit.INCOMPLETE
    except (ConfigurationError, FingerprintMismatch, NotARun, RunHeld) as error:
        console.print(str(error), markup=False, style="red")
        return Exit.HELD if isinstance(error, RunHeld) else Exit.BAD_INPUT
    except KeyboardInterrupt:
        console.print("interrupted; the same command does the rest")
        return Exit.INTERRUPTED
    except Exception:  # noqa: BLE001 - Python's own exit code, 1, would say: resumable
        sys.stderr.write(plain(traceback.format_exc()))
        return Exit.BUG


def _demo(command: Demo, console: Console) -> Exit:
    from jobs.demo import demo

    return demo(command.out, command.images, command.output_storage, console)


def _export(command: Export, console: Console) -> Exit:
    from jobs.export import export
    from jobs.export_plan import Request

    return export(Request(**asdict(command)), console)


def _report(command: Report, console: Console) -> Exit:
    from jobs.report import Request, report

    return report(Request(**asdict(command)), console)


def _verify(command: Verify, console: Console) -> Exit:
    from jobs.verify import Request, verify

    return verify(Request(command.run, command.input_storage), console)


def _status(command: Status, console: Console) -> Exit:
    from jobs.status import Request, status

    return status(Request(**asdict(command)), console)


def _show(command: Show, console: Console) -> Exit:
    from jobs.show import Request, show

    return show(Request(**asdict(command)), console)


def _compare(command: Compare, console: Console) -> Exit:
    from jobs.compare import Request, compare

    return compare(Request(**asdict(command)), console)


def _submit(command: Submit, console: Console) -> int:
    config = parse(command.command)
    if isinstance(config, Submit):
        raise ConfigurationError(["submit: behind -- stands the command itself, as explain ..."])
    from jobs.submission import Submission
    from jobs.submit import Request, submit

    submission = Submission(command.command, config)
    return submit(Request(submission, command.address, command.follow), console)


def _audit(command: AuditConfig, console: Console) -> Exit:
    from jobs.audit import audit

    return audit(command, console).code


def _evaluate(command: EvaluateConfig, console: Console) -> Exit:
    from jobs.evaluate import evaluate

    return evaluate(command, console)


def _explain(command: ExplainConfig, console: Console) -> Exit:
    from jobs.explain import explain

    return explain(command, console)


# What each command does; nothing that it needs is imported before it is asked for.
STARTS: dict[type[AnyCommand], Callable[[Any, Console], int]] = {
    Demo: _demo,
    Export: _export,
    Report: _report,
    Status: _status,
    Verify: _verify,
    Show: _show,
    Compare: _compare,
    Submit: _submit,
    AuditConfig: _audit,
    EvaluateConfig: _evaluate,
    ExplainConfig: _explain,
}


def set_ray_environment(address: str | None) -> None:
    """Settle what Ray reads from the environment when it is imported.

    Under `uv run` Ray would rebuild the environment of every worker, without the extras that this
    process was started with. And a cluster of our own answers to a token that only its processes
    know: Ray's own choice is a token in a file of the home folder that others may read.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    own = address is None and "RAY_ADDRESS" not in os.environ
    if own and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


if __name__ == "__main__":
    main()
