"""What a job is asked to do about replicas: options that explain, audit and evaluate share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Bounds:
    """How many replicas a job is to have; without `most` it follows what the cluster has."""

    least: int
    most: int | None


@dataclass(frozen=True)
class ReplicaConfig:
    """Replicas of the model, and the cluster that they are on; none of this changes a result."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU a replica where the cluster has GPUs, else CPU cores."""
    replicas: Annotated[int | str | None, tyro.conf.arg(metavar="N|MIN:MAX")] = None
    """How many copies of the model: N at most, or MIN:MAX, or MIN: and as many as the cluster has;
    with fewer than MIN the job ends after --start-timeout. Default: one a GPU, or one for every
    four cores, and more when machines join."""
    replicas_per_gpu: int = 1
    """How many replicas share a GPU, for models too small to fill one."""
    batch_size: int | None = None
    """Images that go through the model at once, evaluate takes at most 32; halved where they do not
    fit into a GPU's memory. Default: 32 on CPU cores, 128 on a GPU."""
    address: str | None = None
    """Ray cluster to connect to. Default: RAY_ADDRESS, or a cluster of its own on this machine."""
    start_timeout: float = 600.0
    """Seconds to wait for the replicas without which nothing goes on."""
    shard_timeout: float | None = None
    """Seconds after which a replica is taken for hung. Default: ten times what the slowest shard so
    far took, by rows, and at least five minutes; four hours while none is done."""
    take_over: bool = False
    """Take what is written to from the driver that holds it, dead or alive."""

    @property
    def bounds(self) -> Bounds:
        """What `replicas` says. Raises ValueError where it says nothing."""
        if self.replicas is None:
            return Bounds(1, None)
        first, is_range, last = str(self.replicas).partition(":")
        most = (int(last) if last else None) if is_range else int(first)
        bounds = Bounds(int(first) if is_range else 1, most)
        if bounds.least < 1 or (most is not None and most < bounds.least):
            raise ValueError(self.replicas)
        return bounds

    def problems(self) -> list[str]:
        """What can be told wrong from the values alone, one line each."""
        found = too_small(self, {"replicas_per_gpu": 1, "batch_size": 1})
        try:
            _ = self.bounds
        except ValueError:
            found.append(
                "--replicas is N, MIN:MAX or MIN:, with 1 <= MIN <= MAX; "
                f"got {str(self.replicas)!r}"
            )
        if self.replicas_per_gpu > 1 and self.device == "cpu":
            found.append("--replicas-per-gpu needs GPUs; got --device cpu")
        if self.shard_timeout is not None and self.shard_timeout <= 0:
            found.append(f"--shard-timeout is in seconds, more than 0; got {self.shard_timeout:g}")
        return found


def too_small(config: object, leasts: Mapping[str, int]) -> list[str]:
    """A line for each given number that is below its least."""
    values = {name: getattr(config, name) for name in leasts}
    return [
        f"--{name.replace('_', '-')} must be at least {leasts[name]}; got {value}"
        for name, value in values.items()
        if value is not None and value < leasts[name]
    ]
