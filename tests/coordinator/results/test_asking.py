import json
import shutil
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from confide.client_node.errors import DataInvalid
from confide.coordinator.cli.main import app
from confide.coordinator.errors import Conflict
from confide.coordinator.results.asking import _ids, ask
from confide.models.adapters.composing import compose
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.adapters.peft_export import export
from confide.models.adapters.prototype import Prototype
from confide.models.backbones.checkpoints import content_hash
from confide.models.backbones.family import BackboneConfig
from confide.models.backbones.loading import backbone_hash, build, load, load_text, save
from confide.models.backbones.moments import take_moments
from confide.models.errors import CombinationRefused, InvalidBackbone
from confide.models.heads.objectives import BinaryLabel, OneClass, SeveralTasks, Task, TextTask
from confide.models.records.documents import DocumentReader
from confide.models.records.fields import FlagField, NumericField, RecordSchema, united

from ...models.adapters.test_combining import CARD, OTHER, backbone_dir
from ...models.adapters.test_composing import exports, pair, places
from ...models.tiny import save_text_backbone

__all__ = ["backbone_dir", "exports", "pair", "places"]


def table(folder, text):
    path = folder / "requests.csv"
    path.write_text(text)
    return path


def test_records_of_any_columns_are_answered_as_the_composition_answers_them(backbone_dir, exports, tmp_path):
    requests = table(tmp_path, "sex,TSH,note\nF,0.5,left alone\nM,,\n,9.0,\n")  # without sick: not set
    found = ask(backbone_dir, exports, requests)
    composition = compose(backbone_dir, exports)
    words = composition.backbone.schema.words()
    lines = [["TSH=b01", "sex=F"], ["TSH=na", "sex=M"], ["TSH=b04", "sex=na"]]
    ids = torch.tensor([[words.index(word) for word in line] for line in lines])
    weights = composition.by_prototypes(ids)
    want = composition.classify(ids, weights)
    assert found.studies == ("thyroid", "loans")
    torch.testing.assert_close(torch.tensor([each.weights for each in found.answers]), weights)
    torch.testing.assert_close(torch.tensor([each.outputs for each in found.answers]), want)
    assert found.meaning == "It gives the logit of label 1."


def test_every_answer_says_what_epsilons_add_up_to(backbone_dir, exports, tmp_path):
    plain = ask(backbone_dir, exports, table(tmp_path, "sex\nF\nM\n")).to_dict()
    for answer in plain["answers"]:
        (spent,) = answer["spent"]
        assert spent == {"unit": "patient", "studies": 2, "epsilon": 2.914 + 1.5, "delta": 1e-5 + 1e-6}
        assert sum(answer["weights"].values()) + answer["backbone"] == pytest.approx(1)
    json.dumps(plain, allow_nan=False)


def test_what_is_answered_does_not_depend_on_who_asks_beside(backbone_dir, exports, tmp_path):
    rows = ["F,0.5", "M,", "F,9.0", ",2.5"]
    together = ask(backbone_dir, exports, table(tmp_path, "\n".join(["sex,TSH", *rows]) + "\n"))
    for row, answer in zip(rows, together.answers, strict=True):
        (alone,) = ask(backbone_dir, exports, table(tmp_path, f"sex,TSH\n{row}\n")).answers
        assert alone.outputs == pytest.approx(answer.outputs, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("colour\nred\n", Conflict, "none of the backbone's columns, which are TSH, sex, sick"),
        ("sex\n", Conflict, "has 0 requests"),
        ("sex\nX\n", DataInvalid, "line 2, column sex: expected one of 2 values, found text"),
        ("TSH\nmuch\n", DataInvalid, "line 2, column TSH: expected a number, found text"),
    ],
)
def test_a_table_that_holds_no_requests_is_refused(backbone_dir, exports, tmp_path, text, error, words):
    with pytest.raises(error, match=words) as refused:
        ask(backbone_dir, exports, table(tmp_path, text))
    assert "much" not in str(refused.value)


@pytest.fixture(scope="module")
def text_parts(tmp_path_factory):
    """A backbone that reads text, with moments, and two adapters that write."""
    folder = tmp_path_factory.mktemp("text")
    save_text_backbone(folder / "plain")
    take_moments(folder / "plain", ["a fever", "a cough", "two legs", "nothing"], folder / "backbone", reads=(0, 2))
    digest = content_hash(folder / "backbone")
    for number, (name, card) in enumerate((("one", CARD), ("two", OTHER))):
        model = load_text(folder / "backbone").model
        adapted = attach(
            model, AdapterConfig(rank=2, alpha=8.0, targets=("o_proj", "experts", "embed_tokens"), seed="s")
        )
        adapted.load_state(torch.randn(adapted.layout.dim, generator=torch.Generator().manual_seed(number)).numpy())
        prototype = Prototype(100 * torch.randn(16, generator=torch.Generator().manual_seed(number + 9)), 1.0)
        export(adapted, folder / "backbone", folder / name, replace(card, backbone_hash=digest), prototype)
    return folder / "backbone", (folder / "one", folder / "two")


