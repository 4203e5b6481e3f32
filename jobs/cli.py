"""The command `saliency`: one function a sub-command; each loads what it needs only when called."""

import atexit
import logging
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console

from jobs.commands import (
    CompareConfig,
    DemoConfig,
    ExportConfig,
    ReportConfig,
    ShowConfig,
    StatusConfig,
    SubmitConfig,
    VerifyConfig,
)
from jobs.config import (
    AuditConfig,
    ConfigurationError,
    EvaluateConfig,
    Exit,
    ExplainConfig,
    StoresDownError,
)
from jobs.terminal import Terminal, plain

AnyCommand = (
    ExplainConfig
    | AuditConfig
    | EvaluateConfig
    | DemoConfig
    | ExportConfig
    | ReportConfig
    | StatusConfig
    | VerifyConfig
    | ShowConfig
    | CompareConfig
    | SubmitConfig
)
Command = (
    Annotated[ExplainConfig, tyro.conf.subcommand("explain")]
    | Annotated[AuditConfig, tyro.conf.subcommand("audit")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[DemoConfig, tyro.conf.subcommand("demo")]
    | Annotated[ExportConfig, tyro.conf.subcommand("export")]
    | Annotated[ReportConfig, tyro.conf.subcommand("report")]
    | Annotated[StatusConfig, tyro.conf.subcommand("status")]
    | Annotated[VerifyConfig, tyro.conf.subcommand("verify")]
    | Annotated[ShowConfig, tyro.conf.subcommand("show")]
    | Annotated[CompareConfig, tyro.conf.subcommand("compare")]
    | Annotated[SubmitConfig, tyro.conf.subcommand("submit")]
)


def main() -> None:
    """Run one sub-command and exit with its code."""
    codes: list[int] = []
    atexit.register(_leave, codes)  # registered first, so called last
    logging.basicConfig(level=logging.WARNING)
    codes.append(run(parse(sys.argv[1:])))
    sys.exit(codes[0])


def _leave(codes: Sequence[int]) -> None:
    """End the process, whose work is done, without taking the interpreter down.

    A thread of Arrow's that drops the last of a table while Python is taken down aborts the
    process, and its exit code with it (https://github.com/apache/arrow/issues/34314).
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by who started us
            stream.flush()
    for code in codes:
        os._exit(code)


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
    if not isinstance(command, SubmitConfig):  # which talks to another's cluster and starts none
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


def _demo(command: DemoConfig, console: Console) -> Exit:
    from jobs.demo import demo

    return demo(command.out, command.images, command.output_storage, console)


def _export(command: ExportConfig, console: Console) -> Exit:
    from jobs.export import export

    return export(command, console)


def _report(command: ReportConfig, console: Console) -> Exit:
    from jobs.report import report

    return report(command, console)


def _verify(command: VerifyConfig, console: Console) -> Exit:
    from jobs.verify import verify

    return verify(command, console)


def _status(command: StatusConfig, console: Console) -> Exit:
    from jobs.status import status

    return status(command, console)


def _show(command: ShowConfig, console: Console) -> Exit:
    from jobs.show import show

    return show(command, console)


def _compare(command: CompareConfig, console: Console) -> Exit:
    from jobs.compare import compare

    return compare(command, console)


def _submit(command: SubmitConfig, console: Console) -> int:
    config = parse(command.command)
    if isinstance(config, SubmitConfig):
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
    DemoConfig: _demo,
    ExportConfig: _export,
    ReportConfig: _report,
    StatusConfig: _status,
    VerifyConfig: _verify,
    ShowConfig: _show,
    CompareConfig: _compare,
    SubmitConfig: _submit,
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
