"""Everything that a run needs, checked before Ray starts: all that is wrong is told at once."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from explainer import Method, Precision, ReciproCam, Target, VitClassifier, load_model, methods
from explainer.checkpoints import Checkpoint, CheckpointError, read_checkpoint
from explainer.models import ModelError, PreprocessingOverrides
from jobs.config import (
    ConfigurationError,
    ExplainConfig,
    MethodConfig,
    ModelConfig,
    StoresDownError,
)
from jobs.images import check_extends, extended_run, may_be_local, read_images
from jobs.options import check_writable, read_options
from jobs.plan import Shard, planned, shard_size
from jobs.replica_config import ReplicaConfig
from jobs.worker import Job
from storage.images import Reading
from storage.locations import CredentialsRefused, Location, StorageUnavailable, WriteRefused
from storage.manifests import Manifest, ManifestError, NothingNew
from storage.runs import NotARun, Run, fingerprint, read_description
from storage.schema import SCHEMA_VERSION
from storage.trust import named

if TYPE_CHECKING:
    from jobs.cluster import Resources  # which imports Ray: what is wrong is told before

Value = TypeVar("Value")
BATCH_SIZE = {"cpu": 32, "cuda": 128}
# What a user's input can raise; anything else is a bug and shows its traceback.
INPUT_ERRORS = (
    CheckpointError,
    ModelError,
    ManifestError,
    NotARun,
    StorageUnavailable,
    ValueError,
    OSError,
    ImportError,  # gs:// without its package
)
# Of the configuration; a signed url is a secret.
URLS = ("images", "manifest", "extend", "checkpoint", "head", "class_names", "out")


@dataclass(frozen=True)
class Prepared:
    """A checked configuration: what is explained, by which model, to where."""

    model: VitClassifier
    method: Method
    target: Target
    manifest: Manifest
    reading: Reading
    out: Location
    description: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return self.manifest.rows

    def shards(self) -> list[Shard]:
        """The manifest's rows, cut."""
        size, targets = (self.description[n] for n in ("shard_size", "targets_per_image"))
        return planned(self.rows, self.manifest.groups, size, targets)

    def job(
        self,
        run: Run,
        stored: Location,
        need: "Resources",
        asked: ReplicaConfig,
        precision: Precision,
    ) -> Job:
        """What a replica needs for these images and this model. It publishes to `run`; `stored` is
        the manifest.parquet of the run that was made from them."""
        return Job(
            model=self.model,
            method=self.method,
            target=self.target,
            run=run,
            rows=self.manifest.source(stored),
            reading=self.reading,
            batch_size=asked.batch_size or BATCH_SIZE[need.device],
            precision=precision,
            device=need.device,
            threads=need.threads,
        )

    @property
    def labels_unknown(self) -> int:
        """Rows that have a label, which is no class of the model."""
        strangers = _strangers(self.manifest, self.model)
        return sum(count for label, count in strangers.items() if label is not None)


def prepare(config: ExplainConfig) -> Prepared:
    """Read and check all that `config` names.

    Raises ConfigurationError with every problem, StoresDownError where all of them may pass, and
    NothingNew where --extend leaves no image.
    """
    problems = config.problems()
    passing: list[str] = []

    def attempt(what: str, make: Callable[[], Value]) -> Value | None:
        try:
            return make()
        except NothingNew:
            raise
        except INPUT_ERRORS as error:
            problems.append(f"{what}: {_own_lines(str(error))}")
            if _may_pass(error):
                passing.append(problems[-1])
            return None

    input_options = attempt("--input-storage", lambda: read_options(config.input.storage)) or {}
    output_options = attempt("--output-storage", lambda: read_options(config.output_storage)) or {}
    out = attempt("--out", lambda: _output(config, output_options))
    target = attempt("--target", lambda: Target.parse(config.method.target))
    method = attempt("--method", lambda: _method(config.method))
    extended = attempt("--extend", lambda: extended_run(config, output_options))
    manifest = None
    if (config.input.images is None) != (config.input.manifest is None):
        manifest = attempt("input", lambda: read_images(config.input, extended, input_options))
    model = attempt("--model", lambda: _model(config.model, input_options))
    if model is not None and method is not None:
        allowed = config.execution.allow_definition
        attempt("method", partial(method.check, model, allow_definition=allowed))
    if model is not None and target is not None:
        attempt("--target", lambda: target.per_image(model.classes))
        if manifest is not None and target.kind == "label":
            attempt("--target", lambda: _check_labels(manifest, model))
    if problems or not (model and method and target and manifest and out):
        raise StoresDownError(problems) if problems == passing else ConfigurationError(problems)
    method = method.resolved(model)
    reading = Reading(
        input_options, config.input.uri_column, allow_local=may_be_local(config.input)
    )
    prepared = Prepared(model, method, target, manifest, reading, out, {})
    description = _describe(config, prepared)
    if extended is not None:
        identity = description["fingerprint_of"]
        attempt("--extend", lambda: check_extends(extended, identity))
    if problems:
        raise ConfigurationError(problems)
    return replace(prepared, description=description)


def _may_pass(error: Exception) -> bool:
    """Whether a store is down, rather than refusing what is asked of it."""
    refusals = (CredentialsRefused, WriteRefused)
    return isinstance(error, StorageUnavailable) and not isinstance(error, refusals)