def test_prompts_are_answered_with_text(text_parts, tmp_path):
    backbone, adapters = text_parts
    prompts = ["a cough", "no legs", "a fever"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in prompts))
    found = {}
    for rule, weights in (("prototypes", None), ("arrow", None), ("fixed", None), ("fixed", [1.0, 0.0])):
        both = [
            ask(backbone, adapters, tmp_path / name, rule=rule, weights=weights, longest=9)
            for name in ("prompts.txt", "prompts.jsonl")
        ]
        assert both[0] == both[1]
        found[rule, weights is None] = [each.text for each in both[0].answers]
    assert len({tuple(texts) for texts in found.values()}) > 1
    one = load_text(backbone)
    alone = ask(backbone, adapters[:1], tmp_path / "prompts.txt", rule="fixed", weights=[1.0], longest=9)
    assert [each.text for each in alone.answers] == found["fixed", False]
    assert one.tokenizer.eos_token_id is not None


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", "[1]\n"), ("a.jsonl", "{\n"), ("a.txt", b"\xff\n"), ("a.txt", "")]
)
def test_a_file_without_prompts_is_refused(text_parts, tmp_path, name, text):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Conflict):
        ask(*text_parts, tmp_path / name)


def invoke(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.stdout


def test_the_command_prints_answers_and_what_they_cost(backbone_dir, exports, tmp_path):
    requests = table(tmp_path, "sex,TSH\nF,0.5\nM,\n")
    printed = invoke("adapter", "ask", backbone_dir, *exports, "--requests", requests)
    for words in (
        "thyroid",
        "loans",
        "(backbone)",
        "(answer)",
        "For one patient in all 2 studies, at most epsilon 4.414 at delta",
    ):
        assert words in printed
    plain = json.loads(invoke("adapter", "ask", backbone_dir, *exports, "--requests", requests, "--json"))
    assert len(plain["answers"]) == 2
    fixed = invoke("adapter", "ask", backbone_dir, *exports, "--requests", requests, "--by", "fixed",
                    "--weights", "1,0", "--json")  # fmt: skip
    assert json.loads(fixed)["answers"][0]["weights"] == {"thyroid": 1.0, "loans": 0.0}


def test_options_of_other_rules_are_refused(backbone_dir, exports, tmp_path):
    requests = table(tmp_path, "sex\nF\n")
    for options in (("--weights", "1,2"), ("--by", "arrow", "--floor", "0.1")):
        invoke("adapter", "ask", backbone_dir, *exports, "--requests", requests, *options, code=2)
    with pytest.raises(CombinationRefused):
        ask(backbone_dir, exports, requests, rule="fixed", weights=[1.0])


def test_a_row_is_read_as_a_record_of_the_studies_that_its_cells_belong_to(tmp_path):
    joints = RecordSchema((NumericField("age", (40,)), NumericField("pain", (5,))), (FlagField("swollen"),))
    lungs = RecordSchema((NumericField("age", (40,)), NumericField("flow", (300,))))
    whole = united([joints, lungs])
    model = build(whole, BackboneConfig(hidden=32, experts=4))
    save(model, whole, torch.zeros(64), torch.eye(64), tmp_path / "backbone", [joints, lungs])
    backbone = load(tmp_path / "backbone")
    assert backbone.parts == ({"age", "pain", "swollen"}, {"age", "flow"})
    requests = table(tmp_path, "age,pain,flow,swollen\n50,7,,\n50,,200,\n,,,f\n50,,,\n,,,\n30,1,400,t\n")
    words = whole.words()
    found = [[words[token] for token in ids] for ids in _ids(backbone, requests, "{text}", 64)]
    assert found == [
        ["age=b01", "pain=b01"],
        ["age=b01", "flow=b00"],
        ["age=na", "pain=na"],  # a cell says that the joint is not swollen
        ["age=b01", "flow=na"],  # of both, the study with fewer columns
        ["<eos>"],
        ["age=b00", "flow=b01", "pain=b00", "swollen"],
    ]


def test_a_list_of_columns_that_the_schema_does_not_have_is_refused(backbone_dir, tmp_path):
    shutil.copytree(backbone_dir, tmp_path / "backbone")
    for text in ('[["sex"]]', '[["sex"], ["other"]]', '[["sex"], []]', "{}", '[["sex"], 3]', "["):
        (tmp_path / "backbone" / "parts.json").write_text(text)
        with pytest.raises(InvalidBackbone):
            load(tmp_path / "backbone")


def test_a_column_that_a_table_does_not_have_is_missing(backbone_dir, tmp_path):
    backbone = load(backbone_dir)
    words = backbone.schema.words()
    found = [
        [words[token] for token in _ids(backbone, table(tmp_path, text), "{text}", 64)[0]]
        for text in ("sex\nF\n", "sex,TSH,sick\nF,,\n")
    ]
    assert found[0] == found[1] == ["TSH=na", "sex=F"]


def test_text_is_read_as_the_studies_read_it(text_parts, tmp_path):
    backbone = load_text(text_parts[0])
    template = "<|start|>{note}\n"
    study = DocumentReader.of(template, backbone.tokenizer, 12)
    texts = ["a cough", "ends <|end|> here", "a long letter about nothing"]
    (tmp_path / "requests.txt").write_bytes(b"\xef\xbb\xbf" + "\n\n".join(texts).encode())
    want = [row[row > 0].tolist() for row in study.encode({"note": texts})]
    assert _ids(backbone, tmp_path / "requests.txt", template, 12) == want
    end = backbone.tokenizer.eos_token_id
    assert not any(end in row for row in want)  # a request does not end its own turn
    assert max(map(len, want)) == 12


@pytest.fixture(scope="module")
def written_parts(text_parts, tmp_path_factory):
    """Two adapters whose heads tell of a document and whose text stands behind it."""
    folder, backbone = tmp_path_factory.mktemp("written"), text_parts[0]
    objective = SeveralTasks(
        (Task("ill", BinaryLabel()), Task("stage", OneClass(("a", "b")))), text=TextTask("summary", "\nIn short:")
    )
    for number, (name, card) in enumerate((("one", CARD), ("two", OTHER))):
        loaded = load_text(backbone)
        config = AdapterConfig(rank=2, alpha=8.0, targets=("o_proj",), seed="s")
        adapted = attach(loaded.model, config, loaded.head(objective, (0, 2)))
        adapted.load_state(torch.randn(adapted.layout.dim, generator=torch.Generator().manual_seed(number)).numpy())
        export(adapted, backbone, folder / name, replace(card, backbone_hash=content_hash(backbone)))
    return backbone, (folder / "one", folder / "two")


def test_what_heads_answer_stays_the_same_and_a_text_is_written_behind_it_where_one_is_asked_for(
    written_parts, tmp_path
):
    backbone, adapters = written_parts
    requests = tmp_path / "requests.txt"
    requests.write_text("a cough\nno legs\na fever\n")
    heads, both = (
        ask(backbone, adapters, requests, rule="fixed", template="Note: {text}", longest=7, then=then)
        for then in (None, "\nIn short:")
    )
    assert [each.outputs for each in heads.answers] == [each.outputs for each in both.answers]
    assert {each.text for each in heads.answers} == {None}
    assert "summary" in both.meaning
    assert "In short:" in both.meaning
    composition = compose(backbone, adapters)
    for request, answer in zip(requests.read_text().split("\n"), both.answers, strict=False):
        tokenizer = composition.backbone.tokenizer
        ids = tokenizer(f"Note: {request}\nIn short:", add_special_tokens=False).input_ids
        start = len(ids)
        with composition.answering(composition.fixed(1)) as adapted:
            for _ in range(7):
                logits = adapted.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
                ids.append(int(logits.argmax()))
                if ids[-1] == tokenizer.eos_token_id:
                    break
        assert answer.text == tokenizer.decode(ids[start:], skip_special_tokens=True)
    plain = both.to_dict()["answers"][0]
    assert (plain["answer"], plain["text"]) == ([*both.answers[0].outputs], both.answers[0].text)
    assert "text" not in heads.to_dict()["answers"][0]


def test_the_command_shows_what_heads_say_beside_what_is_written(written_parts, tmp_path):
    backbone, (one, two) = written_parts
    (tmp_path / "requests.txt").write_text("a cough\n")
    words = [*map(str, ("adapter", "ask", backbone, one, two, "--requests", tmp_path / "requests.txt"))]
    found = CliRunner().invoke(app, [*words, "--by", "fixed", "--then", "\nIn short:", "--longest", "3"])
    assert found.exit_code == 0, found.output
    assert "(text)" in found.output
    assert "(answer)" in found.output


def test_a_backbone_of_records_is_not_asked_for_a_text(backbone_dir, exports, tmp_path):
    with pytest.raises(Conflict, match="reads records and writes no text; leave out --then"):
        ask(backbone_dir, exports, table(tmp_path, "sex\nF\n"), then=":")


def test_only_where_prototypes_choose_is_one_said_to_be_lost(backbone_dir, pair, exports, tmp_path):
    card = replace(OTHER, study="lost", backbone_hash=backbone_hash(backbone_dir))
    noise = 40 * torch.randn(16, generator=torch.Generator().manual_seed(3))
    export(pair[1], tmp_path, tmp_path / "lost", card, Prototype(noise, 40.0))
    requests = table(tmp_path, "sex\nF\n")
    found = [
        ask(backbone_dir, [exports[0], tmp_path / "lost"], requests, rule=rule) for rule in ("prototypes", "fixed")
    ]
    assert [each.lost for each in found] == [("lost",), ()]
    assert found[1].answers[0].weights == (0.5, 0.5)
