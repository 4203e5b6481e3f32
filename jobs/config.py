"""What a run is asked to do: frozen records whose field comments serve --help and run.json."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Literal

import tyro

from jobs.replica_config import ReplicaConfig, too_small

Flag = tyro.conf.arg


class ConfigurationError(ValueError):
    """Everything that is wrong with a configuration, found before Ray starts."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoresDownError(ConfigurationError):
    """Nothing is wrong but stores that cannot be reached now; the same command may do later."""


@dataclass(frozen=True)
class InputConfig:
    """The images."""

    images: str | None = None
    """Folder of images, one sub-folder a class or flat: a path or a URL (s3://...)."""
    manifest: str | None = None
    """What lists the images (Parquet, CSV, JSON lines: a column `uri`, optionally `label` and
    `image_id`) or holds them (Parquet with image bytes, tar shards): a file, a folder or a glob."""
    uri_column: str | None = None
    """Column of a manifest with the images' urls, or with the images. Default: the usual names."""
    label_column: str | None = None
    """Column of a manifest, or key of a tar's .json members, with the labels."""
    id_column: str | None = None
    """Column of a manifest with the images' unique names; a field inside a struct as image.path."""
    where: str | None = None
    """Explain the rows that meet a condition in SQL, such as "label = 'cat' AND width > 300"."""
    classes: str | None = None
    """Explain the images with these labels: a,b,c."""
    sample: int | None = None
    """Explain so many images, drawn at random, of those that --where and --classes leave."""
    seed: int = 0
    """What --sample draws by."""
    limit: int | None = None
    """Explain the first so many images, of those that the other options leave."""
    extend: str | None = None
    """A finished run over a part of the dataset: explain only the images that it does not have."""
    storage: Annotated[str | None, Flag(name="input-storage")] = None
    """JSON file of fsspec options for reading images, manifest, checkpoint and head."""
    allow_local: bool = False
    """Let a remote manifest name local files, and hosts of private networks; a local one always
    may (docs/security.md)."""


@dataclass(frozen=True)
class ModelConfig:
    """The classifier."""

    name: Annotated[str, Flag(name="model")]
    """Any timm name of a plain vision transformer (`hf-hub:` too)."""
    checkpoint: str | None = None
    """Weights: a .safetensors or .pth URL, with config.json beside it if it has one, or
    random:SEED. Default: timm's pretrained weights."""
    head: str | None = None
    """Safetensors URL with `weight` [classes, width] and optionally `bias`, for weights without
    a classifier."""
    class_names: str | None = None
    """Text file of class names, one a line in the order of the model's outputs."""
    model_args: str | None = None
    """JSON object of arguments for timm's create_model, such as {"num_classes": 10}."""
    input_size: tuple[int, int] | None = None
    """Height and width in pixels. Default: the model's own, as for the next four."""
    mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue, in [0, 1] units."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of red, green and blue, in [0, 1] units."""
    crop_pct: float | None = None
    """Share of the resized image's side that the centre crop keeps."""
    interpolation: Literal["bicubic", "bilinear", "nearest", "lanczos"] | None = None
    """How images are resized."""
    exact_preprocessing: bool = False
    """Use timm's own transform, bit for bit, in place of one that is faster and at most two levels
    of 255 away."""


@dataclass(frozen=True)
class MethodConfig:
    """What is explained, and how (docs/reciprocam.md)."""

    name: Annotated[str, Flag(name="method")] = "reciprocam"
    """What makes the maps: reciprocam, or what it is held against: rollout, relevance, gradcam,
    legrad, libragrad, rise:MASKS, random, center. The options below are reciprocam's."""
    target: str = "predicted"
    """Class to explain: predicted, label, top:K or all."""
    variant: Literal["default", "paper", "authors"] = "default"
    """Convention of block and residual: the measured default, the paper's or its authors' code."""
    block: int | None = None
    """Transformer block that is masked, counted from the end. Default: the variant's."""
    residual: Literal["masked", "kept"] | None = None
    """Whether the residual connection around the masked attention is masked too. Default: the
    variant's."""
    mask: Literal["3x3", "1x1"] = "3x3"
    """What a mask keeps: the 3x3 kernel around a patch, or the patch alone."""
    score: Literal["log_odds", "logit"] = "log_odds"
    """Log-odds rank like the probability and do not saturate."""
    precision: Literal["float32", "mixed"] = "float32"
    """mixed: matrix products in float16, all else in float32; meant for GPUs."""


@dataclass(frozen=True)
class ExecutionConfig(ReplicaConfig):
    """Where and how fast; none of this changes a row."""

    allow_definition: bool = False
    """Explain by the definition, at dozens of forward passes an image, what has no cheap exact
    form."""
    max_failed: float = 0.01
    """Share of images that may fail before the run stops with exit code 3."""
    retry_failed: bool = False
    """Explain the images that failed before again, also of a finished run."""
    json_log: bool = False
    """Also write what happens as JSON lines on stderr (docs/watching.md)."""
    dry_run: bool = False
    """Check everything, print the plan and stop."""