def _own_lines(text: str) -> str:
    """A message without line ends that are a name's: our own indent what follows them."""
    return re.sub(r"\n(?!  )", r"\\n", text)


def _method(config: MethodConfig) -> Method:
    """The method of a name, or ReciproCAM's variant with what is given in place of its own."""
    if config.name != methods.RECIPROCAM:
        own = MethodConfig(config.name, config.target)
        given = [name for name in asdict(own) if getattr(config, name) != getattr(own, name)]
        if given:
            flags = ", ".join(f"--{name}" for name in given)
            raise ValueError(f"{flags} cannot be given beside --method {config.name}")
        return methods.parse(config.name)
    variant = ReciproCam.variant(config.variant)
    return ReciproCam(
        variant.block if config.block is None else config.block,
        config.residual or variant.residual,
        config.mask,
        config.score,
    )


def _output(config: ExplainConfig, options: Mapping[str, Any]) -> Location:
    """Where the run goes, tried by writing there."""
    out = named(config.out, options)
    images = None if config.input.images is None else Location(config.input.images).url
    if images is not None and f"{out.url}/".startswith(f"{images}/"):
        raise ValueError(
            f"{out} lies within --images, so the run's own pictures would become images of the "
            "next start; write elsewhere"
        )
    check_writable(out)
    return out


def _model(config: ModelConfig, options: Mapping[str, Any]) -> VitClassifier:
    names = None
    if config.class_names is not None:
        text = named(config.class_names, options).read().decode()
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    arguments = json.loads(config.model_args) if config.model_args else {}
    if not isinstance(arguments, dict):
        raise ValueError(f"--model-args must be a JSON object; got {config.model_args}")
    seed = _seed(config.checkpoint)
    from_file = config.checkpoint is not None and seed is None
    return load_model(
        config.name,
        checkpoint=_checkpoint(config.checkpoint, options) if from_file else None,
        seed=seed,
        head=_checkpoint(config.head, options),
        class_names=names,
        model_args=arguments,
        overrides=PreprocessingOverrides(
            config.input_size,
            config.mean,
            config.std,
            config.crop_pct,
            config.interpolation,
            exact=config.exact_preprocessing,
        ),
    )


def _seed(checkpoint: str | None) -> int | None:
    kind, _, seed = (checkpoint or "").partition(":")
    if kind != "random":
        return None
    if not seed.isdigit():
        raise ValueError(f"random weights are asked for as random:SEED; got {checkpoint}")
    return int(seed)


def _checkpoint(url: str | None, options: Mapping[str, Any]) -> Checkpoint | None:
    """A weights file, with the config.json beside it where there is one."""
    if url is None:
        return None
    location = named(url, options)
    try:
        data = location.read()
    except FileNotFoundError:
        raise CheckpointError(f"there is no file at {location}") from None
    try:
        beside: bytes | None = location.parent.child("config.json").read()
    except FileNotFoundError:
        beside = None
    return read_checkpoint(data, location.name, beside)


def _strangers(manifest: Manifest, model: VitClassifier) -> dict[str | int | None, int]:
    """Labels that are no class of the model, null among them, and how many rows have each."""
    names = model.class_names
    return {label: rows for label, rows in manifest.labels.items() if names.index(label) is None}


def _check_labels(manifest: Manifest, model: VitClassifier) -> None:
    strangers = _strangers(manifest, model)
    if strangers:
        unknown = sum(strangers.values())
        raise ValueError(
            f"target label needs a label that is a class of the model in every row; {unknown} of "
            f"{manifest.rows} have none, such as {list(strangers)[:3]}; the model's "
            f"classes are {', '.join(model.class_names.names[:3])}, ...; explain the predicted "
            "class instead, or give --class-names"
        )


def _describe(config: ExplainConfig, prepared: Prepared) -> dict[str, Any]:
    """run.json: what identifies the run, and beside it what was asked for in full."""
    model, rows = prepared.model, prepared.rows
    targets = prepared.target.per_image(model.classes)
    stored = read_description(prepared.out)
    size = shard_size(rows, targets) if stored is None else stored["shard_size"]
    identity = {
        "model": {
            "name": model.name,
            "arguments": dict(model.arguments),
            "weights": model.digest(),
            "class_names": fingerprint({"names": list(model.class_names.names)}),
        },
        "preprocessing": asdict(model.preprocessing),
        "method": methods.identity(prepared.method) | {"target": config.method.target},
        "precision": config.method.precision,
        "manifest": prepared.manifest.digest,
        "shard_size": size,
        "schema_version": SCHEMA_VERSION,
    }
    return {
        "fingerprint_of": identity,
        "config": _without_secrets(asdict(config)),
        "rows": rows,
        "shard_size": size,
        "targets_per_image": targets,
        "grid": list(model.grid),
    }


def _without_secrets(asked: dict[str, Any]) -> dict[str, Any]:
    """The configuration without the files of options, and with urls as messages may show them."""
    shown: dict[str, Any] = {}
    for key, value in asked.items():
        if isinstance(value, dict):
            shown[key] = _without_secrets(value)
        elif key in URLS and isinstance(value, str):
            shown[key] = Location(value).shown if "://" in value else value
        elif key not in ("storage", "output_storage"):
            shown[key] = value
    return shown
