"""Folders of deployed models: they answer what the model answers, and need nothing of confide."""

import ast
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace

import onnx
import onnxruntime
import pytest
import torch

from confide.models.decoding.arithmetic import Arithmetic
from confide.models.decoding.writing import write
from confide.models.deployment import deploying
from confide.models.deployment.asking import Answering
from confide.models.deployment.deploying import PROGRAM, default_weights, deploy
from confide.models.errors import DeploymentRefused, InvalidRelease, UnsupportedGraph
from confide.models.structure.inputs import words_of

pytestmark = pytest.mark.slow

ROWS = [
    {"age": "35", "sex": "F", "sick": "t"},
    {"age": "", "sex": "", "sick": ""},
    {"age": 71.5, "sex": "M", "sick": False},
]
NOTES = ["a cough and a fever", "", "two legs <|end|> <|start|>", "é" * 40]


def written(trained, folder, target, weights="float32"):
    deploy(
        trained.adapted, trained.backbone, folder, trained.card, trained.request, target=target, weights=weights
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders that several tests read and none changes: to trace a graph takes seconds."""
    found = {}

    def once(trained, target, weights="float32"):
        key = (trained.backbone, target, weights)
        if key not in found:
            found[key] = written(trained, tmp_path_factory.mktemp("made") / "it", target, weights)
        return found[key]

    return once


def chances(logits):
    return (logits.double().exp() / logits.double().exp().sum(-1, keepdim=True)).tolist()


@pytest.mark.parametrize(
    ("target", "weights", "room"),
    [("onnx", "float32", 1e-5), ("torch", "float32", 1e-5), ("onnx", "int8", 0.02)],
)
def test_records_are_answered_as_the_model_answers_them(table, made, target, weights, room):
    answering = Answering(made(table, target, weights))
    ids = [answering.reader.ids(row) for row in ROWS]
    with torch.no_grad():
        outputs = torch.cat([table.adapted.classify(torch.tensor([own])) for own in ids])
    found = answering.answer([*ROWS, {"age": 3}])
    for told, logits in zip(found, outputs, strict=False):
        assert told["answer"]["ill"] == pytest.approx(float(logits[0].double().sigmoid()), abs=room)
        assert [*told["answer"]["stage"].values()] == pytest.approx(chances(logits[1:]), abs=room)
    assert found[3] == {"error": "the request does not say sex, sick"}
    assert answering.answer(ROWS[1:2])[0]["answer"]["ill"] == pytest.approx(found[1]["answer"]["ill"], abs=1e-5)


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_documents_are_answered_as_the_model_answers_them(document, tmp_path, target):
    answering = Answering(written(document, tmp_path / "it", target))
    ids = torch.from_numpy(document.reader.encode({"note": NOTES}))
    with torch.no_grad():
        want = document.adapted.classify(ids)
    found = answering.answer([{"note": note} for note in NOTES])
    for told, each in zip(found, chances(want), strict=True):
        assert [*told["answer"]["ill"].values()] == pytest.approx(each, abs=1e-5)


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_texts_are_written_as_the_model_writes_them(writer, made, target):
    answering = Answering(made(writer, target))
    words = words_of(writer.tokenizer)
    prompts = [answering.reader.ids({"note": note}) for note in NOTES]
    want = write(writer.adapted.model, prompts, words, ends=(2,), longest=10)
    found = answering.answer([{"note": note} for note in NOTES], longest=10)
    decode = writer.tokenizer.backend_tokenizer.decode
    assert [told["text"] for told in found] == [decode(list(each.ids), skip_special_tokens=True) for each in want]
    assert [told["is_ended"] for told in found] == [each.is_ended for each in want]
    drawn = [answering.answer([{"note": "x"}], longest=8, temperature=2.0, seed=seed)[0]["text"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert (made(writer, target) / "LICENSE.md").read_text() == "Do as you like.\n"


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_structure_is_read_and_values_computed_without_confide(calculator, made, target):
    answering = Answering(made(calculator, target))
    words, questions = words_of(calculator.tokenizer), ["x+1", "2(3x", "\\frac{1}{2}", ""]
    prompts = [calculator.reader.prompt(question) for question in questions]
    ends = (calculator.reader.end,)
    want = write(calculator.adapted.model, prompts, words, ends=ends, longest=12, guide=Arithmetic(words))
    found = answering.answer([{"question": question} for question in questions])
    assert [(told["text"], told["is_ended"]) for told in found] == [(each.text, each.is_ended) for each in want]


@pytest.mark.process
@pytest.mark.parametrize(
    ("target", "weights", "blocked"),
    [("onnx", "int8", ("confide", "torch", "transformers")), ("torch", "float32", ("confide", "onnxruntime"))],
)
def test_a_folder_runs_without_confide(table, made, tmp_path, target, weights, blocked):
    folder = made(table, target, weights)
    (tmp_path / "rows.csv").write_text("age,sex,sick\n35,F,t\n,,\nold,F,t\n")
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS) + "[1]\n{\n")

    def asked(*words, given=None):
        code = f"import sys, runpy; sys.modules.update(dict.fromkeys({blocked!r})); sys.path.insert(0, {str(folder)!r})"
        code += f"; sys.argv = {[str(folder / 'ask.py'), *map(str, words)]!r}; runpy.run_path(sys.argv[0])"
        result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, input=given, capture_output=True, text=True)
        return result.returncode, [json.loads(line) for line in result.stdout.splitlines()], result.stderr

    want = Answering(folder).answer(ROWS)
    code, answers, _ = asked(tmp_path / "rows.csv")
    assert (code, answers[:2]) == (1, want[:2])
    assert answers[2] == {"error": "age: an entry is not a number"}
    if target == "torch":  # which takes seconds to start
        return
    code, answers, said = asked(tmp_path / "rows.jsonl", "--time")
    assert code == 1
    assert all(answer.pop("milliseconds") >= 0 for answer in answers)
    assert answers[:3] == want
    assert all("error" in answer for answer in answers[3:])
    assert said == ""
    assert asked("-", given=json.dumps(ROWS[0]))[1] == want[:1]
    assert asked("age=35", "sex=F", "sick=t")[:2] == (0, want[:1])
    code, answers, said = asked()
    assert (code, answers) == (1, [])
    assert "a request says age, sex, sick" in said
    assert "nothing more was answered" in asked(tmp_path / "none.csv")[2]


def test_a_folder_says_what_it_is_and_what_it_may_tell(table, tmp_path):
    ids = torch.tensor([[2, 5, 7]])
    with torch.no_grad():
        before = table.adapted.classify(ids)
        folder = written(table, tmp_path / "it", "onnx", None)
        assert torch.equal(table.adapted.classify(ids), before)  # nothing is changed in the model
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "ask.py", "confide.json", "deployment.json", "model.onnx", "program", "requirements.txt",
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert table.card.table() in card
    assert "answers ill, stage" in card
    assert json.loads((folder / "confide.json").read_text())["sources"][0]["epsilon"] == table.card.epsilon
    assert (folder / "requirements.txt").read_text().splitlines() == ["numpy", "onnxruntime>=1.31"]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert modes == {0o644, 0o755}
    assert [path for path in tmp_path.iterdir() if path != folder] == []
    with pytest.raises(FileExistsError):
        written(table, folder, "onnx")


def test_the_program_imports_nothing_that_is_not_in_it():
    """By every import in its files, those inside functions too."""
    inside = {name.removesuffix(".py").replace("/", ".") for name in PROGRAM}
    packages = {name.rpartition(".")[0] for name in inside if "." in name}
    outside = set()
    for name in PROGRAM:
        path = deploying._ROOT / name
        package = name.split("/")[:-1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *(node.module or "").split(".")]).strip(".")
                for alias in node.names:
                    assert base in inside or (base in packages and f"{base}.{alias.name}" in inside), (name, base)
            elif isinstance(node, ast.ImportFrom):
                outside.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                outside |= {alias.name.split(".")[0] for alias in node.names}
    assert outside - set(sys.stdlib_module_names) == {
        "PIL", "mpmath", "numpy", "onnxruntime", "pytriton", "safetensors", "tokenizers", "torch", "transformers",
        "tree_sitter", "tree_sitter_java", "tree_sitter_python", "triton_python_backend_utils", "tritonclient",
    }  # fmt: skip


def test_a_triton_folder_holds_the_same_graph(table, made, tmp_path):
    folder = written(table, tmp_path / "it", "triton", "int8")
    model = folder / "models" / table.card.study
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "ask.py", "confide.json", "models", "requirements.txt", "start.py",
    }  # fmt: skip
    assert f'name: "{table.card.study}"' in (model / "config.pbtxt").read_text()
    assert "onnxruntime>=1.31" in (folder / "requirements.txt").read_text().splitlines()
    answers = Answering(model / "1").answer(ROWS)
    assert answers == Answering(made(table, "onnx", "int8")).answer(ROWS)


def operators(folder):
    return {node.op_type for node in onnx.load(folder / "model.onnx").graph.node}


def test_a_folder_asks_for_the_runtime_that_its_graph_takes(table, made):
    for weights, is_routed, least in (("int8", True, "1.31"), ("float32", False, "1.22")):
        folder = made(table, "onnx", weights)
        assert ("QMoE" in operators(folder)) == is_routed
        assert f"onnxruntime>={least}" in (folder / "requirements.txt").read_text().splitlines()


def test_a_head_without_routed_experts_is_in_float32_unless_somebody_says_otherwise(dense, tmp_path):
    ids = torch.from_numpy(dense.reader.encode({"note": NOTES}))
    with torch.no_grad():
        want = chances(dense.adapted.classify(ids))
    exact, packed = (written(dense, tmp_path / str(weights), "onnx", weights) for weights in (None, "int8"))
    for told, each in zip(Answering(exact).answer([{"note": note} for note in NOTES]), want, strict=True):
        assert [*told["answer"]["ill"].values()] == pytest.approx(each, abs=1e-5)
    assert "MatMulNBits" in operators(packed) - operators(exact)
    for folder in (exact, packed):
        assert "onnxruntime>=1.22" in (folder / "requirements.txt").read_text().splitlines()


def test_weights_are_in_bytes_where_a_graph_has_them_and_answers_move_little():
    assert default_weights("torch", is_head=False, has_experts=True) == "float32"
    for target in ("onnx", "triton"):
        assert default_weights(target, is_head=True, has_experts=True) == "int8"
        assert default_weights(target, is_head=False, has_experts=False) == "int8"
        assert default_weights(target, is_head=True, has_experts=False) == "float32"


@pytest.mark.process
def test_a_graph_that_is_not_loaded_is_told_of_in_a_sentence(table, made, tmp_path, monkeypatch):
    folder = shutil.copytree(made(table, "onnx", "int8"), tmp_path / "it")
    graph = onnx.load(folder / "model.onnx")
    for node in graph.graph.node:
        node.op_type = node.op_type.replace("QMoE", "QMoE2")
    onnx.save(graph, folder / "model.onnx")
    result = subprocess.run([sys.executable, folder / "ask.py", "x=1"], capture_output=True, text=True)
    installed = f"model.onnx cannot be loaded by ONNX Runtime {onnxruntime.__version__}"
    assert result.returncode == 1
    assert result.stderr.startswith(installed)
    assert result.stderr.endswith("; nothing more was answered\n")
    assert "the file as it was written" in result.stderr
    assert result.stderr.count("\n") == 1
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.2")
    with pytest.raises(
        UnsupportedGraph, match=r"ONNX Runtime 1\.9\.2.*1\.31 or newer, pip install -r requirements.txt"
    ):
        Answering(folder)


def test_a_graph_that_cannot_be_loaded_here_is_not_left_behind(table, tmp_path, monkeypatch):
    def session(*_, **__):
        raise RuntimeError("input size 15 not in range")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    with pytest.raises(DeploymentRefused, match=r"ONNX Runtime 1\.24\.4.*1\.31 or newer.*confide\[deploy\]"):
        written(table, tmp_path / "it", "onnx", "int8")
    assert [*tmp_path.iterdir()] == []


def test_what_cannot_be_deployed_is_refused_and_leaves_nothing(table, writer, tmp_path, monkeypatch):
    with pytest.raises(DeploymentRefused, match="--target onnx or triton"):
        written(table, tmp_path / "it", "torch", "int8")
    monkeypatch.setattr(deploying, "find_spec", lambda name: None if name == "onnxscript" else 1)
    with pytest.raises(DeploymentRefused, match=r"it takes onnxscript: pip install 'confide\[deploy\]'"):
        written(table, tmp_path / "it", "onnx")
    monkeypatch.undo()
    monkeypatch.setattr(deploying, "_requirements", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written(table, tmp_path / "it", "torch")
    assert [*tmp_path.iterdir()] == []


def test_a_long_request_is_refused_and_a_long_answer_ends_where_the_model_does(calculator, made):
    answering = Answering(made(calculator, "torch"))
    (long, short) = answering.answer([{"question": "x" * 100}, {"question": "x"}], longest=1000)
    assert long == {"error": "the request has 101 tokens, and the model reads 64 with its answer"}
    (near,) = answering.answer([{"question": "x" * 60}], longest=1000)
    assert len(near["text"]) <= 64
    assert "text" in short


def test_a_hostile_folder_is_refused(table, made, tmp_path):
    folder = shutil.copytree(made(table, "torch"), tmp_path / "it")
    plain = json.loads((folder / "deployment.json").read_text())
    request = {"shown": {}, "answers": [], "writing": None}
    for change in ({"request": request}, {"cache": [[1]]}, {"more": 1}, {"onnxruntime": "x.y"}, {"onnxruntime": 1.31}):
        (folder / "deployment.json").write_text(json.dumps(plain | change))
        with pytest.raises(InvalidRelease):
            Answering(folder)
    os.truncate(folder / "deployment.json", 2**26 + 1)
    with pytest.raises(InvalidRelease, match="larger than"):
        Answering(folder)


@pytest.mark.parametrize("target", ["onnx", "torch"])
def test_one_bad_request_leaves_those_beside_it_as_they_are(writer, made, target):
    answering = Answering(made(writer, target))
    bad = [{"note": "\ud800"}, {"note": [[[1]]]}, {}, 5, None, {"note": "x" * 300}]
    (alone,) = answering.answer([{"note": "a cough"}], longest=5)
    *wrong, right = answering.answer([*bad, {"note": "a cough"}], longest=5)
    assert right == alone
    assert all([*each] == ["error"] for each in wrong)


def test_text_needs_its_tokenizer_whether_or_not_a_word_ends_it(document, tmp_path):
    backbone = shutil.copytree(document.backbone, tmp_path / "backbone")
    config = json.loads((backbone / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (backbone / "tokenizer_config.json").write_text(json.dumps(config))
    folder = written(replace(document, backbone=backbone), tmp_path / "it", "torch")
    assert "answer" in Answering(folder).answer([{"note": "a cough"}])[0]
    folder = written(replace(document, backbone=backbone), tmp_path / "graph", "onnx")
    assert "tokenizers" in (folder / "requirements.txt").read_text()
