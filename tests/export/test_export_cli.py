"""The command says what it did, or in one line why it did not."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harken_export import cli, export, trace
from harken_export.bundle import Precision
from harken_export.model import Encoder
from safetensors.torch import load_file, save_file

TINY = ["random", "--layers", "1", "--heads", "2", "--hidden", "8", "--vocab", "50", "--max-length", "16"]
SMALL_INT8 = ["random", "--layers", "1", "--hidden", "64", "--max-length", "16", "--precision", "int8"]


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """The one line on stderr."""
    assert cli.run(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_an_export_prints_its_steps_and_where_the_bundle_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*TINY, "--models", str(tmp_path), "--name", "tiny", "--version", "3"]) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    steps = ["load PyTorch", "draw the weights", "trace to ONNX", "verify against PyTorch"]
    steps += ["add attention maps", "write the bundle"]
    assert [line[:22].rstrip() for line in lines[:-2]] == steps
    assert all(line.endswith(" s") for line in lines[:-2])
    sha256 = hashlib.sha256((tmp_path / "tiny" / "3" / "bundle.json").read_bytes()).hexdigest()
    assert lines[-2] == f"--bundle-digest sha256:{sha256} serves this one and no other"
    assert lines[-1] == f"{tmp_path}/tiny/3 is ready"
    assert output.err == ""


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (TINY, "random"),
        ([*TINY, "--precision", "fp16"], "random-fp16"),
        ([*TINY, "--precision", "fp16", "--name", "mine"], "mine"),
        (SMALL_INT8, "random-int8"),
    ],
)
def test_the_default_name_says_the_precision(tmp_path: Path, arguments: list[str], name: str) -> None:
    assert cli.run([*arguments, "--models", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_is_exported_under_its_name(folder: Path, tmp_path: Path) -> None:
    assert cli.run(["checkpoint", str(folder), "--models", str(tmp_path / "models")]) == 0
    names = sorted(path.name for path in (tmp_path / "models" / "tiny-bert" / "1").iterdir())
    assert names == ["attention.onnx", "bundle.json", "model.onnx", "tokenizer.json"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([*TINY, "--heads", "3"], "hidden_size 8 is not divisible by heads 3"),
        ([*TINY, "--layers", "0"], "layers is 0, it must be at least 1"),
        ([*TINY, "--vocab", "10000000000"], "the weights take 320.00 GB, one ONNX file holds less than 2.13 GB"),
        (["random", "--hidden", "30000", "--vocab", "20000"], "the weights take 88.82 GB, one ONNX file holds "),
        (["checkpoint", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["checkpoint"], "Missing argument 'DIR'."),
        (["train"], "No such command 'train'."),
        ([*TINY, "--name", "../up"], "the name '../up' must be 1 to 128 letters, digits, '.', '_' or '-', "),
        ([*TINY, "--version", "0"], "Invalid value for '--version': "),
        ([*TINY, "--precision", "int8-per-tensor"], "Invalid value for '--precision': "),
        ([*TINY, "--speed", "9"], "No such option: --speed"),
        ([*TINY, "--force", "--if-missing"], "Invalid value for --force: it contradicts --if-missing"),
        ([*TINY, "--models", "/dev/null/models"], "[Errno 20] Not a directory: "),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(arguments, capsys).startswith(f"harken-export: {line}")
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_that_is_not_bert_is_refused_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (folder / "config.json").read_text().replace("BertModel", "GPT2Model").replace('"bert"', '"gpt2"')
    (folder / "config.json").write_text(config)
    assert refusal(["checkpoint", str(folder), "--models", str(tmp_path / "models")], capsys) == (
        "harken-export: architecture 'GPT2Model' (model_type 'gpt2') is not supported; supported: bert"
    )
    assert not (tmp_path / "models").exists()


def test_failed_parity_has_a_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_spoilt(encoder: Encoder, precision: Precision, path: Path) -> None:
        token_type = encoder.get_parameter("embeddings.token_type")
        right = token_type.clone()
        token_type[0] += 1
        trace.write_onnx(encoder, precision, path)
        token_type.copy_(right)

    monkeypatch.setattr(export, "write_onnx", write_spoilt)
    line = refusal([*TINY, "--models", str(tmp_path)], capsys, code=1)
    assert line.startswith("harken-export: parity failed in case 'one token alone': max abs of sentence vectors is ")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_is_refused_replaced_or_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TINY, "--models", str(tmp_path)]
    bundle = tmp_path / "random" / "1"
    assert cli.run([*arguments, "--if-missing"]) == 0
    first = (bundle / "model.onnx").read_bytes()
    assert refusal([*arguments, "--seed", "1"], capsys) == (
        f"harken-export: {bundle} exists already: use --force to replace it, or another --version"
    )
    assert cli.run([*arguments, "--seed", "1", "--if-missing"]) == 0
    assert capsys.readouterr().out == f"{bundle} is there\n"
    assert (bundle / "model.onnx").read_bytes() == first
    assert cli.run([*arguments, "--seed", "1", "--force"]) == 0
    assert (bundle / "model.onnx").read_bytes() != first


def test_neither_help_nor_a_bundle_that_is_there_waits_for_torch(tmp_path: Path) -> None:
    (tmp_path / "random" / "1").mkdir(parents=True)
    (tmp_path / "random" / "1" / "bundle.json").write_text("{}")
    script = (
        "import sys; from harken_export import cli; "
        f"codes = cli.run([]), cli.run(['random', '--models', {str(tmp_path)!r}, '--if-missing']); "
        "print(codes, sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "(0, 0) []"


def test_whoever_loses_the_race_for_a_bundle_has_what_if_missing_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_slowly(encoder: Encoder, precision: Precision, path: Path) -> None:
        monkeypatch.setattr(export, "write_onnx", trace.write_onnx)
        assert cli.run([*TINY, "--models", str(tmp_path), "--seed", "1"]) == 0
        trace.write_onnx(encoder, precision, path)

    monkeypatch.setattr(export, "write_onnx", write_slowly)
    assert cli.run([*TINY, "--models", str(tmp_path), "--if-missing"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.splitlines()[-1] == f"{tmp_path}/random/1 is there"
    assert '"random, seed 1"' in (tmp_path / "random" / "1" / "bundle.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["random"]


def test_a_folder_that_is_no_bundle_is_not_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "random" / "1").mkdir(parents=True)
    assert "exists already" in refusal([*TINY, "--models", str(tmp_path), "--if-missing"], capsys)


def test_weights_of_zeros_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert refusal(["checkpoint", str(folder), "--models", str(tmp_path / "models")], capsys) == (
        "harken-export: the weights give a sentence vector of zeros in case 'one token alone'"
    )
    assert list((tmp_path / "models").iterdir()) == []


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import os, signal; from harken_export import cli, export; "
        "export.write_onnx = lambda *_: os.kill(os.getpid(), signal.SIGTERM); cli.main()"
    )
    arguments = [*TINY, "--models", str(tmp_path)]
    ended = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (143, "")
    assert list(tmp_path.iterdir()) == []
