"""Models are built as asked or refused with what to do; weights, heads and names are as given."""

import argparse
import contextlib
import io
import json
import os
import re

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.layers import resample_abs_pos_embed
from timm.models import save_for_hf

from explainer import ReciproCam, decode, explain, load_model
from explainer.checkpoints import Checkpoint, CheckpointError, read_checkpoint
from explainer.classes import ClassNames
from explainer.models import ModelError, PreprocessingOverrides
from explainer.reference import log_odds, masked_logits

VIT, DINO, CLIP = "vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_base_patch16_clip_224"
SMALL = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3}
SIZES = {VIT: SMALL, DINO: SMALL | {"img_size": 56}, CLIP: SMALL}
FIVE = {"num_classes": 5}


def small(name=VIT, **how):
    """A small random model unless `how` brings weights; five classes where it has classes."""
    if "checkpoint" not in how:
        how = {"seed": 0} | how
    args = SIZES[name] | ({} if name == DINO else FIVE) | how.pop("model_args", {})
    return load_model(name, model_args=args, **how)


def crops(model, batch=3):
    shape = (batch, 3, *model.preprocessing.input_size)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


def enliven(model):
    """Weights large enough for maps to have a shape, in float64, the same for the same model."""
    generator = torch.Generator().manual_seed(1)
    model.vit.double()
    for name, parameter in model.vit.named_parameters():
        if not name.startswith(("head", "patch_embed")):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.2 * noise)
    return model


def assert_explained_as_by_definition(model):
    images = crops(model)
    for block in (-1, -2):
        got = explain(model, images, method=ReciproCam(block))
        normalised = model.normalise(images)
        logits = masked_logits(
            model.vit, normalised, model.grid, block=block, residual="masked", mask="3x3"
        )
        for i, target in enumerate(got.targets[:, 0].tolist()):
            want = log_odds(logits[i], target).unflatten(0, model.grid)
            assert want.max() - want.min() > 1e-3
            torch.testing.assert_close(got.scores[i, 0], want, rtol=0, atol=1e-9)


