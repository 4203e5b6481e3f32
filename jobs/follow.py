"""A submitted job's log as it comes, and its exit code, through connections that break."""

import asyncio
import signal
import time
from dataclasses import dataclass

import aiohttp
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console

from jobs.config import Exit
from jobs.signals import Signals

# A connection over which nothing comes for so long may be dead; a running job tells something
# every ten seconds.
SILENCE_SECONDS = 60.0
PAUSE_SECONDS = 1.0
# For how long a cluster may be out of reach.
PATIENCE_SECONDS = 600.0
# RuntimeError is what Ray's client raises for a connection that breaks and for any status but 200.
OUT_OF_REACH = (
    ConnectionError,
    RuntimeError,
    aiohttp.ClientError,
    requests.exceptions.RequestException,
)


@dataclass
class Followed:
    """A job, and how much of its log was told."""

    client: JobSubmissionClient
    id: str
    console: Console
    told: int = 0

    async def tail(self) -> None:
        """Tell what is new until the log ends, or nothing comes; it is read from its beginning."""
        stream = aiter(self.client.tail_job_logs(self.id))
        position = 0
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    text = await anext(stream, None)
            except TimeoutError:
                return
            if text is None:
                return
            self._tell(text[max(0, self.told - position) :])
            position += len(text)
            self.told = max(self.told, position)

    def _tell(self, text: str) -> None:
        if text:
            self.console.print(text, markup=False, end="")


def follow(
    client: JobSubmissionClient, job_id: str, console: Console, patience: float = PATIENCE_SECONDS
) -> int:
    """Tell a job's log until it ends, and return its own exit code.

    A cluster that is out of reach is asked again for `patience` seconds. Ctrl-C ends the telling
    alone: the job goes on.
    """
    signals = Signals()
    try:
        with signals.caught():
            details = _ended(Followed(client, job_id, console), patience, signals)
    except KeyboardInterrupt:
        console.print(
            f"{job_id} goes on; the same command follows it again, and this stops it: "
            f"{command('stop', client, job_id)}",
            markup=False,
        )
        return Exit.TERMINATED if signals.received == signal.SIGTERM else Exit.INTERRUPTED
    if details is None:
        return Exit.INCOMPLETE
    tell_end(details, job_id, console)
    return exit_code(details)


def command(verb: str, client: JobSubmissionClient, job_id: str) -> str:
    """One of Ray's own commands about a job."""
    return f"ray job {verb} --address {client.get_address()} {job_id}"


def _ended(job: Followed, patience: float, signals: Signals) -> JobDetails | None:
    """What became of the job; None where that was not to be learned."""
    lost_since: float | None = None
    while True:
        signals.check()  # one that came while a connection broke may have been lost in it
        try:
            asyncio.run(job.tail())
            details = job.client.get_job_info(job.id)
            if details.status.is_terminal():
                return details
            lost_since = None
        except OUT_OF_REACH as error:
            if _is_unknown(error):
                job.console.print(
                    f"the cluster does not know {job.id} any more, as after a restart of its head; "
                    "the same command does the rest",
                    markup=False,
                    style="red",
                )
                return None
            now = time.monotonic()
            if lost_since is None:
                lost_since = now
                job.console.print(
                    f"out of reach ({error}); the job goes on, and is asked for again",
                    markup=False,
                )
            if now - lost_since > patience:
                job.console.print(
                    f"out of reach for {patience:.0f} s: {job.id} may still be at work; the same "
                    "command follows it again",
                    markup=False,
                    style="red",
                )
                return None
        time.sleep(PAUSE_SECONDS)


def _is_unknown(error: Exception) -> bool:
    """Whether the cluster answers, and says that it has no such job."""
    return getattr(error, "status", None) == 404 or "status code 404" in str(error)


def tell_end(details: JobDetails, job_id: str, console: Console) -> None:
    """One line about how a job ended; where its command never ran, also why."""
    if details.status == JobStatus.STOPPED:
        console.print(f"{job_id} was stopped; the same command does the rest", markup=False)
    elif details.status == JobStatus.FAILED and details.driver_exit_code is None:
        console.print(f"{job_id} failed: {details.message}", markup=False, style="red")
    else:
        console.print(f"{job_id} ended with exit code {exit_code(details)}", markup=False)


def exit_code(details: JobDetails) -> int:
    """The command's own, as a shell would have it; 1 where the cluster ended it, or never began."""
    if details.status == JobStatus.SUCCEEDED:
        return Exit.COMPLETE
    if details.status == JobStatus.STOPPED:
        return Exit.TERMINATED
    code = details.driver_exit_code
    if code is None:
        return Exit.INCOMPLETE
    return code if code >= 0 else 128 - code
