"""The files that launch clusters: valid by what can be asked of them here, and of one version.

None was launched. The RayJob is held against RAY_JOB, which is KubeRay's published schema narrowed
to what our file uses: each field, type and required field of it was compared with version v1 in
ray.io_rayjobs.yaml of ray-project/kuberay at 037e91b (from the time of KubeRay 1.2) and at d327abd
(after 1.7). Where SALIENCY_RAYJOB_CRD names such a file, that comparison is done again and the
RayJob is held against the file itself. Pods and account are held against Kubernetes' own schema.
"""

import copy
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jobs.cli import parse
from jobs.config import ExplainConfig
from jobs.submission import Submission

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.37"


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def many(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def by_name(values: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXT, FLAG, OBJECT = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
# Kubernetes' own, of quantities such as 500m and 16Gi.
QUANTITY = {
    "anyOf": [{"type": "integer"}, TEXT],
    "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
    r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
}
RESOURCES = closed([], requests=by_name(QUANTITY), limits=by_name(QUANTITY))


def template(container: dict[str, Any], **pod: Any) -> dict[str, Any]:
    """Of pods with containers that have more than a name, an image and resources."""
    container = closed(["name"], name=TEXT, image=TEXT, resources=RESOURCES, **container)
    fields = {"serviceAccountName": TEXT, "containers": many(container), **pod}
    return closed([], spec=closed(["containers"], **fields))


HEAD = closed(
    ["rayStartParams", "template"],
    rayStartParams=by_name(TEXT),
    template=template({"ports": many(closed(["containerPort"], containerPort=COUNT, name=TEXT))}),
)
WORKERS = closed(
    ["groupName", "maxReplicas", "minReplicas", "rayStartParams", "template"],
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=by_name(TEXT),
    template=template(
        {},
        terminationGracePeriodSeconds=COUNT,
        tolerations=many(closed([], key=TEXT, operator=TEXT, effect=TEXT)),
    ),
)
CLUSTER = closed(
    ["headGroupSpec"],
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed([], idleTimeoutSeconds=COUNT, resources=RESOURCES),
    headGroupSpec=HEAD,
    workerGroupSpecs=many(WORKERS),
)
# The schema has any text for submissionMode; KubeRay's code knows these.
MODES = {"type": "string", "enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]}
RAY_JOB = closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"type": "string", "const": "ray.io/v1"},
    kind={"type": "string", "const": "RayJob"},
    metadata=OBJECT,
    spec=closed(
        ["entrypoint"],
        entrypoint=TEXT,
        backoffLimit=COUNT,
        submissionMode=MODES,
        submitterConfig=closed([], backoffLimit=COUNT),
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds=COUNT,
        rayClusterSpec=CLUSTER,
    ),
)


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    """The versions of what the program needs, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pairs = [requirement.split("==") for requirement in project["dependencies"]]
    return {name.partition("[")[0]: version for name, version in pairs}


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def kubernetes() -> tuple[dict[str, Any], dict[str, Any]]:
    """The account and the RayJob."""
    account, job = yaml.safe_load_all((DEPLOY / "kuberay-rayjob.yaml").read_text())
    return account, job


def check_launcher(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_rays_own_schema_code_accepts_the_launcher_file_and_refuses_a_wrong_one(launcher):
    check_launcher(launcher)
    wrong = copy.deepcopy(launcher)
    wrong["available_node_types"]["gpu"]["max_worker"] = 8
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        check_launcher(wrong)


def test_the_launcher_has_spot_gpus_decoders_roles_and_no_keys(launcher):
    types = launcher["available_node_types"]
    assert types[launcher["head_node_type"]]["resources"] == {"CPU": 0}
    assert set(types) == {"head", "gpu", "decode"}
    for name in ("gpu", "decode"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert types[name]["min_workers"] == 0
    assert launcher["max_workers"] == sum(
        types[name]["max_workers"] for name in types if name != "head"
    )
    profiles = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in types.values()}
    assert profiles == {"saliency"}
    assert "InstanceProfileName: saliency\n" in (DEPLOY / "aws-role.yaml").read_text()
    for mounted in launcher["file_mounts"].values():
        assert (ROOT / mounted).is_file()
    assert not re.search(r"AKIA|secret|aws_access", (ROOT / "cluster.yaml").read_text())


def test_images_and_ray_are_of_the_version_that_is_tested(launcher, kubernetes, pinned):
    image = f"rayproject/ray:{pinned['ray']}-py311-gpu"
    assert launcher["docker"]["image"] == image
    assert f"\nFROM {image}\n" in (DEPLOY / "Dockerfile").read_text()
    assert kubernetes[1]["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for template in pod_templates(kubernetes[1]):
        (container,) = template["spec"]["containers"]
        assert container["image"] == f"REGISTRY/saliency-jobs:{version}"


def pod_templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, **template}


def test_the_rayjob_is_valid_by_the_published_schema_and_its_pods_by_kubernetes(kubernetes):
    account, job = kubernetes
    jsonschema.validate(job, RAY_JOB)
    kubernetes_validate.validate(account, KUBERNETES, strict=True)
    for pods in pod_templates(job):
        kubernetes_validate.validate(as_pod(pods), KUBERNETES, strict=True)
        assert pods["spec"]["serviceAccountName"] == account["metadata"]["name"]
    pod = as_pod(copy.deepcopy(pod_templates(job)[0]))
    pod["spec"]["serviceAcountName"] = "a"
    with pytest.raises(kubernetes_validate.ValidationError, match="serviceAcountName"):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("backofLimit", 1, "'backofLimit' was unexpected"),
        ("backoffLimit", "five", "'five' is not of type 'integer'"),
        ("submissionMode", "K8sMode", "'K8sMode' is not one of"),
        ("rayClusterSpec.workerGroupSpecs.0.maxReplica", 8, "'maxReplica' was unexpected"),
        ("rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("rayClusterSpec.autoscalerOptions.resources.limits.memory", "1 GB", "'1 GB' does not"),
        (
            "rayClusterSpec.headGroupSpec.template.spec.containers.0.ports.0",
            {"port": 1},
            "'containerPort' is a required property",
        ),
    ],
)
def test_a_wrong_rayjob_is_refused(kubernetes, path, value, told):
    wrong = copy.deepcopy(kubernetes[1])
    *parents, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    place = wrong["spec"]
    for name in parents:
        place = place[name]
    place[last] = value
    errors = jsonschema.Draft202012Validator(RAY_JOB).iter_errors(wrong)
    assert any(told in error.message for error in errors)


def strict(schema: Any) -> Any:
    """A structural schema as JSON Schema, in which a field that it does not name is an error.

    Kubernetes drops such a field without a word, so a misspelt one does nothing.
    """
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get(
        "x-kubernetes-preserve-unknown-fields"
    ):
        made.setdefault("additionalProperties", False)
    return made


def schema_of(definition: str, version: str) -> dict[str, Any]:
    """The schema of one version in a custom resource definition's text."""
    (found,) = (
        each["schema"]["openAPIV3Schema"]
        for each in yaml.safe_load(definition)["spec"]["versions"]
        if each["name"] == version
    )
    # Of the object's metadata a definition says only that it is an object.
    found["properties"]["metadata"] = OBJECT
    made: dict[str, Any] = strict(found)
    return made


def narrowing_problems(ours: Any, published: Any, place: str = "RayJob") -> list[str]:
    """Where our schema would let through what the published one refuses or has not."""
    problems = []
    if ours.get("type") != published.get("type"):
        problems.append(f"{place}: {ours.get('type')}, published {published.get('type')}")
    if ours.get("anyOf") != published.get("anyOf"):
        problems.append(f"{place}: {ours.get('anyOf')}, published {published.get('anyOf')}")
    if "pattern" in published and ours.get("pattern") != published["pattern"]:
        problems.append(f"{place}: published with the pattern {published['pattern']}")
    if "enum" in published and not set(ours.get("enum", [None])) <= set(published["enum"]):
        problems.append(f"{place}: published as one of {published['enum']}")
    for name in set(published.get("required", [])) - set(ours.get("required", [])):
        problems.append(f"{place}.{name}: published as required")
    for name, value in ours.get("properties", {}).items():
        if name not in published.get("properties", {}):
            problems.append(f"{place}.{name}: not published")
        else:
            inner = published["properties"][name]
            problems += narrowing_problems(value, inner, f"{place}.{name}")
    for kind in ("items", "additionalProperties"):
        if isinstance(ours.get(kind), dict):
            inner = published.get(kind, {})
            problems += narrowing_problems(ours[kind], inner, f"{place}.{kind}")
    return problems


def test_the_file_of_the_published_schema_says_what_is_held_here(kubernetes):
    path = os.environ.get("SALIENCY_RAYJOB_CRD")
    if path is None:
        pytest.skip("no file: set SALIENCY_RAYJOB_CRD to KubeRay's ray.io_rayjobs.yaml")
    schema = schema_of(Path(path).read_text(), "v1")
    assert not narrowing_problems(RAY_JOB, schema)
    jsonschema.validate(kubernetes[1], schema)
    wrong = copy.deepcopy(kubernetes[1])
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 8
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(wrong, schema)


def test_a_schema_that_lets_through_what_another_refuses_is_told():
    assert not narrowing_problems(RAY_JOB, RAY_JOB)
    published = copy.deepcopy(RAY_JOB)
    spec = published["properties"]["spec"]
    spec["required"].append("suspend")
    spec["properties"]["backoffLimit"] = TEXT
    spec["properties"]["submissionMode"] = {"type": "string", "enum": ["HTTPMode"]}
    cluster = spec["properties"]["rayClusterSpec"]["properties"]
    del cluster["workerGroupSpecs"]["items"]["properties"]["groupName"]
    cluster["headGroupSpec"]["properties"]["rayStartParams"] = by_name(FLAG)
    assert {problem.partition(":")[0] for problem in narrowing_problems(RAY_JOB, published)} == {
        "RayJob.spec.suspend",
        "RayJob.spec.backoffLimit",
        "RayJob.spec.submissionMode",
        "RayJob.spec.rayClusterSpec.workerGroupSpecs.items.groupName",
        "RayJob.spec.rayClusterSpec.headGroupSpec.rayStartParams.additionalProperties",
    }


def test_a_definitions_schema_refuses_what_kubernetes_would_drop(kubernetes):
    loose = {
        "type": "object",
        "properties": {
            "apiVersion": TEXT,
            "kind": TEXT,
            "metadata": OBJECT,
            "spec": {
                "type": "object",
                "properties": {
                    **{key: {} for key in kubernetes[1]["spec"]},
                    "backoffLimit": {"type": "integer", "format": "int32"},
                    "rayClusterSpec": {
                        "type": "object",
                        "properties": {"rayVersion": TEXT},
                        "x-kubernetes-preserve-unknown-fields": True,
                    },
                },
            },
        },
    }
    version = {"name": "v1", "schema": {"openAPIV3Schema": loose}}
    older = {"name": "v1alpha1", "schema": {"openAPIV3Schema": {"type": "string"}}}
    schema = schema_of(yaml.safe_dump({"spec": {"versions": [older, version]}}), "v1")
    jsonschema.validate(kubernetes[1], schema)
    for name, value in (("backofLimit", 1), ("backoffLimit", "five")):
        wrong = copy.deepcopy(kubernetes[1])
        wrong["spec"][name] = value
        with pytest.raises(jsonschema.ValidationError, match=f"{name}|five"):
            jsonschema.validate(wrong, schema)


def test_a_gpu_pod_asks_for_one_gpu_and_a_decoding_one_for_none(kubernetes):
    gpu, decode = kubernetes[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = [
        group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in (gpu, decode)
    ]
    assert [limit.get("nvidia.com/gpu") for limit in limits] == ["1", None]


def test_the_rayjobs_command_is_one_that_could_be_submitted(kubernetes):
    shell, script, *words = shlex.split(kubernetes[1]["spec"]["entrypoint"])
    assert (shell, Path(script).name) == ("sh", "rayjob.sh")
    assert (
        f"COPY --chown=ray:users deploy/{Path(script).name}" in (DEPLOY / "Dockerfile").read_text()
    )
    config = parse(words)
    assert isinstance(config, ExplainConfig)
    Submission(tuple(words), config).check()
    # A cluster that begins without machines: what is asked for is what brings them.
    assert config.execution.device == "cuda"
    gpus = kubernetes[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert config.execution.replicas == gpus


@pytest.mark.parametrize(
    ("code", "left"),
    [(0, 0), (1, 1), (5, 5), (130, 130), (137, 137), (143, 143), (2, 0), (3, 0), (4, 0), (70, 0)],
)
def test_a_rayjob_tries_again_what_may_end_otherwise(tmp_path, code, left):
    (tmp_path / "python").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > "{tmp_path}/words"\nexit {code}\n'
    )
    (tmp_path / "python").chmod(0o755)
    words = ["explain", "--where", "label = 'a b'; echo $HOME"]
    answer = subprocess.run(
        ["sh", DEPLOY / "rayjob.sh", *words],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == left
    assert (f"exit code {code}, which another try would end with too" in answer.stdout) == (
        code != left
    )
    assert (tmp_path / "words").read_text().splitlines() == ["-m", "jobs.cli", *words]


def test_no_file_names_a_registry_or_this_machine():
    for path in [ROOT / "cluster.yaml", *DEPLOY.iterdir()]:
        assert not re.search(r"/work/|/tmp/|--index|extra-index", path.read_text()), path


def test_the_role_is_of_one_bucket():
    class Tags(yaml.SafeLoader):
        """CloudFormation's own tags, as texts."""

    Tags.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))
    role = yaml.load((DEPLOY / "aws-role.yaml").read_text(), Tags)["Resources"]["Role"]
    statements = json.dumps(role["Properties"]["Policies"])
    assert "${Bucket}" in statements
    assert "s3:*" not in statements
