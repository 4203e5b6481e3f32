"""What may be submitted to a cluster, as which command and under which id."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING

from jobs.config import ConfigurationError, InputConfig
from storage.shown import shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Options that name a place; a test holds that every option with a text is in one of the two.
PLACES = {
    *("images", "manifest", "extend", "checkpoint", "head", "class_names", "boxes"),
    *("run", "run_a", "run_b", "against", "out"),
    *("storage", "input_storage", "input_storage_b", "output_storage"),
}
NO_PLACES = {
    *("uri_column", "label_column", "id_column", "where", "classes"),
    *("name", "model_args", "interpolation"),
    *("target", "variant", "residual", "mask", "score", "precision"),
    *("device", "replicas", "address", "methods", "fail_on", "to", "sort_by", "audit"),
}
_OPTIONS = {"storage": "--input-storage", "run": "RUN", "run_a": "RUN_A", "run_b": "RUN_B"}
_STORAGE = ("storage", "input_storage", "input_storage_b", "output_storage")


@dataclass(frozen=True)
class Place:
    """One option of a command that names a place, and what it says."""

    name: str
    value: str

    @property
    def option(self) -> str:
        return _OPTIONS.get(self.name, f"--{self.name.replace('_', '-')}")

    @property
    def is_path(self) -> bool:
        """Whether it is a path of the machine that reads it, in whatever notation."""
        return "://" not in self.value or self.value.startswith(("file://", "local://"))

    @property
    def is_absolute(self) -> bool:
        return self.value.removeprefix("file://").removeprefix("local://").startswith("/")

    @property
    def is_secret(self) -> bool:
        """Whether it holds a password, or a query, which may be a signature."""
        protocol, separator, rest = self.value.partition("://")
        user, at, _ = rest.partition("/")[0].rpartition("@")
        web = protocol in ("http", "https")
        return bool(separator) and (":" in user or (web and (bool(at) or "?" in rest)))


@dataclass(frozen=True)
class Submission:
    """A command that a cluster can run: its words, and what they were parsed to."""

    words: tuple[str, ...]
    config: "DataclassInstance"

    @property
    def entrypoint(self) -> str:
        """The command as the cluster's shell is given it."""
        return shlex.join(["python", "-m", "jobs.cli", *self.words])

    @property
    def base_id(self) -> str:
        """The same for the same command, in whatever order its options are."""
        meant = json.dumps([self.words[0], asdict(self.config)], sort_keys=True)
        return f"saliency-{self.words[0]}-{hashlib.sha256(meant.encode()).hexdigest()[:12]}"

    def mounted(self) -> list[Place]:
        """The places that are paths of the cluster's own machines."""
        return [place for place in places(self.config) if place.is_path and place.is_absolute]

    def check(self) -> None:
        """Raise ConfigurationError where the cluster could not run it, or would show a secret."""
        found = [problem for place in places(self.config) for problem in _problems(place)]
        execution = getattr(self.config, "execution", None)
        if execution is not None and execution.address is not None:
            found.append(
                "--address behind -- names a cluster, and the job is on the one that it was "
                "submitted to: leave it out there"
            )
        problems = getattr(self.config, "problems", None)
        found += problems() if problems is not None else []
        if found:
            raise ConfigurationError(found)


def places(config: "DataclassInstance") -> Iterator[Place]:
    """All places that a command names."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from places(value)
        elif isinstance(value, str) and _names_place(config, field.name, value):
            yield Place(field.name, value)


def _names_place(config: "DataclassInstance", name: str, value: str) -> bool:
    """Of exporting --images names none, and random:SEED are weights that are drawn."""
    if name == "images":
        return isinstance(config, InputConfig)
    return name in PLACES and not value.startswith("random:")


def _problems(place: Place) -> list[str]:
    if place.is_secret:
        return [
            f"{place.option}: {shown(place.value)} has a password or a query, which may be a "
            "signature, and a cluster's dashboard shows every job's command: let the machines "
            "have a role, or put the credentials into a file on them (--input-storage)"
        ]
    if not place.is_path or place.is_absolute:
        return []
    here = f"{place.option}: {shown(place.value)} is a path of this machine"
    if place.name in _STORAGE:
        return [
            f"{here}, and credentials are never uploaded, since a cluster's dashboard shows what a "
            "job is given: let the machines have a role, or mount the file on them (a Kubernetes "
            "secret, say) and give its absolute path there"
        ]
    return [
        f"{here}, and the job runs on the cluster's: give a url (s3://...), or the absolute path "
        "of a folder that all of them mount"
    ]


@dataclass(frozen=True)
class KnownJob:
    """A job that the cluster knows."""

    id: str
    ended: bool


def running(base_id: str, jobs: Iterable[KnownJob]) -> str | None:
    """The id under which a command is at work already, if it is."""
    return next((job.id for job in _tries(base_id, jobs) if not job.ended), None)


def free_id(base_id: str, jobs: Iterable[KnownJob]) -> str:
    """The id of the next try: a cluster takes each only once."""
    numbers = [_number(job.id) for job in _tries(base_id, jobs)]
    return base_id if not numbers else f"{base_id}-{max(numbers) + 1}"


def _tries(base_id: str, jobs: Iterable[KnownJob]) -> Sequence[KnownJob]:
    wanted = re.compile(rf"{re.escape(base_id)}(-\d+)?")
    return [job for job in jobs if wanted.fullmatch(job.id)]


def _number(job_id: str) -> int:
    """Which try it was; a base id is saliency-COMMAND-DIGEST."""
    parts = job_id.split("-")
    return int(parts[3]) if len(parts) == 4 else 1
