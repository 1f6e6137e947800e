"""What cannot be served is refused by name, with what to do, before anything large is loaded or built."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tokenmux.core.errors import BadCheckpoint, TokenmuxError, UnsupportedModel
from tokenmux.models.catalogue import tiny
from tokenmux.models.catalogue.catalogue import Catalogue
from tokenmux.models.catalogue.safetensors_checkpoint import find_weights, read_safetensors
from tokenmux.models.weights.image import FileStamp, map_image, read_image
from tokenmux.models.weights.manifest import Manifest

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.create("llama", tmp_path_factory.mktemp("llama"), dtype=torch.float32)


@pytest.fixture
def checkpoint(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "checkpoint"))


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "root")


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# ── quantised weights ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "torchao"}}, "torchao"),
        ({"quantization_config": {"quant_method": "hqq"}}, "hqq"),
        ({"quantization_config": {"quant_method": "quanto"}}, "quanto"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "nonesuch"}}, "nonesuch"),
        ({"quantization_config": {"bits": 4}}, "names no quant_method"),
        ({"quantization_config": "int4"}, "int4"),
        ({"text_config": {"quantization_config": {"quant_method": "gptq"}}}, "gptq"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
    ],
)
def test_quantised_checkpoints_are_refused_by_name(
    checkpoint: Path, said: dict[str, object], name: str
) -> None:
    change_config(checkpoint, **said)
    # Whatever its tensors are: they are not looked at.
    (checkpoint / WEIGHTS).write_bytes(b"")
    with pytest.raises(
        UnsupportedModel, match=rf"quantised weights \(.*{name}.*take the unquantised checkpoint"
    ):
        find_weights(checkpoint)


def test_packed_tensors_and_files_of_quantisers_show_it_too(checkpoint: Path) -> None:
    change_config(checkpoint, quantization_config=None)
    find_weights(checkpoint)
    (checkpoint / "quantize_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match=r"quantised weights \(gptq\)"):
        find_weights(checkpoint)
    (checkpoint / "quantize_config.json").unlink()
    change_tensors(checkpoint, lambda t: t.update({"model.layers.0.mlp.up_proj.qweight": torch.zeros(1)}))
    with pytest.raises(UnsupportedModel, match=r"tensor model\.layers\.0\.mlp\.up_proj\.qweight shows"):
        find_weights(checkpoint)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool])
def test_weights_that_are_whole_numbers_are_quantised(checkpoint: Path, dtype: torch.dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(checkpoint, lambda t: t.update({name: (50 * t[name]).to(dtype)}))
    with pytest.raises(UnsupportedModel, match=rf"as tensor {name} of type {str(dtype)[6:]} shows"):
        find_weights(checkpoint)


# ── shards, and files that are none ─────────────────────────────────────────────────────────────────────────


def split_in_two(folder: Path, *, twice: bool = False) -> None:
    """Make two shards and their index beside model.safetensors; `twice`: one tensor is in both."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3 - twice :]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    file_of = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": file_of}))


def test_a_tensor_in_two_shards_is_ambiguous(checkpoint: Path) -> None:
    split_in_two(checkpoint, twice=True)
    (checkpoint / WEIGHTS).unlink()
    with pytest.raises(BadCheckpoint, match=r"is both in a\.safetensors and in b\.safetensors"):
        find_weights(checkpoint)


def test_the_file_that_is_checked_is_the_one_that_transformers_loads(checkpoint: Path) -> None:
    split_in_two(checkpoint)
    assert [file.path.name for file in find_weights(checkpoint)] == [WEIGHTS]
    (checkpoint / WEIGHTS).unlink()
    assert [file.path.name for file in find_weights(checkpoint)] == ["a.safetensors", "b.safetensors"]


def test_the_file_that_the_config_names_is_the_one(
    checkpoint: Path, catalogue: Catalogue, tmp_path: Path
) -> None:
    other = tiny.create("llama", tmp_path / "other", seed=5, dtype=torch.float32)
    shutil.copy(other / WEIGHTS, checkpoint / "named.safetensors")
    change_config(checkpoint, transformers_weights="named.safetensors")
    assert equals_transformers(bound(catalogue, "m", checkpoint), other)
    split_in_two(checkpoint)
    (checkpoint / "model.safetensors.index.json").rename(checkpoint / "named.safetensors.index.json")
    change_config(checkpoint, transformers_weights="named.safetensors.index.json")
    assert [file.path.name for file in find_weights(checkpoint)] == ["a.safetensors", "b.safetensors"]
    assert equals_transformers(bound(catalogue, "split", checkpoint), checkpoint)


