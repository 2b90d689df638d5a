"""What a part's files lack, hold besides, or hold wrongly is refused by name, before any engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file
from single_files import write_single_file
from torch import Tensor

from dsd_trt.commands.main import main
from dsd_trt.errors import ModelError
from dsd_trt.train.diffusion.checkpoint import encode_texts, read_checkpoint
from dsd_trt.train.diffusion.encoders import TextEncoder
from dsd_trt.train.diffusion.families import FAMILIES, tiny
from dsd_trt.train.diffusion.random_model import write_random_model
from dsd_trt.train.diffusion.weight_files import find_weights, weight_patterns
from dsd_trt.train.diffusion.weights import is_finite, read_headers

Change = Callable[[dict[str, Tensor]], object]
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "model")


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory, few_words: None) -> Path:
    """A Stable Diffusion XL, and a single file of it."""
    root = tmp_path_factory.mktemp("xl")
    folder = write_random_model(root / "model", tiny(FAMILIES["sdxl"]))
    write_single_file(folder, root / "model.safetensors")
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def weight_file(model: Path, part: str) -> Path:
    return model / part / f"{WEIGHTS[part]}.safetensors"


def rewrite(path: Path, change: Change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def renamed(tensors: dict[str, Tensor], new: Callable[[str], str]) -> None:
    for name in list(tensors):
        tensors[new(name)] = tensors.pop(name)


def set_field(path: Path, **fields: Any) -> None:
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, **fields}), "utf-8")


# Names, shapes, types


def drop_norm(tensors: dict[str, Tensor]) -> None:
    for name in [n for n in tensors if "norm" in n][:2]:
        del tensors[name]


def _peft(name: str) -> str:
    layer, dot, leaf = name.rpartition(".")
    return f"{layer}.base_layer{dot}{leaf}" if layer.endswith("_proj") else name


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drop_norm, r"lacks \S*norm\S* and 1 more weight"),
        (lambda t: t.update(extra=torch.ones(2)), "has extra, which a .* does not have"),
        (lambda t: renamed(t, "module.{}".format), "lacks .*but has module.*from DataParallel"),
        (lambda t: renamed(t, "_orig_mod.{}".format), "lacks .*but has _orig_mod.*torch.compile"),
        (lambda t: t.update({k: t[k][:-1] for k in list(t)[:1]}), r"is \(.*\), expected \("),
        (lambda t: t.update({k: t[k].to(torch.int8) for k in list(t)[:1]}), "is stored as I8"),
        (lambda t: t.clear(), "lacks"),
    ],
)
def test_weights_that_do_not_fit_are_named_when_a_model_is_opened(
    model: Path, part: str, change: Change, complaint: str
) -> None:
    rewrite(weight_file(model, part), change)
    with pytest.raises(ModelError, match=f"model/{part}: .*{complaint}"):
        read_checkpoint(model)


def test_layers_of_peft_are_named_as_such(model: Path) -> None:
    rewrite(weight_file(model, "text_encoder"), lambda tensors: renamed(tensors, _peft))
    with pytest.raises(ModelError, match=r"lacks .*_proj.*but has .*base_layer.*merge_and_unload"):
        read_checkpoint(model)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
@pytest.mark.parametrize("part", WEIGHTS)
def test_a_file_that_was_cut_is_named(model: Path, part: str, size: int) -> None:
    path = weight_file(model, part)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=rf"cannot read .*{part}/.*Download or save it again"):
        read_checkpoint(model)


def test_weights_that_nothing_needs_are_no_reason_to_refuse(model: Path, whole: Path) -> None:
    def complete(tensors: dict[str, Tensor]) -> None:
        renamed(tensors, "text_model.{}".format)  # as older releases of transformers wrote it
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        tensors["text_projection.weight"] = torch.full((32, 32), torch.nan)
        tensors["logit_scale"] = torch.ones(())
        tensors["vision_model.post_layernorm.weight"] = torch.ones(3)

    def old_attention(tensors: dict[str, Tensor]) -> None:
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            renamed(tensors, methodcaller("replace", f".{new}.", f".{old}."))
        renamed(tensors, lambda name: name.replace(".to_out.0.", ".proj_attn."))

    rewrite(weight_file(model, "text_encoder"), complete)
    rewrite(weight_file(model, "vae"), old_attention)
    ours, expected = read_checkpoint(model), read_checkpoint(whole)
    texts = ["a red circle", ""]
    assert torch.equal(encode_texts(ours, texts)[0], encode_texts(expected, texts)[0])
    pixels = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(ours.image_encoder(pixels), expected.image_encoder(pixels))


def test_single_file_with_more_of_clip_than_needed_encodes_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_words: None
) -> None:
    few = {name: tiny(family) for name, family in FAMILIES.items()}
    monkeypatch.setattr("dsd_trt.train.diffusion.single_file.FAMILIES", few)
    folder = write_random_model(tmp_path / "sd15", few["sd15"])
    path = write_single_file(folder, tmp_path / "a.safetensors")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    other = Path(shutil.copy(path, tmp_path / "b.safetensors"))
    prefix = "cond_stage_model.transformer."
    rewrite(
        other,
        lambda t: t.update(
            {
                f"{prefix}text_projection.weight": torch.ones(32, 32),
                f"{prefix}logit_scale": torch.ones(()),
                "model_ema.decay": torch.full((1,), torch.nan),
                "first_stage_model.loss.logvar": torch.ones(()),
            }
        ),
    )
    checkpoints = [read_checkpoint(f"{file}@sd15") for file in (path, other)]
    states = [encode_texts(checkpoint, ["a dog"])[0] for checkpoint in checkpoints]
    assert torch.equal(*states)
    assert checkpoints[1].weight_files == {"b.safetensors": other}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda t: t.update({"model.diffusion_model.lora.alpha": torch.ones(1)}),
            "unet has model.diffusion_model.lora.alpha",
        ),
        (lambda t: t.pop("first_stage_model.quant_conv.bias"), "vae lacks quant_conv.bias"),
        (
            lambda t: t.update({"first_stage_model.encoder.gate": torch.ones(1)}),
            "vae has first_stage_model.encoder.gate",
        ),
        (
            lambda t: t.pop("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"),
            "text_encoder lacks final_layer_norm.bias",
        ),
        (lambda t: t.pop("model.diffusion_model.label_emb.0.0.bias"), "unet lacks .*label_emb"),
        (lambda t: t.pop("conditioner.embedders.1.model.ln_final.bias"), "text_encoder_2 lacks"),
        (
            lambda t: t.pop("conditioner.embedders.1.model.text_projection"),
            "text_encoder_2 lacks text_projection.weight",
        ),
        (
            lambda t: t.update({"conditioner.embedders.1.model.adapter": torch.ones(1)}),
            "text_encoder_2 has conditioner.embedders.1.model.adapter",
        ),
        (lambda t: t.pop("model.diffusion_model.input_blocks.2.0.op.bias"), "unet lacks down"),
    ],
)
def test_a_single_files_weights_that_do_not_fit_are_named(
    xl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, complaint: str
) -> None:
    monkeypatch.setattr(
        "dsd_trt.train.diffusion.single_file.FAMILIES", {"sdxl": tiny(FAMILIES["sdxl"])}
    )
    path = Path(shutil.copy(xl.with_suffix(".safetensors"), tmp_path / "model.safetensors"))
    (tmp_path / "tokenizer").symlink_to(xl / "tokenizer")
    rewrite(path, change)
    with pytest.raises(ModelError, match=f"read as Stable Diffusion XL base: {complaint}"):
        read_checkpoint(path)


# Numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_weight_that_is_not_finite_is_named(model: Path, part: str, dtype: torch.dtype) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)
        tensors[sorted(tensors)[-1]].view(-1)[-1] = torch.inf
        tensors[sorted(tensors)[0]].view(-1)[0] = torch.nan

    rewrite(weight_file(model, part), damage)
    checkpoint = read_checkpoint(model)
    complaint = rf"{part}: \S+ of {part} has NaN or infinity in 1 of \d+ places"
    with pytest.raises(ModelError, match=complaint):
        checkpoint.source.parts.read(part, torch.float32)
    with pytest.raises(ModelError, match=complaint):  # before an export or a training run begins
        _ = checkpoint.weight_hashes


def test_a_weight_too_large_for_fp16_says_so(model: Path) -> None:
    def enlarge(tensors: dict[str, Tensor]) -> None:
        tensors["conv_in.weight"] = tensors["conv_in.weight"].float()
        tensors["conv_in.weight"][0, 0, 0, 0] = 1e5

    rewrite(weight_file(model, "unet"), enlarge)
    checkpoint = read_checkpoint(model)
    assert checkpoint.unet.conv_in.weight.max() == 1e5
    with pytest.raises(ModelError, match=r"conv_in.weight of unet reaches 1e\+05, too large for f"):
        checkpoint.read_unet(torch.float16)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]
)
def test_every_place_is_looked_at(dtype: torch.dtype, value: float) -> None:
    assert is_finite(torch.empty(0))
    assert is_finite(torch.full((100_000,), torch.finfo(dtype).max, dtype=dtype))
    for size in (1, 17, 4099):
        for place in {0, size // 2, size - 1}:
            tensor = torch.ones(size)
            tensor[place] = value
            assert not is_finite(tensor.to(dtype)), (size, place)


# Files


def test_pickles_and_other_variants_are_no_weights(model: Path) -> None:
    path = weight_file(model, "unet")
    path.rename(path.with_suffix(".non_ema.safetensors"))
    torch.save({}, path.with_suffix(".bin"))
    with pytest.raises(ModelError) as refused:
        read_checkpoint(model)
    for name in ("diffusion_pytorch_model.non_ema.safetensors", "diffusion_pytorch_model.bin"):
        assert name in str(refused.value)
    assert "which is not read" in str(refused.value)


def test_provenance_names_what_is_read_and_nothing_else(model: Path) -> None:
    for part in WEIGHTS:
        path = weight_file(model, part)
        for variant in ("non_ema", "fp16"):
            shutil.copy(path, path.with_suffix(f".{variant}.safetensors"))
        path.with_suffix(".bin").write_bytes(b"")
    shutil.copytree(model / "text_encoder", model / "text_encoder_2")  # of another family
    shutil.copytree(model / "vae", model / "safety_checker")
    read = {weight_file(model, part).relative_to(model).as_posix() for part in WEIGHTS}
    assert read_checkpoint(model).weight_hashes.keys() == read


def shard(path: Path, count: int = 2, variant: str = "") -> Path:
    """Split a part's file as diffusers and transformers do; the index's path."""
    stem, tensors = path.name.removesuffix(".safetensors"), load_file(path)
    path.unlink()
    named: dict[str, str] = {}
    for i in range(count):
        name = f"{stem}{variant}-{i + 1:05d}-of-{count:05d}.safetensors"
        part = dict(list(tensors.items())[i::count])
        save_file(part, path.parent / name)
        named |= dict.fromkeys(part, name)
    index = path.parent / f"{stem}.safetensors.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": named}), "utf-8")
    return index


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read_as_one_file(model: Path, whole: Path, variant: str) -> None:
    for part in WEIGHTS:
        shard(weight_file(model, part), variant=variant)
    ours, expected = read_checkpoint(model), read_checkpoint(whole)
    assert len(ours.weight_hashes) == 2 * len(WEIGHTS)
    state = expected.unet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in ours.unet.state_dict().items())


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_shard_that_is_missing_is_named(model: Path, part: str) -> None:
    index = shard(weight_file(model, part))
    last = f"{WEIGHTS[part]}-00002-of-00002.safetensors"
    (index.parent / last).rename(index.parent / "elsewhere")
    with pytest.raises(ModelError, match=rf"index.json names {last}, which is missing"):
        read_checkpoint(model)
    (index.parent / "elsewhere").rename(index.parent / last)
    held = index.read_text("utf-8")
    index.write_text(held.replace(last, "../../secret.safetensors"), "utf-8")
    with pytest.raises(ModelError, match="outside its folder"):
        read_checkpoint(model)
    index.write_text(held.replace(last, last.replace("2", "1", 1)), "utf-8")
    with pytest.raises(ModelError, match="lacks"):  # of a shard that the index does not list
        read_checkpoint(model)
    index.write_text("{", "utf-8")
    with pytest.raises(ModelError, match=r"index.json is no index of shards"):
        read_checkpoint(model)
    index.unlink()
    with pytest.raises(ModelError, match=rf"00001-of-00002.safetensors without {index.name}"):
        read_checkpoint(model)


def test_links_that_lead_nowhere_are_named(model: Path) -> None:
    path = weight_file(model, "vae")
    path.unlink()
    path.symlink_to("../../blobs/0f0f")
    with pytest.raises(
        ModelError, match=r"vae/.*safetensors is a link to a file that is not there"
    ):
        read_checkpoint(model)


def test_of_a_whole_file_and_an_index_the_one_the_library_reads(tmp_path: Path) -> None:
    for name in ("model", "diffusion_pytorch_model"):
        for _ in range(2):  # the second call writes the whole file again, beside the shards
            save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / f"{name}.safetensors")
            if not list(tmp_path.glob(f"{name}*index*")):
                shard(tmp_path / f"{name}.safetensors")
    assert len(find_weights(tmp_path, "model")) == 1
    files = find_weights(tmp_path, "diffusion_pytorch_model", index_first=True)
    assert len(files) == 2
    assert read_headers(files).keys() == {"a", "b"}
    with pytest.raises(ModelError, match=r"a is both in .* and in "):
        read_headers([*files, tmp_path / "model.safetensors"])


def test_patterns_take_in_every_file_that_is_read(tmp_path: Path) -> None:
    for variant in ("", ".fp16"):
        folder = tmp_path / f"of{variant}"
        folder.mkdir()
        save_file({"a": torch.ones(1)}, folder / "model.safetensors")
        index = shard(folder / "model.safetensors", 1, variant)
        patterns = weight_patterns("model", variant)
        for path in [index, *find_weights(folder, "model")]:
            assert any(path.match(pattern) for pattern in patterns), path.name


# Classes


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("unet/config.json", "_class_name", "UNetSpatioTemporalConditionModel"),
        ("vae/config.json", "_class_name", "AutoencoderTiny"),
        ("vae/config.json", "_class_name", "AsymmetricAutoencoderKL"),
        ("text_encoder/config.json", "model_type", "bert"),
        ("text_encoder/config.json", "model_type", "clip"),
        ("text_encoder/config.json", "model_type", "t5"),
        ("text_encoder/config.json", "architectures", "RobertaSeriesModelWithTransformation"),
        ("tokenizer/tokenizer_config.json", "tokenizer_class", "BertTokenizer"),
        ("tokenizer/tokenizer_config.json", "tokenizer_class", "T5TokenizerFast"),
    ],
)
def test_a_part_of_another_class_is_named(model: Path, file: str, field: str, value: str) -> None:
    set_field(model / file, **{field: [value] if field == "architectures" else value})
    with pytest.raises(ModelError, match=rf"{file}: {field} is '{value}'; known is "):
        read_checkpoint(model)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\udcff"])
@pytest.mark.parametrize("part", WEIGHTS)
def test_a_configuration_that_is_none_is_named(model: Path, part: str, text: str) -> None:
    (model / part / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=rf"cannot read .*{part}/config.json"):
        read_checkpoint(model)


@pytest.mark.parametrize("value", ["x", None, 0, [32]])
@pytest.mark.parametrize("field", ["num_attention_heads", "hidden_act"])
def test_a_value_that_makes_no_module_is_named(model: Path, field: str, value: Any) -> None:
    set_field(model / "text_encoder/config.json", **{field: value})
    complaint = rf"text_encoder(: {field} is .*, expected |/config.json describes no CLIPTextM)"
    with pytest.raises(ModelError, match=complaint):
        read_checkpoint(model)


# Tokens


def vocabulary_of(model: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = json.loads((model / "tokenizer/vocab.json").read_text("utf-8"))
    return vocabulary


def add_token(folder: Path, token: str) -> None:
    """As a textual inversion is saved: the tokenizer with one token more."""
    tokenizer = read_checkpoint(folder.parent).source.parts.tokenizer(folder.name)
    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(folder)


def enlarge_embedding(model: Path, part: str) -> None:
    def enlarge(tensors: dict[str, Tensor]) -> None:
        (name,) = (n for n in tensors if n.endswith("token_embedding.weight"))
        tensors[name] = torch.cat([tensors[name], tensors[name][-1:]])

    config = model / part / "config.json"
    set_field(config, vocab_size=json.loads(config.read_text("utf-8"))["vocab_size"] + 1)
    rewrite(model / part / "model.safetensors", enlarge)


def test_a_token_without_a_row_of_the_embedding_is_named(model: Path) -> None:
    size = len(vocabulary_of(model))
    add_token(model / "tokenizer", "<cat-toy>")
    complaint = rf"tokenizer: the token '<cat-toy>' has the id {size}, .* has {size} rows"
    with pytest.raises(ModelError, match=complaint):
        read_checkpoint(model)
    enlarge_embedding(model, "text_encoder")
    checkpoint = read_checkpoint(model)  # a textual inversion that was saved whole
    assert isinstance(checkpoint.text_encoder, TextEncoder)
    embedding = checkpoint.text_encoder.text_encoder.embeddings.token_embedding
    assert embedding.num_embeddings == size + 1
    assert size in checkpoint.tokenizer("a <cat-toy>").input_ids


def test_a_token_of_one_of_two_tokenizers_is_named(xl: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(xl, tmp_path / "model"))
    add_token(model / "tokenizer", "<cat-toy>")
    enlarge_embedding(model, "text_encoder")
    with pytest.raises(
        ModelError, match=r"'<cat-toy>' is not the same in tokenizer and tokenizer_"
    ):
        read_checkpoint(model)


def test_an_embedding_without_its_tokens_is_refused(model: Path) -> None:
    size = len(vocabulary_of(model))
    enlarge_embedding(model, "text_encoder")
    with pytest.raises(ModelError, match=rf"tokenizer knows {size} tokens, .* has {size + 1} rows"):
        read_checkpoint(model)


def test_a_tokenizer_without_its_files_is_refused_by_their_names(xl: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(xl, tmp_path / "model"))
    merges = model / "tokenizer_2" / "merges.txt"
    lines = merges.read_text("utf-8").splitlines(keepends=True)
    merges.write_text("".join(lines[:2_000]), "utf-8")
    with pytest.raises(ModelError, match=r"tokenizer_2: no merge makes '\w+(</w>)?' \(\d+ tokens"):
        read_checkpoint(model)
    for name in ("merges.txt", "vocab.json"):
        (model / "tokenizer_2" / name).unlink()
        with pytest.raises(
            ModelError, match=rf"tokenizer_2 holds no tokenizer: it has no .*{name}"
        ):
            read_checkpoint(model)


@pytest.mark.parametrize("kept", [0, 20])
def test_merges_that_are_cut_within_tokenizer_json_are_refused(model: Path, kept: int) -> None:
    read_checkpoint(model).tokenizer.backend_tokenizer.save(str(model / "tokenizer/tokenizer.json"))
    path = model / "tokenizer/tokenizer.json"
    plain = json.loads(path.read_text("utf-8"))
    plain["model"]["merges"] = plain["model"]["merges"][:kept]
    path.write_text(json.dumps(plain), "utf-8")
    for name in ("vocab.json", "merges.txt"):
        (model / "tokenizer" / name).unlink()
    with pytest.raises(ModelError, match=r"tokenizer: no merge makes '\w+(</w>)?' \(\d+ tokens"):
        read_checkpoint(model)


def test_ids_that_two_tokens_share_or_no_file_has_are_refused(model: Path) -> None:
    vocabulary = vocabulary_of(model)
    red, blue = vocabulary["red</w>"], vocabulary["blue</w>"]
    for ids, complaint in (
        ({"red</w>": blue}, f"'(red|blue)</w>' and '(red|blue)</w>' have one id, {blue}"),
        ({"red</w>": 2**40 + red}, f"'red</w>' has the id {2**40 + red}, and was read with"),
    ):
        path = model / "tokenizer/vocab.json"
        path.write_text(json.dumps({**vocabulary, **ids}), "utf-8")
        with pytest.raises(ModelError, match=complaint):
            read_checkpoint(model)


def test_what_texts_are_padded_and_ended_with_has_to_be_said(model: Path) -> None:
    set_field(model / "tokenizer/special_tokens_map.json", eos_token="!")
    set_field(model / "tokenizer/tokenizer_config.json", eos_token="!")
    with pytest.raises(ModelError, match=r"tokenizer: eos_token is '!', expected '<\|endof"):
        read_checkpoint(model)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        (model / "tokenizer" / name).write_text("{}", "utf-8")
    with pytest.raises(ModelError, match=r"neither tokenizer_config\.json nor .* says pad_token"):
        read_checkpoint(model)


@pytest.mark.parametrize("length", ["77", [77], None])
def test_a_length_that_is_no_number_is_refused(model: Path, length: Any) -> None:
    set_field(model / "tokenizer/tokenizer_config.json", model_max_length=length)
    if length is None:  # says nothing
        read_checkpoint(model)
        return
    with pytest.raises(ModelError, match="model_max_length"):
        read_checkpoint(model)


@pytest.mark.parametrize(
    ("part", "one", "other"),
    [
        ("text_encoder", "final_layer_norm.weight", "text_model.final_layer_norm.weight"),
        (
            "vae",
            "encoder.mid_block.attentions.0.to_q.weight",
            "encoder.mid_block.attentions.0.query.weight",
        ),
    ],
)
def test_one_weight_under_two_names_is_refused(
    model: Path, part: str, one: str, other: str
) -> None:
    def double(tensors: dict[str, Tensor]) -> None:
        held = one if one in tensors else other
        tensors[one] = tensors[held]
        tensors[other] = tensors[held] + 1

    rewrite(weight_file(model, part), double)
    with pytest.raises(ModelError, match=f"{part} has both .*, two names of one weight"):
        read_checkpoint(model)


# Commands


@pytest.mark.parametrize(
    "command",
    [
        ("export", "--out", "bundle", "--model"),
        ("eval", "--data", "shapes-comvg"),
        ("train", "--data", "shapes-comvg", "--limit", "4", "--out", "adapter", "--model"),
        ("ablate", "--data", "shapes-comvg", "--out", "figures", "--model"),
        ("bench", "--measure", "model", "--model"),  # as it does first, in a process of its own
        pytest.param(("bench", "--contenders", "torch", "--model"), marks=pytest.mark.slow),
    ],
    ids=lambda command: command[0],
)
def test_every_command_refuses_before_it_begins(
    model: Path,
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(model.parent)
    rewrite(weight_file(model, "text_encoder"), drop_norm)
    with pytest.raises(SystemExit) as ended:
        main([*command, "model"])
    assert ended.value.code == 2
    assert "text_encoder lacks" in capfd.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        *("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"),
        *("text_encoder/config.json", "tokenizer/tokenizer_config.json"),
    ],
)
def test_json_nested_without_end_is_refused_by_its_file(model: Path, name: str) -> None:
    (model / name).write_text("[" * 100_000, "utf-8")
    with pytest.raises(ModelError, match=name):
        read_checkpoint(model)


def test_json_that_begins_with_a_byte_order_mark_is_read(model: Path) -> None:
    path = model / "unet/config.json"
    path.write_text("\ufeff" + path.read_text("utf-8"), "utf-8")
    read_checkpoint(model)
