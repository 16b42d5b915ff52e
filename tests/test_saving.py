"""Laws of files: whole or not at all, verified, never a pickle, never somebody else's folder."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from latentfit import saving
from latentfit.errors import InputError, SavedFileError
from latentfit.registry import Component, registry
from latentfit.saving import (
    load_component,
    load_tensors,
    read_json,
    save_component,
    save_tensors,
    write_atomic,
)


class Toy(Component, nn.Module):
    """A component with a parameter, a buffer and a tied weight."""

    def __init__(self, width: int = 3, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.layer.weight
        self.register_buffer("seen", torch.arange(width))
        self.inner = inner


registry.register("toy_for_saving", "toy", Toy)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=0, max_size=4),
    dtype=st.sampled_from(DTYPES),
    meta=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=3),
)
def test_tensors_come_back_to_the_bit(tmp_path_factory, shapes, dtype, meta) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tensors = {f"t{i}": (3 * torch.randn(shape)).to(dtype) for i, shape in enumerate(shapes)}
    save_tensors(path, tensors, meta)
    back, back_meta = load_tensors(path)
    assert back_meta == meta
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert back[key].dtype == value.dtype
        assert back[key].shape == value.shape
        assert torch.equal(back[key], value)


def test_shared_and_strided_tensors_are_stored(tmp_path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": base, "b": base.t(), "c": base[:, 1]}
    save_tensors(tmp_path / "x.safetensors", tensors, {})
    back, _ = load_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(back[key], value) for key, value in tensors.items())


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_edited_byte_is_noticed(tmp_path_factory, position, flip) -> None:
    path = tmp_path_factory.getbasetemp() / "edited.safetensors"
    save_tensors(path, {"w": torch.arange(20.0), "v": torch.ones(2)}, {"step": 3})
    raw = bytearray(path.read_bytes())
    i = int(position * len(raw))
    raw[i] ^= flip
    path.write_bytes(bytes(raw))
    try:
        tensors, meta = load_tensors(path)
    except SavedFileError as error:
        message = str(error)
    else:
        message = str(path)  # a byte of padding, say: then nothing that was read may have changed
        assert meta == {"step": 3}
        assert torch.equal(tensors["w"], torch.arange(20.0))
        assert torch.equal(tensors["v"], torch.ones(2))
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize("length", [0, 4, 8, 60, -100, -1])
def test_a_truncated_file_is_noticed(tmp_path, length) -> None:
    path = tmp_path / "cut.safetensors"
    save_tensors(path, {"w": torch.arange(200.0)}, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SavedFileError, match=r"cut\.safetensors is damaged \(truncated"):
        load_tensors(path)


def test_other_files_are_refused_in_one_line(tmp_path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(SavedFileError, match=r"none\.safetensors is missing\."):
        load_tensors(tmp_path / "none.safetensors")
    save_file({"w": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(SavedFileError, match="was not written by Latentfit"):
        load_tensors(tmp_path / "foreign.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "pickle.safetensors")
    with pytest.raises(SavedFileError, match="is damaged"):
        load_tensors(tmp_path / "pickle.safetensors")
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(SavedFileError, match="is damaged"):
        load_tensors(tmp_path / "huge.safetensors")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(SavedFileError, match=r"bad\.json is damaged \(no valid JSON"):
        read_json(tmp_path / "bad.json")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch) -> None:
    path = tmp_path / "note.txt"
    write_atomic(path, "old")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SavedFileError) as caught:
        write_atomic(path, "new")
    assert str(caught.value) == f"Cannot write {path}: No space left on device."
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("refusals", [1, 4, 100])
def test_a_file_held_by_a_virus_scanner_is_tried_again(tmp_path, monkeypatch, refusals) -> None:
    replace, calls = os.replace, []
    monkeypatch.setattr(saving, "_REPLACE_WAITS", (0.0,) * 5)

    def held(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) <= refusals:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", held)
    if refusals == 100:
        with pytest.raises(SavedFileError, match="Permission denied"):
            write_atomic(tmp_path / "a", b"1")
        assert list(tmp_path.iterdir()) == []
    else:
        write_atomic(tmp_path / "a", b"1")
        assert (tmp_path / "a").read_bytes() == b"1"


def test_a_component_comes_back_to_the_bit(tmp_path) -> None:
    toy = Toy(width=4)
    folder = save_component(toy, tmp_path / "toy", card="# Mine\n", extra={"note": "Việt", "name": "ignored"})
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]
    config = read_json(folder / "config.json")
    assert (config["format_version"], config["family"], config["name"]) == (1, "toy_for_saving", "toy")
    assert config["args"] == {"width": 4, "inner": None}
    assert config["note"] == "Việt"
    assert (folder / "README.md").read_text(encoding="utf-8") == "# Mine\n"
    back = load_component(folder)
    assert type(back) is Toy
    assert not back.training
    assert all(torch.equal(a, b) for a, b in zip(toy.state_dict().values(), back.state_dict().values(), strict=True))


def test_a_users_own_module_is_handed_in_and_gets_its_weights(tmp_path) -> None:
    toy = Toy(inner=nn.Linear(2, 2))
    save_component(toy, tmp_path / "toy")
    with pytest.raises(InputError, match=r"load\(\.\.\., inner=your_module\)"):
        load_component(tmp_path / "toy")
    own = nn.Linear(2, 2)
    load_component(tmp_path / "toy", inner=own)
    assert torch.equal(own.weight, toy.inner.weight)


def test_a_folder_is_replaced_only_if_asked_and_only_if_ours(tmp_path) -> None:
    folder, first, second = tmp_path / "toy", Toy(width=2), Toy(width=5)
    folder.mkdir()  # an empty folder is free
    save_component(first, folder)
    with pytest.raises(InputError, match=r"is not empty\. Use overwrite=True or another folder."):
        save_component(second, folder)
    assert load_component(folder).layer.in_features == 2
    save_component(second, folder, overwrite=True)
    assert load_component(folder).layer.in_features == 5
    (folder / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="holds files that Latentfit did not save"):
        save_component(first, folder, overwrite=True)
    assert (folder / "thesis.tex").read_text(encoding="utf-8") == "mine"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="holds files that Latentfit did not save"):
        save_component(first, foreign, overwrite=True)
    assert (foreign / "config.json").read_text(encoding="utf-8") == "{}"
    with pytest.raises(InputError, match="is a file"):
        save_component(first, folder / "thesis.tex", overwrite=True)
    with pytest.raises(InputError, match="expected a registered Latentfit component"):
        save_component(nn.Linear(1, 1), tmp_path / "linear")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["foreign", "toy"]


def test_an_overwrite_that_fails_leaves_the_old_folder(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "toy"
    save_component(Toy(width=2), folder)
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target) == folder and Path(source, "config.json").is_file() and read_width(source) == 5:
            raise OSError(5, "Input/output error")
        replace(source, target)

    def read_width(path: Path) -> int:
        return json.loads(Path(path, "config.json").read_text(encoding="utf-8"))["args"]["width"]

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(SavedFileError, match="Input/output error"):
        save_component(Toy(width=5), folder, overwrite=True)
    assert load_component(folder).layer.in_features == 2
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def break_version(folder: Path) -> None:
    config = read_json(folder / "config.json") | {"format_version": 99, "latentfit_version": "7.0"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def break_width(folder: Path) -> None:
    config = read_json(folder / "config.json")
    config["args"]["width"] = 7
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def break_name(folder: Path) -> None:
    (folder / "config.json").write_text(
        json.dumps(read_json(folder / "config.json") | {"name": "toi"}), encoding="utf-8"
    )


def break_keys(folder: Path) -> None:
    config = read_json(folder / "config.json")
    del config["args"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_version, r"format version 99 \(latentfit 7\.0\); this version reads 1"),
        (break_width, r"model\.safetensors does not match config\.json \(size mismatch"),
        (break_name, "does not describe a component of this version: Unknown toy_for_saving 'toi'"),
        (break_keys, r"config\.json is damaged \(no args\)"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (lambda folder: (folder / "config.json").unlink(), r"was not saved by Latentfit: it has no config"),
        (lambda folder: write_atomic(folder / "config.json", "[]"), "was not saved by Latentfit"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(tmp_path, damage, message) -> None:
    save_component(Toy(), tmp_path / "toy")
    damage(tmp_path / "toy")
    with pytest.raises(SavedFileError, match=message) as caught:
        load_component(tmp_path / "toy")
    assert "\n" not in str(caught.value)


def test_no_folder_at_all(tmp_path) -> None:
    with pytest.raises(SavedFileError, match="is not a folder"):
        load_component(tmp_path / "nothing")


def test_no_pickle_is_ever_loaded() -> None:
    source = Path(saving.__file__).parent
    for path in [source / "saving.py", *(source / "training").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "torch.load" not in text
        assert "import pickle" not in text