def offline(monkeypatch, tmp_path):
    """Make every fetch fail at once, as it does without a network, and hide what is cached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


def refused(message, name=VIT, **how):
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(name, **how)


# Names


def test_an_unknown_name_is_refused_with_the_nearest():
    refused(
        "timm has no model 'vit_smal_patch16_224'; nearest: vit_small_patch16_224",
        "vit_smal_patch16_224",
    )
    refused("timm has no model 'qqq'", "qqq", seed=0)


def test_an_unknown_tag_is_refused_with_those_that_there_are():
    for how in ({}, {"seed": 0}):
        refused(
            "vit_tiny_patch16_224.mine cannot be built: Invalid pretrained tag (mine) for "
            "vit_tiny_patch16_224.; its tags: augreg_in21k_ft_in1k, augreg_in21k",
            "vit_tiny_patch16_224.mine",
            **how,
        )


def test_a_hub_name_without_its_prefix_is_refused():
    refused("Use 'hf-hub:timm/vit_tiny_patch16_224' to load", "timm/vit_tiny_patch16_224")


@pytest.mark.parametrize("name", [VIT, "hf-hub:somebody/something"])
def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch, tmp_path, name):
    offline(monkeypatch, tmp_path)
    refused(f"{name} could not be fetched: ", name)
    refused("give --checkpoint URL, or --checkpoint random:SEED for a benchmark)", name)


def test_arguments_that_timm_refuses():
    refused(
        "vit_tiny_patch16_224 cannot be built with {'depht': 3}: ",
        model_args={"depht": 3},
        seed=0,
    )
    refused("dim should be divisible by num_heads", model_args={"num_heads": 7}, seed=0)


# What cannot be explained


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("swin_tiny_patch4_window7_224", {}, "it is a SwinTransformer, and the method masks patch"),
        ("convnext_tiny", {}, "it is a ConvNeXt, and the method masks patch tokens in front of a"),
        (VIT, {"in_chans": 1}, "images have 3 channels; got in_chans 1 in --model-args"),
        (VIT, {"global_pool": ""}, "its head pools no tokens; give global_pool in --model-args"),
    ],
)
def test_an_architecture_without_an_exact_form_is_refused_before_its_weights_are_fetched(
    monkeypatch, tmp_path, name, args, reason
):
    offline(monkeypatch, tmp_path)
    for how in ({}, {"seed": 0}):
        message = f"{name} cannot be explained: {reason}"
        refused(message, name, model_args=args, **how)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_r_s16_p8_224", 96), ("vit_base_mci_224", 48)]
)
def test_models_with_convolutions_before_the_blocks_are_explained(name, size):
    args = {"depth": 2, "num_classes": 5, "img_size": size}
    assert_explained_as_by_definition(enliven(load_model(name, seed=0, model_args=args)))


# Classes


def test_features_without_a_classifier_are_refused():
    message = (
        f"{DINO} has no classifier, only features; give --head URL (a linear probe or "
        "a zero-shot matrix): 'weight' [classes, 384], optionally 'bias'"
    )
    refused(message, DINO)
    refused(message, DINO, seed=0)
    refused(message, DINO, class_names=("a", "b"))
    state = timm.create_model(DINO, **SIZES[DINO]).state_dict()
    refused("has no classifier", DINO, checkpoint=Checkpoint(state), model_args=SIZES[DINO])
    headless = {
        key: tensor for key, tensor in small().vit.state_dict().items() if "head" not in key
    }
    refused("has no classifier", checkpoint=Checkpoint(headless), model_args=SMALL)


def test_an_image_embedding_is_not_taken_for_classes(monkeypatch, tmp_path):
    offline(monkeypatch, tmp_path)
    message = (
        "weights have no class names: most likely an image embedding (CLIP's projection), not "
        "classes; give --head URL, or --class-names FILE if they are classes"
    )
    refused(f"the 512 outputs of {CLIP}.openai's {message}", f"{CLIP}.openai")
    args = SMALL | {"num_classes": 512}
    embedding = Checkpoint(load_model(CLIP, seed=0, model_args=args).vit.state_dict())
    refused(f"the 512 outputs of {CLIP}'s {message}", CLIP, checkpoint=embedding, model_args=SMALL)
    names = tuple(f"class {i}" for i in range(512))
    named = load_model(CLIP, checkpoint=embedding, model_args=SMALL, class_names=names)
    assert named.class_names.names == names


def test_a_random_classifier_over_pretrained_weights_is_refused():
    message = (
        f"{VIT}'s own weights have 1000 classes; with num_classes 7 the classifier would be "
        "random; give --checkpoint or --head"
    )
    refused(message, model_args={"num_classes": 7})
    refused(message, model_args={"num_classes": 7}, class_names=tuple("abcdefg"))


def test_the_wrong_number_of_class_names_is_refused():
    refused(
        f"--class-names holds 2 names; {VIT} has 5 classes; one a line, in the order of the "
        "model's outputs",
        seed=0,
        model_args=SMALL | FIVE,
        class_names=("a", "b"),
    )
    state = small().vit.state_dict()
    wrong = Checkpoint(state, {"label_names": ["a", "b"]})
    message = f"label_names holds 2 names for 5 classes of {VIT}; give --class-names FILE"
    refused(message, checkpoint=wrong, model_args=SMALL)
    assert small(checkpoint=wrong, class_names=tuple("abcde")).class_names.names == tuple("abcde")


def test_class_names_are_what_is_given_or_known_or_indices():
    assert small(class_names=tuple("abcde")).class_names.names == tuple("abcde")
    assert small().class_names.names == ("0", "1", "2", "3", "4")
    names = load_model(VIT, seed=0, model_args=SMALL).class_names
    assert names.names[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")
    assert names.index("n01440764") == names.index("tench, Tinca tinca") == names.index(0) == 0


def test_labels_mean_a_class_or_none():
    names = ClassNames.of_timm(1000, {})
    assert [i for i, name in enumerate(names.names) if name == "crane"] == [134, 517]
    assert names.index("crane") is None
    assert names.index("n02012849") == 134
    assert names.index(999) == 999
    for stranger in (1000, -1, "999", "", "no such class", None, True):
        assert names.index(stranger) is None
    indices = ClassNames.of_timm(3, {})
    assert [indices.index(label) for label in ("0", "2", "3", "02", 2)] == [0, 2, None, None, 2]


# Checkpoints


def pickled(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def assert_same_weights(model, other):
    assert model.digest() == other.digest()


def test_a_safetensors_checkpoint_brings_its_class_names():
    own = small()
    data = safetensors.torch.save(
        own.vit.state_dict(), {"class_names": json.dumps(["ä", "b", "c", "d", "e"])}
    )
    model = load_model(VIT, checkpoint=read_checkpoint(data, "a.safetensors"), model_args=SMALL)
    assert_same_weights(model, own)
    assert model.class_names.names == ("ä", "b", "c", "d", "e")


@pytest.mark.parametrize("text", ["a,b", '{"a": 1}', '"abcde"', "[1, 2]"])
def test_class_names_in_metadata_must_be_a_list(text):
    checkpoint = Checkpoint(small().vit.state_dict(), {}, {"class_names": text})
    message = f"metadata 'class_names' must be a JSON list of names; got {text!r}"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        small(checkpoint=checkpoint)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "arch": VIT},
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"state_dict_ema": state, "state_dict": {"head.weight": torch.zeros(1, 1)}},
        lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
        lambda state: {"state_dict": {f"_orig_mod.{key}": state[key] for key in state}},
        lambda state: {f"_orig_mod.module.{key}": tensor for key, tensor in state.items()},
    ],
    ids=["bare", "state_dict", "model", "ema first", "module.", "_orig_mod.", "both"],
)
@pytest.mark.parametrize("ending", [".pth", ".pth.tar", ".pt", ".bin"])
def test_torchs_checkpoints_in_every_wrapping(wrap, ending):
    own = small()
    checkpoint = read_checkpoint(pickled(wrap(own.vit.state_dict())), f"model{ending}")
    assert_same_weights(small(checkpoint=checkpoint), own)


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path):
    trap = tmp_path / "trap"
    content = {"state_dict": small().vit.state_dict(), "extra": Malicious(trap)}
    message = (
        "evil.pth is not readable by torch with weights_only (nothing else is tried, because other "
        "pickles can run code): it holds posix.mkdir"
    )
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_checkpoint(pickled(content), "evil.pth")
    assert not trap.exists()
    torch.load(io.BytesIO(pickled(content)), weights_only=False)
    assert trap.exists()


def test_bytes_that_are_no_weights_are_refused():
    def message_of(data, name):
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(data, name)
        return str(caught.value)

    assert message_of(b"", "a.pth") == "a.pth is empty (0 bytes)"
    assert message_of(b"plain text", "a.pth").startswith("a.pth is not readable by torch")
    assert message_of(b"plain text", "a.safetensors").startswith(
        "a.safetensors is not a readable safetensors file: "
    )
    assert message_of(b"x", "a.npz") == (
        "a checkpoint ends in .safetensors, .pth, .pth.tar, .pt or .bin; got 'a.npz'"
    )
    for content in ([torch.zeros(2)], {"weights": 3}, {0: torch.zeros(2)}, torch.zeros(2)):
        assert message_of(pickled(content), "a.pth") == (
            "a.pth holds no state dict: want tensors by name, at the top or under "
            "state_dict_ema, state_dict or model"
        )


WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3)}
DAMAGED = {"a.pth": pickled(WEIGHTS), "a.safetensors": safetensors.torch.save(WEIGHTS)}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(sorted(DAMAGED)),
    st.integers(0, 2000),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
)
def test_damaged_weights_are_read_or_refused(name, length, damage):
    data = bytearray(DAMAGED[name])
    for position, value in damage:
        data[position % len(data)] = value
    with contextlib.suppress(CheckpointError):
        read_checkpoint(bytes(data[:length]), name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "config.json beside a.pth is not JSON: "),
        (b"[1]", "config.json beside a.pth must hold an object; got list"),
        (b'{"model_args": 3}', "config.json beside a.pth: model_args must be an object"),
        (b'{"pretrained_cfg": "x"}', "config.json beside a.pth: pretrained_cfg must be an object"),
    ],
)
def test_a_config_that_is_none_is_refused(config, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_checkpoint(pickled(WEIGHTS), "a.pth", config)


def test_a_checkpoint_that_does_not_fit_is_refused_with_the_differences():
    state = small().vit.state_dict()
    lacking = {key: tensor for key, tensor in state.items() if key != "blocks.1.norm1.weight"}
    reshaped = state | {"pos_embed": torch.zeros(1, 5, 48)}
    advice = (
        "; give the model that it was trained as, with --model-args where it differs from timm's"
    )
    start = f"the checkpoint does not fit {VIT}: "
    for given_state, problems in [
        (lacking, "lacks blocks.1.norm1.weight"),
        (state | {"extra": torch.zeros(1)}, "has extra, which the model lacks"),
        (reshaped, "pos_embed is (1, 5, 48), the model's is (1, 17, 48)"),
    ]:
        refused(start + problems + advice, checkpoint=Checkpoint(given_state), model_args=SMALL)
    refused(
        "lacks blocks.3.norm1.weight; lacks blocks.3.norm1.bias; lacks blocks.3.attn.qkv.weight "
        "and 9 more; give the model",
        checkpoint=Checkpoint(state),
        model_args=SMALL | {"depth": 4},
    )


def test_weights_are_a_checkpoints_or_of_a_seed():
    checkpoint = Checkpoint(small().vit.state_dict())
    message = "weights are a checkpoint's or random ones of a seed; got both"
    refused(message, checkpoint=checkpoint, seed=0, model_args=SMALL)


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
def test_the_config_beside_a_checkpoint_is_used(nested):
    own = small()
    data_config = {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "crop_pct": 0.7,
        "interpolation": "bilinear",
        "crop_mode": "squash",
    }
    config = {"architecture": VIT, "label_names": list("vwxyz"), "model_args": SMALL}
    config |= {"pretrained_cfg": data_config} if nested else data_config
    content = json.dumps(config).encode()
    checkpoint = read_checkpoint(pickled(own.vit.state_dict()), "model.pth", content)
    model = load_model(VIT, checkpoint=checkpoint)
    assert_same_weights(model, own)
    assert model.class_names.names == tuple("vwxyz")
    assert model.arguments == SMALL
    got = model.preprocessing
    assert (got.mean, got.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (got.crop_pct, got.interpolation, got.crop_mode) == (0.7, "bilinear", "squash")
    assert got.input_size == (64, 64)


def test_a_preprocessing_in_the_config_that_fits_no_image_is_refused():
    checkpoint = Checkpoint(small().vit.state_dict(), {"interpolation": "cubic"})
    message = f"the preprocessing of {VIT}: interpolation must be one of nearest, "
    refused(message, checkpoint=checkpoint, model_args=SMALL)


def test_a_folder_that_timm_exported_is_read_alike_by_us_and_by_timm(tmp_path):
    saved = timm.create_model(VIT, **SMALL | FIVE | {"img_size": 96})
    save_for_hf(
        saved, tmp_path, model_config={"label_names": list("vwxyz")}, safe_serialization=True
    )
    weights, config = (tmp_path / name for name in ("model.safetensors", "config.json"))
    checkpoint = read_checkpoint(weights.read_bytes(), weights.name, config.read_bytes())
    ours, timms = load_model(VIT, checkpoint=checkpoint), load_model(f"local-dir:{tmp_path}")
    assert_same_weights(ours, timms)
    assert ours.grid == timms.grid == (6, 6)
    assert ours.preprocessing == timms.preprocessing
    assert ours.class_names == timms.class_names == ClassNames(tuple("vwxyz"))
    bound = Checkpoint(checkpoint.state, {"pretrained_cfg": checkpoint.pretrained_cfg})
    args = {key: SMALL[key] for key in ("embed_dim", "depth", "num_heads")}
    assert load_model(VIT, checkpoint=bound, model_args=args).grid == (6, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_float32(dtype):
    half = {key: tensor.to(dtype) for key, tensor in small().vit.state_dict().items()}
    model = small(checkpoint=Checkpoint(half))
    for key, tensor in model.vit.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, half[key].float())


# Heads


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def head(weight, bias=None, **metadata):
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return read_checkpoint(safetensors.torch.save(tensors, metadata or None), "head.safetensors")


def features(model):
    tokens = model.vit.forward_features(model.normalise(crops(model)))
    return model.vit.forward_head(tokens, pre_logits=True)


def test_a_linear_probe_on_features():
    weight, bias = normal(4, 48), normal(4)
    names = json.dumps(["a", "b", "c", "d"])
    model = enliven(small(DINO, head=head(weight, bias, class_names=names)))
    want = features(model) @ weight.double().T + bias.double()
    torch.testing.assert_close(explain(model, crops(model)).logits, want, rtol=0, atol=1e-9)
    assert model.class_names.names == ("a", "b", "c", "d")
    assert_explained_as_by_definition(model)


def test_a_zero_shot_matrix_on_clips_projection():
    matrix = F.normalize(normal(4, 5), dim=-1)
    plain = enliven(small(CLIP))
    model = enliven(small(CLIP, head=head(matrix, scale="12.5")))
    embedding = plain.vit(plain.normalise(crops(plain)))
    embedding = embedding / embedding.pow(2).sum(-1, keepdim=True).sqrt()
    want = 12.5 * embedding @ matrix.double().T
    torch.testing.assert_close(explain(model, crops(model)).logits, want, rtol=0, atol=1e-9)
    assert model.class_names.names == ("0", "1", "2", "3")
    assert_explained_as_by_definition(model)


def test_a_zero_shot_matrix_on_features():
    matrix = normal(4, 48)
    model = enliven(small(DINO, head=head(matrix, scale="12.5")))
    found = features(model)
    want = 12.5 * found / found.pow(2).sum(-1, keepdim=True).sqrt() @ matrix.double().T
    torch.testing.assert_close(explain(model, crops(model)).logits, want, rtol=0, atol=1e-9)
    assert_explained_as_by_definition(model)


def test_where_features_and_projection_are_equally_wide_the_scale_tells():
    matrix, args = normal(4, 48), {"num_classes": 48}
    plain = enliven(small(CLIP, model_args=args))
    probe = enliven(small(CLIP, model_args=args, head=head(matrix)))
    zero_shot = enliven(small(CLIP, model_args=args, head=head(matrix, scale="1")))
    on_features = features(plain) @ matrix.double().T
    projected = F.normalize(plain.vit(plain.normalise(crops(plain))), dim=-1) @ matrix.double().T
    for model, want in ((probe, on_features), (zero_shot, projected)):
        torch.testing.assert_close(explain(model, crops(model)).logits, want, rtol=0, atol=1e-9)


def test_a_half_precision_head_becomes_float32():
    weight = normal(4, 48).half()
    model = small(DINO, head=head(weight))
    assert torch.equal(model.vit.head.weight, weight.float())


def test_a_heads_names_are_its_own_and_not_the_checkpoints():
    own = Checkpoint(small().vit.state_dict(), {"label_names": list("abcde")})
    model = small(checkpoint=own, head=head(normal(5, 48)))
    assert model.class_names.names == ("0", "1", "2", "3", "4")


def test_a_head_of_another_width_is_refused_before_weights_are_fetched(monkeypatch, tmp_path):
    offline(monkeypatch, tmp_path)
    wide = head(normal(4, 49))
    refused(f"--head takes features of width 49; {DINO} has 384 features", DINO, head=wide)
    refused(
        f"--head takes features of width 49; {CLIP}.openai has 768 features and 512 outputs",
        f"{CLIP}.openai",
        head=wide,
    )
    refused("--class-names holds 1 names", DINO, head=head(normal(4, 384)), class_names=("a",))


def test_a_head_on_two_class_tokens_is_refused():
    name = "deit_tiny_distilled_patch16_224"
    message = f"{name} has a classifier for each of its two class tokens; --head is one"
    refused(message, name, seed=0, head=head(normal(4, 192)))


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (Checkpoint({"w": torch.zeros(2)}), "--head needs a tensor 'weight' [classes, width]"),
        (Checkpoint({"weight": torch.zeros(48)}), "got {'weight': (48,)}"),
        (
            Checkpoint({"weight": torch.zeros(4, 48), "bias": torch.zeros(5)}),
            "--head's 'bias' must be [4], one a row of 'weight'; got [5]",
        ),
        (
            Checkpoint({"weight": torch.zeros(4, 48)}, {}, {"scale": "a lot"}),
            "--head's metadata 'scale' must be a positive number; got 'a lot'",
        ),
        (Checkpoint({"weight": torch.zeros(4, 48)}, {}, {"scale": "-1"}), "number; got '-1'"),
    ],
)
def test_a_file_that_holds_no_head_is_refused(checkpoint, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        small(DINO, head=checkpoint)


# Preprocessing


def test_every_part_of_the_preprocessing_can_be_overridden():
    plain, overridden = (
        small(overrides=overrides)
        for overrides in (
            None,
            PreprocessingOverrides((96, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.5, "bilinear"),
        )
    )
    assert vars(plain.preprocessing) == {
        "input_size": (64, 64),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "crop_pct": 0.9,
        "crop_mode": "center",
        "interpolation": "bicubic",
        "exact": False,
    }
    assert vars(overridden.preprocessing) == {
        "input_size": (96, 32),
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "crop_pct": 0.5,
        "crop_mode": "center",
        "interpolation": "bilinear",
        "exact": False,
    }


def test_another_input_size_resamples_the_positions_and_changes_the_grid():
    plain = small()
    model = small(overrides=PreprocessingOverrides(input_size=(96, 80)))
    assert (plain.grid, model.grid, model.patches) == ((4, 4), (6, 5), 30)
    want = resample_abs_pos_embed(plain.vit.pos_embed, new_size=(6, 5), num_prefix_tokens=1)
    assert torch.equal(model.vit.pos_embed, want)
    assert not model.vit.pos_embed.requires_grad
    assert explain(model, crops(model)).saliency.shape == (3, 1, 6, 5)
    assert_explained_as_by_definition(enliven(model))


# timm's own, where it resizes BEiT's bias tables.
@pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")
@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("vit_base_patch16_siglip_gap_224", 8),
        ("beit_base_patch16_224", 8),
        ("eva02_tiny_patch14_224", 8),
        ("vit_small_patch16_dinov3", 8),
        ("vit_relpos_base_patch16_cls_224", 8),
        ("vit_srelpos_small_patch16_224", 8),
        ("naflexvit_base_patch16_gap", 8),
        ("vit_base_r50_s16_224", 16),
    ],
)
def test_every_family_takes_another_input_size(
    name, step, by_definition, enlivened, random_crops, relative_error
):
    args = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 4}
    if step == 8:
        args["patch_size"] = 8
    overrides = PreprocessingOverrides(input_size=(3 * step, 5 * step))
    model = enlivened(load_model(name, seed=0, model_args=args, overrides=overrides))
    assert model.grid == (3, 5)
    images = random_crops(model, 2)
    got = explain(model, images, allow_definition=True)
    assert relative_error(got, by_definition(model, images, ReciproCam())) <= 1e-9


@pytest.mark.parametrize("size", [(50, 64), (64, 8), (0, 64)])
def test_an_input_size_that_cuts_patches_is_refused(size):
    message = (
        f"--input-size must be multiples of {VIT}'s patches of 16 x 16 pixels; got "
        f"{size[0]} x {size[1]}"
    )
    overrides = PreprocessingOverrides(input_size=size)
    refused(message, seed=0, model_args=SMALL, overrides=overrides)


def test_a_decoded_file_goes_into_the_model():
    model = small()
    buffer = io.BytesIO()
    Image.fromarray(crops(model, 1)[0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
    decoded = decode(buffer.getvalue(), model.preprocessing)
    assert explain(model, torch.as_tensor(decoded.crop)[None]).logits.shape == (1, 5)


# Seeds and digests


def test_a_seed_decides_the_weights_and_leaves_torchs_own_state_alone():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    one, same, other = small(seed=1), small(seed=1), small(seed=2)
    small(checkpoint=Checkpoint(one.vit.state_dict()))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.digest() == same.digest() != other.digest()
    assert len(one.digest()) == 64


def test_the_digest_depends_on_every_parameter():
    model = small()
    digests = {model.digest()}
    for parameter in model.vit.parameters():
        before = parameter.flatten()[0].item()
        parameter.view(-1)[0] = before + 0.5
        digests.add(model.digest())
        parameter.view(-1)[0] = before
    assert model.digest() in digests
    assert len(digests) == 1 + len(list(model.vit.parameters()))


def test_the_digest_depends_on_the_head_and_its_scale():
    matrix = normal(4, 48)
    heads = [head(matrix), head(matrix, scale="10"), head(matrix, scale="11"), head(matrix + 1)]
    heads.append(head(matrix, torch.zeros(4)))
    assert len({small(DINO, head=each).digest() for each in heads}) == len(heads)


def test_a_model_is_ready_for_evaluation():
    model = small()
    assert not model.vit.training
    assert not any(parameter.requires_grad for parameter in model.vit.parameters())
    assert (model.grid, model.patches, model.prefix, model.readout) == ((4, 4), 16, 1, 1)
    args = {"depth": 1, "num_classes": 2}
    distilled = load_model("deit_tiny_distilled_patch16_224", seed=0, model_args=args)
    assert (distilled.prefix, distilled.readout) == (2, 2)
    registers = load_model("vit_small_patch14_reg4_dinov2", seed=0, model_args=args)
    assert (registers.prefix, registers.readout) == (5, 1)
