"""The command `saliency`: one function a sub-command; each loads what it needs only when called."""

import logging
import os
import secrets
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated, Literal

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
    """Copy a finished run's explanations elsewhere, sorted by class, so that queries for one class
    skip all others."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory: a path or a URL (s3://...)."""
    out: str
    """Where the copy goes, an empty folder: a path or a URL (s3://...)."""
    to: Literal["parquet"] = "parquet"
    """Format of the copy."""
    sort_by: Literal["target", "label", "predicted"] = "target"
    """Column whose classes lie together; rows without one are last."""
    input_storage: str | None = None
    """JSON file of fsspec options for reading the run."""
    output_storage: str | None = None
    """JSON file of fsspec options for writing the copy."""


@dataclass(frozen=True)
class Verify:
    """Check that a run is whole: every row, part, digest and total; exits 1 with a list if not."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory: a path or a URL (s3://...)."""
    input_storage: str | None = None
    """JSON file of fsspec options for reading the run and its manifest."""


AnyCommand = ExplainConfig | AuditConfig | EvaluateConfig | Demo | Export | Verify
Command = (
    Annotated[ExplainConfig, tyro.conf.subcommand("explain")]
    | Annotated[AuditConfig, tyro.conf.subcommand("audit")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)


def main() -> None:
    """Run one sub-command and exit with its code."""
    logging.basicConfig(level=logging.WARNING)
    command: AnyCommand = tyro.cli(
        Command,
        prog="saliency",
        description="Explain every image of a dataset, and see where a vision transformer looks.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    sys.exit(run(command))


def run(command: AnyCommand) -> Exit:
    """Run a parsed command; what its user can mend is told in a line a problem."""
    console = Terminal(highlight=False, soft_wrap=True, emoji=False)  # of which :-1: is one
    set_ray_environment(
        None if isinstance(command, Demo | Export | Verify) else command.execution.address
    )
    from storage.lease import RunHeld
    from storage.locations import StorageUnavailable
    from storage.manifests import NothingNew
    from storage.runs import FingerprintMismatch, NotARun

    try:
        return _start(command, console)
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


def _start(command: AnyCommand, console: Console) -> Exit:
    if isinstance(command, Demo):
        from jobs.demo import demo

        return demo(command.out, command.images, command.output_storage, console)
    if isinstance(command, Export):
        from jobs.export import Request, export

        storages = command.input_storage, command.output_storage
        return export(Request(command.run, command.out, command.sort_by, *storages), console)
    if isinstance(command, Verify):
        from jobs import verify

        return verify.verify(verify.Request(command.run, command.input_storage), console)
    if isinstance(command, AuditConfig):
        from jobs.audit import audit

        return audit(command, console).code
    if isinstance(command, EvaluateConfig):
        from jobs.evaluate import evaluate

        return evaluate(command, console)
    from jobs.explain import explain

    return explain(command, console)


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