@dataclass(frozen=True)
class ExplainConfig:
    """Explain every image of a dataset; the same command resumes a run that was interrupted."""

    model: ModelConfig
    out: str
    """The run's directory: a path or a URL (s3://...)."""
    input: InputConfig = field(default_factory=InputConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    output_storage: str | None = None
    """JSON file of fsspec options for writing the run."""

    def problems(self) -> list[str]:
        """What can be told wrong from the values alone, one line each."""
        found = []
        given = [name for name in ("images", "manifest") if getattr(self.input, name) is not None]
        if len(given) != 1:
            found.append(
                f"give one of --images and --manifest; got {' and '.join(given) or 'none'}"
            )
        found += self.execution.problems()
        for name in ("sample", "limit"):
            count = getattr(self.input, name)
            if count is not None and count < 1:
                found.append(f"--{name} must be at least 1; got {count}")
        if not 0 <= self.execution.max_failed <= 1:
            found.append(f"--max-failed is a share from 0 to 1; got {self.execution.max_failed}")
        if self.model.crop_pct is not None and not 0 < self.model.crop_pct <= 1:
            found.append(f"--crop-pct is a share above 0, at most 1; got {self.model.crop_pct}")
        return found


@dataclass(frozen=True)
class AuditConfig:
    """Find the classes of a finished run that rest on something they should not; the same command
    resumes an audit that was interrupted."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory: a path or a URL (s3://...)."""
    classes: str | None = None
    """Audit these classes: a,b,c. Default: all."""
    images: int = 400
    """Most images of a class to look at; one half finds cues, the other tests them."""
    seed: int = 0
    """What images, and where cues are pasted, are drawn by."""
    budget: float | None = None
    """Minutes after which no class is begun; the others stay untested."""
    fail_on: Literal["shortcut"] | None = None
    """Exit with code 4 where there is such a finding."""
    allow_untested: bool = False
    """With --fail-on, take classes that could not be tested for clean ones."""
    execution: ReplicaConfig = field(default_factory=ReplicaConfig)
    input_storage: str | None = None
    """JSON file of fsspec options for reading images, manifest, checkpoint and head."""
    output_storage: str | None = None
    """JSON file of fsspec options for reading the run and writing the audit."""

    def problems(self) -> list[str]:
        """What can be told wrong from the values alone, one line each."""
        found = too_small(self, {"images": 2, "seed": 0}) + self.execution.problems()
        if self.budget is not None and self.budget <= 0:
            found.append(f"--budget is in minutes, more than 0; got {self.budget:g}")
        return found


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure how far methods' maps can be trusted, on images of a finished run and its model; the
    same command resumes an evaluation that was interrupted (docs/evaluation.md)."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's directory: a path or a URL (s3://...)."""
    methods: str = (
        "reciprocam,reciprocam:1x1,reciprocam:-1,reciprocam:-1:1x1,rollout,relevance,gradcam,"
        "legrad,libragrad,random,center"
    )
    """Methods, as --method of explain names them; methods.parquet has differences to the first one.
    rise:MASKS costs a forward pass a mask and map, of which an image needs five."""
    sample: int = 500
    """How many of the run's explained images to look at."""
    seed: int = 0
    """What the sample, and the weights of the sanity check, are drawn by."""
    target: Literal["predicted", "label"] = "predicted"
    """Class whose maps are judged."""
    steps: int = 16
    """Steps of a curve of insertion, deletion or removal."""
    boxes: str | None = None
    """Where what matters lies, for pointing game and relevance mass: Parquet, CSV or JSON lines
    with image_id, left, top, right, bottom (pixels of the file as stored), or Parquet with image_id
    and mask (PNG)."""
    execution: ReplicaConfig = field(default_factory=ReplicaConfig)
    input_storage: str | None = None
    """JSON file of fsspec options for reading images, manifest, checkpoint, head and boxes."""
    output_storage: str | None = None
    """JSON file of fsspec options for reading the run and writing the evaluation."""

    def problems(self) -> list[str]:
        """What can be told wrong from the values alone, one line each."""
        found = too_small(self, {"sample": 1, "seed": 0, "steps": 2}) + self.execution.problems()
        names = self.methods.split(",")
        found += [
            f"--methods names {name!r} twice"
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        ]
        return found


class Exit(IntEnum):
    """What a command's exit code means; the same for every sub-command."""

    COMPLETE = 0
    INCOMPLETE = 1
    BAD_INPUT = 2
    TOO_MANY_FAILED = 3
    FINDINGS = 4
    HELD = 5
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143
