"""`saliency submit`, whole: check -> connect -> pack -> submit, or find it at work -> follow."""

import logging
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from rich.console import Console

from jobs.cluster import ClusterError, check_reachable
from jobs.config import ConfigurationError, Exit
from jobs.follow import command, follow
from jobs.submission import KnownJob, Submission, free_id, running
from jobs.working_dir import packed

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TALKATIVE = (
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
# Of two that submit at once the cluster takes one, and the other looks again.
TRIES = 3


@dataclass(frozen=True)
class Request:
    """What to submit, where, and whether to stay."""

    submission: Submission
    address: str | None = None
    follow: bool = False


def submit(request: Request, console: Console) -> int:
    """Have a cluster run a command: once, however often that is asked for while it runs.

    Returns the command's own exit code where it is followed. Raises ConfigurationError.
    """
    request.submission.check()
    address = dashboard(request.address)
    try:
        client = connect(address)
        tell_version(client, console)
        job_id = _submitted(client, request.submission, console)
    except AuthenticationError as error:
        raise ConfigurationError(
            [
                f"--address: {address} asks for a token: set RAY_AUTH_MODE=token and "
                f"RAY_AUTH_TOKEN ({' '.join(str(error).split())[:200]})"
            ]
        ) from error
    except (
        ClusterError,
        ConnectionError,
        RuntimeError,  # what Ray's client raises for every status but 200
        requests.exceptions.RequestException,
    ) as error:
        console.print(f"cannot submit to {address}: {error}", markup=False, style="red")
        return Exit.INCOMPLETE
    if request.follow:
        return follow(client, job_id, console)
    console.print(f"its log:  {command('logs --follow', client, job_id)}", markup=False)
    console.print(f"stop it:  {command('stop', client, job_id)}", markup=False)
    return Exit.COMPLETE


def dashboard(address: str | None) -> str:
    """The url of the cluster's dashboard. Raises ConfigurationError where none is given."""
    found = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    parts = urlsplit(found or "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(
            [
                "--address (or RAY_API_SERVER_ADDRESS) is the url of the cluster's dashboard, such "
                f"as http://head:8265; got {found or 'none'}"
            ]
        )
    if parts.username or parts.query:
        raise ConfigurationError(["--address has a password or a query: give the url without"])
    return parts.geturl().rstrip("/")


def connect(address: str) -> JobSubmissionClient:
    """Ray's client of the Jobs API there. Raises ClusterError in seconds where nobody listens."""
    parts = urlsplit(address)
    check_reachable(f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}")
    # Ray's client takes what the environment says before what it is told.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    return JobSubmissionClient(address)


def tell_version(client: JobSubmissionClient, console: Console) -> None:
    """Say where the cluster's Ray is another than the one that this program is tested with."""
    theirs = client._server_ray_version  # what the client asked for as it connected
    if theirs != ray.__version__:
        console.print(
            f"the cluster has Ray {theirs}, and this program is tested with {ray.__version__}: "
            "the job runs with the cluster's packages",
            markup=False,
            style="yellow",
        )


def _submitted(client: JobSubmissionClient, submission: Submission, console: Console) -> str:
    """The id under which the command is at work now."""
    for place in submission.mounted():
        console.print(
            f"{place.option}: {place.value} is read on the cluster's machines", markup=False
        )
    for tries_left in reversed(range(TRIES)):
        jobs = _known(client)
        if (at_work := running(submission.base_id, jobs)) is not None:
            console.print(f"{at_work} is at work already; nothing was submitted", markup=False)
            return at_work
        job_id = free_id(submission.base_id, jobs)
        try:
            _submit_as(client, submission, job_id)
        except RuntimeError:
            if tries_left == 0 or job_id not in {job.id for job in _known(client)}:
                raise
        else:
            console.print(f"submitted {job_id}", markup=False)
            return job_id
    raise AssertionError("the last try returns or raises")


def _known(client: JobSubmissionClient) -> list[KnownJob]:
    jobs = client.list_jobs()
    return [
        KnownJob(job.submission_id, job.status.is_terminal()) for job in jobs if job.submission_id
    ]


def _submit_as(client: JobSubmissionClient, submission: Submission, job_id: str) -> None:
    with packed() as folder:
        client.submit_job(
            entrypoint=submission.entrypoint,
            submission_id=job_id,
            runtime_env={"working_dir": str(folder)},
        )