def test_an_index_without_metadata_is_said_to_lack_it(checkpoint: Path) -> None:
    split_in_two(checkpoint)
    (checkpoint / WEIGHTS).unlink()
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    with pytest.raises(BadCheckpoint, match='add an object "metadata"'):
        find_weights(checkpoint)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("absent.safetensors", "there is no such file"),
        ("../other.safetensors", "not a file of this folder"),
        ("pytorch_model.bin", "not the name of a safetensors file"),
        (["model.safetensors"], "not the name of a safetensors file"),
        ("", "not the name of a safetensors file"),
    ],
)
def test_a_file_that_the_config_names_in_vain_is_said(checkpoint: Path, named: object, said: str) -> None:
    change_config(checkpoint, transformers_weights=named)
    with pytest.raises(BadCheckpoint, match=f"transformers_weights is .*{said}"):
        find_weights(checkpoint)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_implementations_that_are_not_installed_are_not_asked_for(
    checkpoint: Path, catalogue: Catalogue, dtype: str
) -> None:
    plain = catalogue.register_folder("plain", checkpoint, dtype=dtype)
    change_config(checkpoint, attn_implementation="flash_attention_2", experts_implementation="deepgemm")
    entry = catalogue.register_folder("m", checkpoint, dtype=dtype)
    assert entry.manifest.sha256 == plain.manifest.sha256
    entry.skeleton()


# ── every tensor is used, or the file refused ───────────────────────────────────────────────────────────────


def bound(catalogue: Catalogue, name: str, folder: Path) -> Any:
    """The model of a new entry, bound to its image."""
    entry = catalogue.register_folder(name, folder)
    skeleton = entry.skeleton()
    skeleton.bind(map_image(entry.manifest).clone())
    return skeleton.model


def equals_transformers(model: Any, folder: Path) -> bool:
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    got = model.state_dict()
    return got.keys() == expected.keys() and all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_file_with_an_output_layer_of_its_own_is_not_tied(catalogue: Catalogue, checkpoint: Path) -> None:
    change_config(checkpoint, tie_word_embeddings=True)
    own = torch.randn(320, 128)
    change_tensors(checkpoint, lambda t: t.update({"lm_head.weight": own}))
    model = bound(catalogue, "own", checkpoint)
    assert torch.equal(model.lm_head.weight, own)
    assert not torch.equal(model.model.embed_tokens.weight, own)
    assert equals_transformers(model, checkpoint)


@pytest.mark.parametrize("only", ["model.embed_tokens.weight", "lm_head.weight", "both"])
def test_tied_weights_may_be_saved_under_either_name(
    catalogue: Catalogue, checkpoint: Path, only: str
) -> None:
    def save(tensors: dict[str, torch.Tensor]) -> None:
        one = tensors.pop("model.embed_tokens.weight")
        names = ["model.embed_tokens.weight", "lm_head.weight"] if only == "both" else [only]
        tensors.update({name: one.clone() for name in names})

    change_tensors(checkpoint, save)
    model = bound(catalogue, "tied", checkpoint)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert equals_transformers(model, checkpoint)


@pytest.mark.parametrize(
    "extra",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.mlp.up_proj.weight",
        "lm_head.bias",
        "other.weight",
    ],
)
def test_tensors_without_a_place_are_refused_by_name(
    catalogue: Catalogue, checkpoint: Path, extra: str
) -> None:
    change_tensors(checkpoint, lambda t: t.update({extra: torch.zeros(128)}))
    with pytest.raises(BadCheckpoint, match=rf"1 tensors have no place in the model .*{extra}"):
        catalogue.register_folder("m", checkpoint)


