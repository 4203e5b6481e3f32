"""A bad configuration is told whole, before Ray starts; a good one becomes run.json."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from explainer import ReciproCam, explain, load_model
from explainer.methods import Baseline
from jobs.config import (
    ConfigurationError,
    ExecutionConfig,
    ExplainConfig,
    InputConfig,
    MethodConfig,
    StoresDownError,
)
from jobs.config import ModelConfig as Model
from jobs.prepare import _without_secrets, prepare
from storage.runs import FingerprintMismatch, fingerprint, open_or_create


@pytest.fixture
def config(image_folder: Path, tiny_model: Model, tmp_path: Path) -> ExplainConfig:
    return ExplainConfig(
        model=tiny_model, out=str(tmp_path / "run"), input=InputConfig(images=str(image_folder))
    )


def problems(config: ExplainConfig) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        prepare(config)
    return caught.value.problems


def test_every_problem_is_told_at_once(config, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    bad = replace(
        config,
        model=Model("vit_smal_patch16_224", "random:0"),
        out=str(blocked / "run"),
        input=InputConfig(images=str(tmp_path / "nowhere")),
        method=MethodConfig(target="best"),
        execution=ExecutionConfig(replicas=0, batch_size=0, max_failed=2),
    )
    found = problems(bad)
    assert len(found) == 7
    for start, part in [
        ("--replicas", "N, MIN:MAX or MIN:, with 1 <= MIN <= MAX; got '0'"),
        ("--batch-size", "must be at least 1; got 0"),
        ("--max-failed", "a share from 0 to 1; got 2"),
        ("--out", f"cannot write to {blocked}/run"),
        ("--target", "must be predicted, label, top:K"),
        ("input", "nowhere"),
        ("--model", "nearest: vit_small_patch16_224"),
    ]:
        assert any(line.startswith(start) and part in line for line in found), (start, found)


def test_images_and_manifest_exclude_each_other(config):
    rule = "give one of --images and --manifest; got"
    assert problems(replace(config, input=InputConfig())) == [f"{rule} none"]
    both = InputConfig(images="a", manifest="b.csv")
    assert problems(replace(config, input=both)) == [f"{rule} images and manifest"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "absent.csv"),
        ("table.csv", "name,label\na.jpg,b\n", "column"),
        ("table.parquet", "no parquet at all", "table.parquet"),
        ("table.xlsx", "x", "table.xlsx"),
        ("twice.csv", "uri\na.jpg\na.jpg\n", "a.jpg"),
        ("empty.csv", "uri\n", "empty.csv"),
    ],
)
def test_bad_manifests(config, tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    (line,) = problems(replace(config, input=InputConfig(manifest=str(path))))
    assert message in line


def test_a_folder_without_images(config, tmp_path):
    (tmp_path / "empty").mkdir()
    (line,) = problems(replace(config, input=InputConfig(images=str(tmp_path / "empty"))))
    assert "no images in" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint": "random:x"}, "random weights are asked for as random:SEED; got random:x"),
        ({"checkpoint": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"class_names": "nowhere.txt"}, "nowhere.txt"),
        ({"model_args": "[1]"}, "--model-args must be a JSON object; got [1]"),
        ({"model_args": "{"}, "--model"),
        ({"name": "swin_tiny_patch4_window7_224", "model_args": None}, "it is a SwinTransformer"),
        ({"name": "vit_small_patch14_dinov2", "model_args": None}, "has no classifier"),
    ],
)
def test_bad_models(config, change, message):
    (line,) = problems(replace(config, model=replace(config.model, **change)))
    assert message in line


def test_methods_without_a_fast_exact_form(config):
    kept = MethodConfig(block=-2, residual="kept")
    (line,) = problems(replace(config, method=kept))
    assert line.startswith(
        "method: vit_tiny_patch16_224 at block -2 has no cheap exact form, because with the kept "
        "residual every masked token stays different from the others: by the definition an image "
        "costs about 12 forward passes; allow the definition (--allow-definition)"
    )
    allowed = replace(config, method=kept, execution=ExecutionConfig(allow_definition=True))
    assert prepare(allowed).method == ReciproCam(-2, "kept")
    authors = replace(allowed, method=MethodConfig(variant="authors"))
    assert prepare(authors).description == prepare(allowed).description | {
        "config": prepare(authors).description["config"]
    }
    paper = replace(config, method=MethodConfig(variant="paper", mask="1x1"))
    assert prepare(paper).method == ReciproCam(-1, "kept", "1x1")
    many = MethodConfig(target="top:9")
    (line,) = problems(replace(config, method=many))
    assert "top:9 asks for more classes than the model's 5" in line


def test_other_methods_are_named_and_take_none_of_reciprocams_options(config):
    named = replace(config, method=MethodConfig("rise:50"))
    assert prepare(named).method == Baseline("rise", 50)
    identity = prepare(named).description["fingerprint_of"]["method"]
    assert identity == {"name": "rise", "masks": 50, "target": "predicted"}
    options = replace(config, method=MethodConfig("reciprocam:-1:1x1"))
    flags = replace(config, method=MethodConfig(block=-1, mask="1x1"))
    assert prepare(options).method == prepare(flags).method
    both = MethodConfig("rollout", block=-1, precision="mixed")
    (line,) = problems(replace(config, method=both))
    assert line == "--method: --block, --precision cannot be given beside --method rollout"
    (line,) = problems(replace(config, method=MethodConfig("rolout")))
    assert line.startswith("--method: a method is reciprocam, rollout, relevance, ")
    assert line.endswith("got 'rolout'")


def test_target_label_needs_labels_that_are_classes(config):
    (line,) = problems(replace(config, method=MethodConfig(target="label")))
    assert "60 of 60 have none, such as ['ant', 'bee', 'cat']" in line
    assert prepare(config).labels_unknown == 60


def test_options_are_read_from_json_and_shown_nowhere(config, tmp_path):
    options = tmp_path / "options.json"
    options.write_text('{"key": "top-secret"')
    (line,) = problems(replace(config, output_storage=str(options)))
    assert "is not JSON" in line
    assert "top-secret" not in line
    options.write_text('{"key": "top-secret"}')
    prepared = prepare(replace(config, output_storage=str(options)))
    assert "top-secret" not in json.dumps(prepared.description) + repr(prepared.out)
    assert str(options) not in json.dumps(prepared.description)


def test_signed_urls_lose_their_signature_in_run_json(config):
    signed = replace(
        config.model, checkpoint="http://user:pass@127.0.0.1:1/w.safetensors?sig=SIGNED"
    )
    (line,) = problems(replace(config, model=signed))
    assert "SIGNED" not in line
    assert "pass" not in line
    shown = _without_secrets({"input": {"manifest": "s3://u:p@b/m.csv?sig=SIGNED", "storage": "x"}})
    assert shown == {"input": {"manifest": "s3://b/m.csv"}}


def test_an_output_within_the_images_is_refused(config):
    inside = replace(config, out=config.input.images + "/run")
    (line,) = problems(inside)
    assert "lies within --images" in line


def test_labels_that_are_missing_are_not_labels_of_another_model(config, image_folder):
    flat = replace(config, input=InputConfig(images=str(image_folder / "ant")))
    assert prepare(flat).labels_unknown == 0


@pytest.mark.parametrize("out", ["", "nowhere://bucket/run", "/proc/nothing/run"])
def test_outputs_that_cannot_be(config, out):
    (line,) = problems(replace(config, out=out))
    assert line.startswith("--out: ")


def test_a_resume_takes_the_shard_size_from_run_json(config):
    first = prepare(config)
    stored = dict(first.description, shard_size=7)
    stored["fingerprint_of"] = dict(first.description["fingerprint_of"], shard_size=7)
    open_or_create(first.out, stored)
    again = prepare(config)
    assert again.description["shard_size"] == 7
    open_or_create(again.out, again.description)


def test_the_fingerprint_holds_what_changes_a_row_and_nothing_else(config, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    base = prepare(config).description["fingerprint_of"]
    same = replace(config, execution=ExecutionConfig(replicas=3, batch_size=7, device="cpu"))
    assert prepare(same).description["fingerprint_of"] == base
    assert prepare(replace(config, out=config.out + "2")).description["fingerprint_of"] == base
    model = config.model
    arguments = json.loads(model.model_args)
    others = [
        replace(config, model=replace(model, checkpoint="random:1")),
        replace(config, model=replace(model, class_names=str(names))),
        replace(config, model=replace(model, mean=(0.1, 0.2, 0.3))),
        replace(config, model=replace(model, interpolation="bilinear")),
        # The number of heads leaves every weight as it is, and changes every map.
        replace(config, model=replace(model, model_args=json.dumps(arguments | {"num_heads": 4}))),
        replace(config, method=MethodConfig(block=-1)),
        replace(config, method=MethodConfig(precision="mixed")),
        replace(config, method=MethodConfig(mask="1x1")),
        replace(config, method=MethodConfig(score="logit")),
        replace(config, method=MethodConfig(target="top:2")),
    ]
    found = [prepare(other).description["fingerprint_of"] for other in others]
    assert len({fingerprint(identity) for identity in [base, *found]}) == len(others) + 1


def test_manifests_of_every_format_plan_the_same_rows(config, image_folder, tmp_path):
    files = sorted(image_folder.rglob("*.*g"), key=lambda path: path.relative_to(image_folder))
    table = pa.table(
        {
            "image_id": [path.relative_to(image_folder).as_posix() for path in files],
            "uri": [str(path) for path in files],
            "label": [path.parent.name for path in files],
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    table.to_pandas().to_csv(tmp_path / "m.csv", index=False)
    digests = {prepare(config).manifest.digest}
    for name in ("m.parquet", "m.csv"):
        from_file = replace(config, input=InputConfig(manifest=str(tmp_path / name)))
        digests.add(prepare(from_file).manifest.digest)
    assert len(digests) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(config, tmp_path, value):
    model = load_model(config.model.name, seed=0, model_args=json.loads(config.model.model_args))
    model.vit.blocks[1].attn.qkv.weight[3, 4] = value
    model.vit.head.bias[0] = value
    path = tmp_path / "bad.safetensors"
    path.write_bytes(safetensors.torch.save(dict(model.vit.state_dict())))
    (line,) = problems(replace(config, model=replace(config.model, checkpoint=str(path))))
    assert line == (
        "--model: vit_tiny_patch16_224's weights hold NaN or infinity, in blocks.1.attn.qkv.weight "
        "and 1 more: no image can be explained with them; give weights that are finite"
    )


def test_a_head_that_is_not_finite_is_refused_too(config, tmp_path):
    path = tmp_path / "head.safetensors"
    path.write_bytes(safetensors.torch.save({"weight": torch.full((3, 48), torch.nan)}))
    (line,) = problems(replace(config, model=replace(config.model, head=str(path))))
    assert "hold NaN or infinity, in head.weight: " in line


def test_a_head_with_one_class_has_logits_and_no_log_odds(config):
    arguments = json.dumps(json.loads(config.model.model_args) | {"num_classes": 1})
    one = replace(config, model=replace(config.model, model_args=arguments))
    (line,) = problems(one)
    assert line == (
        "method: log-odds compare a class with the others, and this model has one; use score logit "
        "(--score logit)"
    )
    logit = prepare(replace(one, method=MethodConfig(score="logit")))
    crops = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    explained = explain(logit.model, crops, target=logit.target, method=logit.method)
    assert explained.targets.tolist() == [[0], [0]]
    assert explained.is_finite.all()


@pytest.mark.parametrize("name", ["list.csv", "list.parquet"])
def test_a_manifest_that_changed_between_two_starts_is_refused(config, tmp_path, name):
    def write(uris: list[str]) -> ExplainConfig:
        table = pa.table({"uri": uris})
        if name == "list.csv":
            table.to_pandas().to_csv(tmp_path / name, index=False)
        else:
            pq.write_table(table, tmp_path / name)
        return replace(config, input=InputConfig(manifest=str(tmp_path / name)))

    first = prepare(write(["/a", "/b"]))
    open_or_create(first.out, first.description)
    same = prepare(write(["/a", "/b"]))
    open_or_create(same.out, same.description)
    other = prepare(write(["/a", "/c"]))
    digests = [json.dumps(each.manifest.digest) for each in (first, other)]
    wanted = f"  manifest: run has {digests[0]}, this command has {digests[1]}"
    with pytest.raises(FingerprintMismatch) as caught:
        open_or_create(other.out, other.description)
    assert wanted in str(caught.value).splitlines()


def test_stores_that_are_down_are_told_apart_from_what_is_wrong(config):
    away = replace(config, model=replace(config.model, checkpoint="http://127.0.0.1:1/w.pth"))
    with pytest.raises(StoresDownError, match=r"^--model: http://127\.0\.0\.1:1/w\.pth: "):
        prepare(away)
    wrong_too = replace(away, method=MethodConfig(target="nobody"))
    with pytest.raises(ConfigurationError) as caught:
        prepare(wrong_too)
    assert not isinstance(caught.value, StoresDownError)
    assert len(caught.value.problems) == 2