@pytest.mark.parametrize(
    "extra", ["model.layers.0.self_attn.rotary_emb.inv_freq", "v_head.weight", "mtp.layers.0.norm.weight"]
)
def test_tensors_that_change_nothing_are_left_out(catalogue: Catalogue, checkpoint: Path, extra: str) -> None:
    change_tensors(checkpoint, lambda t: t.update({extra: torch.zeros(16)}))
    assert equals_transformers(bound(catalogue, "m", checkpoint), checkpoint)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_tensors_are_refused_or_exact(
    llama: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Tensors dropped, renamed, copied, of another shape; ties on and off; keys of the config that add
    tensors."""
    folder = Path(shutil.copytree(llama, tmp_path_factory.mktemp("changed") / "m"))
    names = sorted(load_file(folder / WEIGHTS))
    name = data.draw(st.sampled_from([*names, "lm_head.weight"]))
    other = data.draw(
        st.sampled_from([*names, "lm_head.weight", "model.layers.0.self_attn.q_proj.bias", "new"])
    )

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.setdefault("lm_head.weight", torch.randn(320, 128))
        match data.draw(st.sampled_from(["drop", "rename", "copy", "cut", "swap", "nothing"])):
            case "drop":
                del tensors[name]
            case "rename":
                tensors[other] = tensors.pop(name)
            case "copy":
                tensors[other] = tensors[name].clone()
            case "cut":
                tensors[name] = tensors[name][1:].clone()
            case "swap" if other in tensors:
                tensors[name], tensors[other] = tensors[other], tensors[name]

    change_tensors(folder, change)
    change_config(
        folder,
        tie_word_embeddings=data.draw(st.booleans()),
        attention_bias=data.draw(st.sampled_from([False, False, True])),
        num_hidden_layers=data.draw(st.sampled_from([2, 2, 2, 1, 3])),
    )
    try:
        model = bound(Catalogue(folder / "root"), "m", folder)
    except TokenmuxError as error:
        assert "tensor" in str(error)  # noqa: PT017
    else:
        assert equals_transformers(model, folder)


# ── config.json ─────────────────────────────────────────────────────────────────────────────────────────────

NUMBERS = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "num_local_experts",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "sliding_window",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_types",
    "rope_parameters",
    "rope_theta",
    "tie_word_embeddings",
    "hidden_act",
    "attn_logit_softcapping",
    "n_positions",
    "eos_token_id",
    "pad_token_id",
    "architectures",
    "model_type",
    "dtype",
    "text_config",
    "quantization_config",
    "n_embd",
    "n_head",
    "n_layer",
)
ODD = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1,
        3,
        64,
        10**9,
        2**63,
        10**30,
        0.5,
        512.0,
        1e308,
        "",
        "4",
        "gelu",
        [],
        [0],
        [[1]],
        {},
        {"a": 1},
    ]
)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: tiny.create(family, root / family) for family in tiny.FAMILIES}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(family=st.sampled_from(sorted(tiny.FAMILIES)), key=st.sampled_from(NUMBERS), value=ODD)
def test_any_value_of_a_config_is_served_or_refused_with_a_reason(
    families: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, family: str, key: str, value: object
) -> None:
    folder = tmp_path_factory.mktemp("config")
    for file in families[family].iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    try:
        Catalogue(folder / "root").register_folder("m", folder)
    except TokenmuxError as error:
        assert 20 < len(str(error)) < 1500  # noqa: PT017


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_experts", "num_local_experts"])
def test_absurd_counts_are_refused_before_anything_is_built(checkpoint: Path, key: str) -> None:
    change_config(checkpoint, **{key: 10**9})
    with pytest.raises(
        BadCheckpoint, match=rf"config\.json: {key} is 1000000000, but the checkpoint has 20 tensors"
    ):
        find_weights(checkpoint)


def test_a_tower_of_layers_is_refused_though_it_has_tensors(tmp_path: Path, checkpoint: Path) -> None:
    names = [f"model.layers.{number}.input_layernorm.weight" for number in range(3000)]
    write_header(checkpoint / WEIGHTS, {name: tensor(0, 0, [0]) for name in names}, b"")
    change_config(checkpoint, num_hidden_layers=3000)
    with pytest.raises(BadCheckpoint, match="num_hidden_layers is 3000, and models have at most 1024 layers"):
        find_weights(checkpoint)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_labels": 10**9}, "num_labels is 1000000000"),
        ({"eos_token_id": [7] * 3_000_000}, "bytes, and a config"),
    ],
)
def test_configs_that_would_keep_transformers_busy_are_refused(
    checkpoint: Path, change: dict[str, Any], said: str
) -> None:
    change_config(checkpoint, **change)
    with pytest.raises(BadCheckpoint, match=rf"config\.json: .*{said}"):
        find_weights(checkpoint)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["auto", "torch.float16", "int8", "float8_e4m3fn", 5, {}, "nn"])
def test_a_type_that_is_none_to_compute_in_is_refused_with_the_remedy(
    checkpoint: Path, key: str, value: object
) -> None:
    change_config(checkpoint, **{key: value})
    with pytest.raises(BadCheckpoint, match=rf"config\.json: {key} is .*write bfloat16"):
        find_weights(checkpoint)


@pytest.mark.parametrize("value", ["float16", "half", "bfloat16", "float32", None])
def test_types_by_their_names_are_read(checkpoint: Path, catalogue: Catalogue, value: str | None) -> None:
    change_config(checkpoint, dtype=value, torch_dtype=value)
    catalogue.register_folder("m", checkpoint)


def test_absurd_sizes_are_refused_before_they_are_built(
    catalogue: Catalogue, checkpoint: Path, families: dict[str, Path]
) -> None:
    change_config(checkpoint, hidden_size=1 << 20, vocab_size=1 << 20)
    with pytest.raises(BadCheckpoint, match=r"config\.json: describes \d+ weights, but the checkpoint has"):
        catalogue.register_folder("m", checkpoint)
    change_config(checkpoint, hidden_size=128, vocab_size=320, head_dim=1 << 24)
    with pytest.raises(TokenmuxError, match="describes"):
        catalogue.register_folder("m", checkpoint)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"max_position_embeddings": 512.0}),
        ("llama", {"num_attention_heads": 0}),
        (
            "phi3",
            {
                "rope_parameters": {
                    "rope_type": "linear",
                    "type": "linear",
                    "factor": 4.0,
                    "rope_theta": 10000.0,
                }
            },
        ),
    ],
)
def test_what_a_strict_config_refuses_is_a_refusal(
    families: dict[str, Path], catalogue: Catalogue, tmp_path: Path, family: str, change: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(families[family], tmp_path / "m"))
    change_config(folder, **change)
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        catalogue.register_folder("m", folder)


# ── headers of safetensors files ────────────────────────────────────────────────────────────────────────────


def write_header(path: Path, header: object, data: bytes = bytes(64)) -> Path:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(begin: object, end: object, shape: object = (8,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor(0.0, 32), "b": tensor(32, 64)},
        {"a": tensor(0, 32.0), "b": tensor(32, 64)},
        {"a": tensor(0, 32, [8.0]), "b": tensor(32, 64)},
        {"a": tensor(0, 32, ["8"]), "b": tensor(32, 64)},
        {"a": tensor(False, 32), "b": tensor(32, 64)},
        {"a": tensor("0", "32"), "b": tensor(32, 64)},
        {"a": tensor(0, 32, [-2, -4]), "b": tensor(32, 64)},
        {"a": tensor(-32, 0), "b": tensor(0, 64, [16])},
        {"a": tensor(0, 32, [10**300]), "b": tensor(32, 64)},
        {"a": tensor(0, 32, [1] * 100_000), "b": tensor(32, 64)},
        {"a": tensor(0, 32, 8), "b": tensor(32, 64)},
        {"a": tensor(0, 32), "b": tensor(16, 48), "c": tensor(48, 64, [4])},
        {"a": tensor(0, 32), "b": tensor(36, 64, [7])},
        {"a": tensor(0, 32, dtype=["F32"]), "b": tensor(32, 64)},
        {"a": tensor(0, 32, dtype=7)},
        {"a": [0, 32]},
        {"a": {"dtype": "F32", "shape": [8], "data_offsets": [0]}},
        {"__metadata__": [], "a": tensor(0, 64, [16])},
        (
            '{"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}, "a": {"dtype": "F32", '
            '"shape": [16], "data_offsets": [0, 64]}}'
        ),
        "[]",
        "[" * 50_000,
        "nothing",
    ],
)
def test_headers_that_are_not_well_formed_are_refused(tmp_path: Path, header: object) -> None:
    path = write_header(tmp_path / "x.safetensors", header)
    with pytest.raises(BadCheckpoint, match=r"x\.safetensors: ") as caught:
        read_safetensors(path)
    assert len(str(caught.value)) < 1000 + len(str(path))


def test_a_name_that_occurs_twice_among_many_is_found_at_once(tmp_path: Path) -> None:
    names = [*range(100_000), 99_999]
    header = ", ".join(f'"{name}": []' for name in names)
    path = write_header(tmp_path / WEIGHTS, f"{{{header}}}")
    with pytest.raises(BadCheckpoint, match="'99999' occurs in it twice"):
        read_safetensors(path)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "U8"]) | ODD,
                "shape": st.lists(st.integers(0, 9) | ODD, max_size=3) | ODD,
                "data_offsets": st.lists(st.sampled_from([0, 32, 64, 16]) | ODD, max_size=3) | ODD,
            }
        )
        | ODD,
        max_size=3,
    )
)
def test_any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object]
) -> None:
    path = write_header(tmp_path_factory.mktemp("h") / "x.safetensors", header)
    try:
        file = read_safetensors(path)
    except TokenmuxError:
        return
    assert file.n_bytes == 64 == sum(entry.n_bytes for entry in file.tensors.values())


def test_a_manifest_is_as_strict(tmp_path: Path, checkpoint: Path, catalogue: Catalogue) -> None:
    path = catalogue.register_folder("m", checkpoint).path / "manifest.json"
    good = json.loads(path.read_bytes())
    for index, value in ((3, 0.0), (3, -64), (3, 10**12), (4, 1.5), (2, [1.0]), (1, "F8"), (0, 5)):
        document = json.loads(json.dumps(good))
        document["tensors"][0][index] = value
        path.write_text(json.dumps(document))
        with pytest.raises(BadCheckpoint, match="the manifest is damaged"):
            Manifest.load(path)


# ── a file that is changed behind our back ──────────────────────────────────────────────────────────────────


def read(manifest: Manifest, seen: FileStamp | None = None) -> FileStamp:
    return read_image(manifest, memoryview(bytearray(manifest.n_bytes)), lambda _: None, seen=seen)


def test_a_file_is_checked_again_when_it_was_touched(catalogue: Catalogue, checkpoint: Path) -> None:
    manifest = catalogue.register_folder("m", checkpoint).manifest
    file = checkpoint / WEIGHTS
    seen = read(manifest)
    assert read(manifest, seen) == seen
    content = file.read_bytes()
    # The same again, as another file: checked, and well.
    file.unlink()
    file.write_bytes(content)
    again = read(manifest, seen)
    assert again != seen
    # Other bytes of the same number, in place: refused, with the remedy.
    with file.open("r+b") as out:
        out.seek(-1, 2)
        out.write(bytes([content[-1] ^ 1]))
    with pytest.raises(BadCheckpoint, match=r"changed after the model was registered; put the old file back"):
        read(manifest, again)
    file.write_bytes(content)
    read(manifest, again)


def test_samples_show_a_change_that_times_do_not(
    catalogue: Catalogue, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = catalogue.register_folder("m", checkpoint).manifest
    monkeypatch.setattr(FileStamp, "now", classmethod(lambda cls, handle: cls((0, 0), 1, (0, 0))))
    seen = read(manifest)
    assert read(manifest, seen) == seen
    with (checkpoint / WEIGHTS).open("r+b") as out:
        out.seek(manifest.data_offset)
        out.write(b"other")
    with pytest.raises(BadCheckpoint, match="changed after the model was registered"):
        read(manifest, seen)


# ── folders that are no checkpoints ─────────────────────────────────────────────────────────────────────────


def test_a_folder_that_is_something_else_says_what_to_name_instead(checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(BadCheckpoint, match=r"an adapter of org/base; merge it into that model"):
        find_weights(adapter)
    (checkpoint / WEIGHTS).rename(checkpoint / "other.gguf")
    with pytest.raises(BadCheckpoint, match=r"no weights .* but there is other\.gguf: register that file"):
        find_weights(checkpoint)
    (tmp_path / "cache" / "snapshots").mkdir(parents=True)
    checkpoint.rename(tmp_path / "cache" / "snapshots" / "abc")
    with pytest.raises(BadCheckpoint, match=r"a cache of the hub; register .*/snapshots/abc"):
        find_weights(tmp_path / "cache")
    (tmp_path / "cache" / "snapshots" / "abc" / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid 1\n"
    )
    with pytest.raises(BadCheckpoint, match=r"a Git LFS pointer.*git lfs pull"):
        find_weights(tmp_path / "cache" / "snapshots" / "abc")
