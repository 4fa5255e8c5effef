import itertools
import json
import queue
import re
import shutil
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast

from confide.kernels.linear import QuantisedLinear, packed_stacks
from confide.models.decoding.forms import Following
from confide.models.errors import (
    BackboneMismatch,
    Busy,
    CombinationRefused,
    FormRefused,
    InvalidPrompt,
    InvalidRelease,
)
from confide.models.heads import pooled
from confide.models.records.text import Requests
from confide.models.serving import rows as rows_module
from confide.models.serving.engine import End, Engine, Order, Token, _chosen, _within
from confide.models.serving.rows import Row, Rows
from confide.models.serving.served import Served, Writing, _ends

from ..adapters.test_combining import backbone_dir
from ..adapters.test_composing import exports, pair, places
from ..tiny import byte_tokenizer

__all__ = ["backbone_dir", "exports", "pair", "places"]  # fixtures
PROMPTS = ("a cough", "the patient has two legs and a fever", "x", "nothing at all", "feels tired", "a fever, again")


def alone(served, name, ids, longest, ends=frozenset()):
    """Greedy decoding of one prompt, all tokens read anew for each word."""
    ids, start, lasting = list(ids), len(ids), served.models[name].weights
    with served.composition.answering(torch.tensor([lasting])) as adapted:
        for _ in range(longest):
            logits = adapted.model(torch.tensor([ids]), use_cache=False).logits[0, -1, : served.requests.words]
            if int(logits.argmax()) in ends:
                break
            ids.append(int(logits.argmax()))
    return ids[start:]


class Heard:
    """What an order was told."""

    def __init__(self):
        self.events, self.ended = [], threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, End):
            self.ended.set()

    @property
    def ids(self):
        assert self.ended.wait(30)
        return [event.id for event in self.events if isinstance(event, Token)]

    @property
    def reason(self):
        assert self.ended.wait(30)
        return self.events[-1].reason


@pytest.fixture
def engine(served):
    found = Engine(served.composition, words=served.requests.words, rows=3, waiting=8)
    yield found
    found.stop()


def order(served, name, text, longest=8, **terms):
    terms = {"ends": frozenset()} | terms
    return Order(ids=served.prompt(text), weights=served.models[name].weights, longest=longest, **terms)


def test_texts_of_several_models_that_begin_and_end_at_any_step_are_those_written_one_by_one(served, other, engine):
    asked = [
        (name, prompt, longest)
        for place, prompt in enumerate(PROMPTS)
        for name, longest in ((("thyroid", "loans", "backbone")[place % 3], 3 + 5 * place),)
    ]
    heard = []
    for name, prompt, longest in asked:
        heard.append(Heard())
        engine.submit(order(served, name, prompt, longest), heard[-1])
    for (name, prompt, longest), found in zip(asked, heard, strict=True):
        assert found.ids == alone(other, name, other.prompt(prompt), longest)
        assert found.reason == "length"
    assert engine.written == sum(longest for _, _, longest in asked)
    assert engine.read == sum(len(other.prompt(prompt)) for prompt in PROMPTS)
    deadline = time.monotonic() + 30  # the last one is told before it leaves
    while engine.load != (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_in_int8_texts_are_those_written_one_by_one_and_heads_say_nearly_the_same(packed, other, parts):
    model = packed.composition.adapted.model
    kinds = {type(stack).__name__ for module in model.modules() for stack in packed_stacks(module)}
    assert kinds == {"Int8Both"}
    assert isinstance(model.lm_head, QuantisedLinear)
    banks = [module for module in model.modules() if hasattr(module, "confide_experts")]
    assert banks
    engine = Engine(packed.composition, words=packed.requests.words, rows=4, waiting=8)
    heard, names = [Heard() for _ in PROMPTS], list(packed.models)
    for place, (prompt, each) in enumerate(zip(PROMPTS, heard, strict=True)):
        engine.submit(order(packed, names[place % 3], prompt, 10), each)
    found = [each.ids for each in heard]
    engine.stop()
    again = Served(*parts, frozen="int8")
    want = [alone(again, names[place % 3], again.prompt(prompt), 10) for place, prompt in enumerate(PROMPTS)]
    assert found == want
    documents = packed.documents(["a fever", "a cough"], "{text}")
    outputs = [each.classify(each.models["loans"], documents) for each in (packed, other)]
    np.testing.assert_allclose(*outputs, rtol=0.05, atol=0.05 * np.abs(outputs[1]).max())
    assert not np.array_equal(*outputs)


def test_prefixes_are_told_as_they_stand_as_a_system_s_turn_and_before_a_user_s(served, monkeypatch):
    text = "Answer as a nurse would, in one short line."
    found = served.beginnings([text])
    asked = served.requests
    kept = [asked.plain(text), asked.beginning(text), asked.beginning(None)]
    assert found == [(model.weights, ids) for model in served.models.values() for ids in kept]
    for ids, roles, texts in (
        (kept[1], ["system", "user"], [text, "my head aches"]),
        (kept[2], ["user"], ["my head aches"]),
    ):
        whole = asked.chat(roles, texts)
        assert whole[: len(ids)] == ids
        assert len(ids) > 5
        assert asked.plain("my head aches")[0] == whole[len(ids)]
    assert len(kept[1]) > len(kept[0])
    bare = Requests(byte_tokenizer(), 100)
    assert bare.beginning(None) == bare.beginning("Be kind") == []
    monkeypatch.setattr(served, "longest", 8)
    with pytest.raises(InvalidPrompt, match="and the model reads 8"):
        served.beginnings([text])


@pytest.mark.process
def test_a_text_has_the_form_that_was_asked_for_and_ends_with_it(served, other, engine):
    form = served.forms.regex("[ab]{3}(cd)?")
    heard = [Heard() for _ in range(4)]
    for place, each in enumerate(heard[:2]):  # greedily and at random, beside one of no form
        engine.submit(order(served, "thyroid", "a cough", 40, temperature=place, seed=3, form=form), each)
    engine.submit(order(served, "loans", "a cough", 6), heard[2])
    engine.submit(order(served, "thyroid", "a cough", 2, form=form), heard[3])
    for each in heard[:2]:
        assert each.reason in ("stop", "length")
        assert re.fullmatch("[ab]{3}(cd)?", served.text(each.ids))
    assert heard[2].ids == alone(other, "loans", other.prompt("a cough"), 6)
    assert (heard[3].reason, len(heard[3].ids)) == ("length", 2)
    told = heard[0].events[0]  # its probability is the model's own, of all words
    with other.composition.answering(torch.tensor([other.models["thyroid"].weights])) as adapted:
        logits = adapted.model(torch.tensor([other.prompt("a cough")]), use_cache=False).logits[0, -1]
    assert told.logprob == pytest.approx(float(logits[: other.requests.words].log_softmax(0)[told.id]), abs=1e-4)


@pytest.mark.process
def test_a_form_that_may_end_is_ended_by_the_word_that_ends_a_text(served, engine):
    end = int(served.tokenizer.eos_token_id)
    form, heard = served.forms.regex("a*"), Heard()
    engine.submit(
        order(served, "thyroid", "a cough", 30, temperature=2.0, seed=1, ends=frozenset({end, 10**6}), form=form), heard
    )
    assert heard.reason == "stop"
    assert set(served.text(heard.ids)) <= {"a"}
    follow = served.forms.regex("ab").begin()
    logprobs = torch.zeros(served.requests.words, dtype=torch.float64)
    assert not bool(_within(logprobs, follow, {end})[end].isfinite())


@pytest.mark.process
def test_a_form_that_cannot_be_followed_ends_its_own_text_alone(served, other, engine, monkeypatch):
    form, heard = served.forms.regex("[ab]{9}"), [Heard(), Heard()]
    allowed, count = Following.allowed, itertools.count()

    def failing(self):
        if next(count) == 3:
            raise FormRefused("of a form")
        return allowed(self)

    monkeypatch.setattr(Following, "allowed", failing)
    engine.submit(order(served, "thyroid", "a cough", 40, form=form), heard[0])
    engine.submit(order(served, "loans", "a cough", 6), heard[1])
    assert (heard[0].reason, len(heard[0].ids)) == ("failed", 3)
    assert heard[1].ids == alone(other, "loans", other.prompt("a cough"), 6)


def test_models_differ(other):
    texts = {tuple(alone(other, name, other.prompt("a cough"), 12)) for name in other.models}
    assert len(texts) == 3


def test_a_word_that_ends_a_text_is_not_written(served, other, engine):
    whole = alone(other, "thyroid", served.prompt("a cough"), 12)
    end = whole[4]
    heard = Heard()
    engine.submit(order(served, "thyroid", "a cough", 12, ends=frozenset({end})), heard)
    assert heard.ids == whole[: whole.index(end)]
    assert heard.reason == "stop"


def test_probabilities_are_the_model_s_own(served, other, engine):
    heard = Heard()
    engine.submit(order(served, "loans", "a cough", 3, logprobs=4, temperature=1.7, seed=5), heard)
    ids = served.prompt("a cough")
    for event, token in zip(heard.events, heard.ids, strict=False):
        with other.composition.answering(torch.tensor([other.models["loans"].weights])) as adapted:
            logits = adapted.model(torch.tensor([ids]), use_cache=False).logits[0, -1, : served.requests.words]
        want = logits.double().log_softmax(0)
        assert event.logprob == pytest.approx(float(want[token]), abs=1e-4)
        top = want.topk(4)
        assert [word for word, _ in event.likeliest] == top.indices.tolist()
        assert [value for _, value in event.likeliest] == pytest.approx(top.values.tolist(), abs=1e-4)
        ids = [*ids, token]


def test_what_is_drawn_follows_from_the_seed_and_not_from_who_asks_beside(served, other, engine):
    def drawn(seed, beside=(), **terms):
        heard = [Heard() for _ in (None, *beside)]
        engine.submit(order(served, "thyroid", "a cough", 12, temperature=1.5, seed=seed, **terms), heard[0])
        for other, prompt in zip(heard[1:], beside, strict=True):
            engine.submit(order(served, "loans", prompt, 9, temperature=1.5), other)
        return heard[0].ids

    assert drawn(1) == drawn(1, beside=PROMPTS[:2])
    assert drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)
    assert drawn(1, top_p=1e-9) == alone(other, "thyroid", served.prompt("a cough"), 12)  # the likeliest word alone


def test_draws_have_the_chances_that_temperature_and_top_p_give_them(served):
    logprobs = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    rng = np.random.default_rng(0)
    terms = {"ids": (1,), "weights": (1.0,), "longest": 1, "ends": frozenset()}
    for temperature, top_p, kept in ((1.0, 1.0, 4), (2.0, 1.0, 4), (1.0, 0.79, 2), (1.0, 0.81, 3)):
        asked = Order(**terms, temperature=temperature, top_p=top_p)
        counts = np.bincount([_chosen(logprobs, asked, rng) for _ in range(4000)], minlength=4)
        chances = np.exp(logprobs.numpy() / temperature)
        chances[kept:] = 0
        assert not counts[kept:].any()
        np.testing.assert_allclose(counts / 4000, chances / chances.sum(), atol=0.03)


def test_a_word_without_a_chance_is_never_drawn():
    class Fixed:
        def __init__(self, number):
            self.number = number

        def random(self):
            return self.number

    chances = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0, 0.0], dtype=torch.float64)
    asked = Order(ids=(1,), weights=(1.0,), longest=1, ends=frozenset(), temperature=1.0)
    for number, want in ((0.0, 1), (0.24, 1), (0.26, 3), (0.5, 3), (1 - 2**-53, 3), (1.0, 3)):
        assert _chosen(chances.log(), asked, Fixed(number)) == want
        assert _chosen(chances.log(), replace(asked, top_p=0.9), Fixed(number)) in (1, 3)
    even = torch.full((5000,), -np.log(5000), dtype=torch.float64)  # the likeliest 1,024 do not reach it
    found = {_chosen(even, replace(asked, top_p=0.9), np.random.default_rng(seed)) for seed in range(4000)}
    assert 2000 < len(found) <= 4500


def test_a_prompt_that_fails_leaves_those_that_are_read_beside_it_alone(served, other, engine):
    kept = Heard()
    engine.submit(order(served, "thyroid", "a cough", 400), kept)  # so that the others begin in one turn
    heard = [Heard() for _ in range(2)]
    bad = replace(order(served, "thyroid", "a cough"), ids=[5, 10**6, 7])
    fine = replace(order(served, "loans", "a cough", 5), ids=[5, 6, 7])
    with engine._changed:
        for each, asked in zip(heard, (bad, fine), strict=True):
            engine.submit(asked, each)
    assert heard[0].reason == "failed"
    assert heard[1].ids == alone(other, "loans", [5, 6, 7], 5)


def test_a_prompt_that_fails_as_another_is_cancelled_is_told_its_end(served, other, engine, monkeypatch):
    cut, tickets = Engine._cut_cancelled, []

    def cancelling(self):
        if tickets:
            tickets[0].cancel()
        cut(self)

    monkeypatch.setattr(Engine, "_cut_cancelled", cancelling)
    monkeypatch.setattr(Rows, "_read_portion", lambda self, prompt: 1 / 0)
    heard = [Heard(), Heard()]
    with engine._changed:
        tickets += [engine.submit(order(served, "thyroid", "a cough " * 9), each) for each in heard]
    assert [each.reason for each in heard] == ["cancelled", "failed"]


def test_more_than_may_wait_are_refused_and_those_that_are_cancelled_make_room(served, engine):
    heard = [Heard() for _ in range(3)]
    running = [engine.submit(order(served, "thyroid", "x", 10_000), each) for each in heard]
    while engine.load[0] < 3:
        time.sleep(0.01)
    waiting = [Heard() for _ in range(8)]
    tickets = [engine.submit(order(served, "loans", "x", 2), each) for each in waiting]
    with pytest.raises(Busy, match="8 requests wait already"):
        engine.submit(order(served, "loans", "x", 2), Heard())
    tickets[0].cancel()
    for ticket in running:
        ticket.cancel()
    assert [each.reason for each in heard] == ["cancelled"] * 3
    assert [each.reason for each in waiting] == ["cancelled", *["length"] * 7]
    assert waiting[0].ids == []


def test_what_fails_ends_those_it_was_computed_with_and_no_others(served, engine, monkeypatch):
    read = Rows._read_portion

    def failing(self, prompt):
        if list(prompt.ids) == served.prompt("x"):
            raise RuntimeError("of a prompt")
        return read(self, prompt)

    monkeypatch.setattr(Rows, "_read_portion", failing)
    monkeypatch.setattr(Rows, "_alike", lambda self: self._prompts[:1])
    heard = [Heard(), Heard()]
    engine.submit(order(served, "thyroid", "x"), heard[0])
    engine.submit(order(served, "thyroid", "a cough"), heard[1])
    assert [each.reason for each in heard] == ["failed", "length"]
    monkeypatch.setattr(Rows, "step", lambda self: (_ for _ in ()).throw(RuntimeError))
    broken = Heard()
    engine.submit(order(served, "thyroid", "a cough"), broken)
    assert broken.reason == "failed"
    monkeypatch.undo()
    again = Heard()
    engine.submit(order(served, "thyroid", "a cough"), again)
    assert again.ids == heard[1].ids


def test_a_question_is_answered_between_two_steps_and_its_error_is_its_own(served, other, engine):
    writing = Heard()
    ticket = engine.submit(order(served, "thyroid", "a cough", 10_000), writing)
    model, texts = served.models["loans"], ["a fever", "a cough", "a night"]
    documents = served.documents(texts, "Note: {text}")
    found = engine.call(lambda: served.classify(model, documents)).result(30)
    with pytest.raises(CombinationRefused, match="thyroid has no head"):
        engine.call(lambda: served.classify(served.models["thyroid"], documents)).result(30)
    ticket.cancel()
    assert writing.reason == "cancelled"
    for row, document in zip(found, documents, strict=True):
        with other.composition.answering(torch.tensor([model.weights])) as adapted:
            want = model.head(pooled(adapted.model, torch.tensor([document]), model.head.reads))[0]
        assert row == pytest.approx(want.tolist(), abs=1e-5)


def test_an_engine_that_ends_tells_everybody(served):
    engine = Engine(served.composition, words=served.requests.words, rows=1, waiting=4)
    heard = [Heard(), Heard()]
    for each in heard:
        engine.submit(order(served, "thyroid", "x", 10_000), each)
    held = threading.Event()
    engine.stop()
    assert [each.reason for each in heard] == ["cancelled"] * 2
    with pytest.raises(Busy, match="is ending"):
        engine.submit(order(served, "thyroid", "x"), Heard())
    with pytest.raises(Busy, match="is ending"):
        engine.call(held.set)
    assert not engine.is_alive


@pytest.mark.parametrize("shared", [True, False])
def test_rows_that_share_a_cache_write_what_rows_of_their_own_write(other, monkeypatch, shared):
    monkeypatch.setattr("confide.models.serving.rows._can_share", lambda cache: shared)
    rows, written, waiting = Rows(other.composition), {}, queue.SimpleQueue()
    names = list(other.models)
    for place, prompt in enumerate(PROMPTS):
        waiting.put((place, names[place % 3], prompt, 4 + 7 * (place % 4)))
    of_row = {}
    while len(rows) or not waiting.empty():
        while len(rows) < 4 and not waiting.empty():
            place, name, prompt, longest = waiting.get()
            row = Row(other.models[name].weights)
            rows.begin(row, other.prompt(prompt))
            of_row[id(row)] = place, longest, row
            written[place] = []
        for go_on in (rows.read, rows.step):
            for row, logits in go_on():
                row.last = int(logits.argmax())
                written[of_row[id(row)][0]].append(row.last)
        rows.end([row for place, longest, row in of_row.values() if len(written[place]) == longest])
        of_row = {key: each for key, each in of_row.items() if len(written[each[0]]) < each[1]}
    assert len(rows._groups) == 0
    for place, prompt in enumerate(PROMPTS):
        assert written[place] == alone(other, names[place % 3], other.prompt(prompt), 4 + 7 * (place % 4))


def test_what_is_served_says_whose_it_is_and_what_it_may_tell(served):
    assert [*served.models] == ["backbone", "thyroid", "loans"]
    thyroid, loans = served.models["thyroid"], served.models["loans"]
    assert served.models["backbone"].spent == ()
    assert (thyroid.spent[0].epsilon, thyroid.spent[0].unit) == (2.914, "patient")
    assert (thyroid.head, loans.head is not None) == (None, True)
    assert loans.meaning.startswith("It gives a logit for each class")
    assert served.longest == served.composition.backbone.model.config.max_position_embeddings


def renamed(folder, adapter, study):
    """A copy of an adapter, of a study of another name."""
    copy = folder / f"{adapter.name}-{len(list(folder.iterdir()))}"
    shutil.copytree(adapter, copy)
    facts = json.loads((copy / "confide.json").read_text())
    facts["sources"][0]["study"] = study
    (copy / "confide.json").write_text(json.dumps(facts))
    return copy


@pytest.mark.parametrize(
    ("studies", "names"),
    [
        (["a", "b", "a"], ["a-1", "b", "a-2"]),
        (["a", "a", "a-1"], ["a-2", "a-3", "a-1"]),
        (["a-1", "a", "a"], ["a-1", "a-2", "a-3"]),
        (["backbone", "backbone-1"], ["backbone-2", "backbone-1"]),
        (["backbone", "backbone"], ["backbone-1", "backbone-2"]),
    ],
)
def test_every_adapter_has_a_name_of_its_own(parts, tmp_path, studies, names):
    backbone, (one, _) = parts
    served = Served(backbone, [renamed(tmp_path, one, study) for study in studies])
    assert [*served.models] == ["backbone", *names]
    for place, name in enumerate(names):
        assert served.models[name].weights.index(1.0) == place


def test_a_backbone_of_records_is_not_served(backbone_dir, exports):
    with pytest.raises(BackboneMismatch, match="coordinator adapter ask"):
        Served(backbone_dir, exports)


def test_a_folder_without_a_card_is_not_served(parts, tmp_path):
    backbone, (one, _) = parts
    shutil.copytree(one, tmp_path / "bare")
    (tmp_path / "bare" / "confide.json").unlink()
    with pytest.raises(InvalidRelease, match=r"confide\.json cannot be read"):
        Served(backbone, [tmp_path / "bare"])


def test_a_text_that_grows_is_that_of_all_its_tokens_and_no_letter_comes_in_parts(served):
    rng = np.random.default_rng(0)
    for text in ("A fever of 39 °C – “high”, 发烧 🤒 a a  a", "é" * 30, "", "\ufffd\ufffd"):
        ids, writing, told = served.requests.plain(text), Writing(served), ""
        for token in ids:
            piece = writing.next(token)
            told += piece
            assert text.startswith(told)
        assert told + writing.rest() == text
    for _ in range(50):  # bytes that are no letters, and control words among them
        ids, writing = rng.integers(0, served.requests.words, 40).tolist(), Writing(served)
        assert "".join([*map(writing.next, ids), writing.rest()]) == served.text(ids)


def test_whoever_fails_to_listen_is_written_for_no_more_and_hinders_nobody(served, other, engine):
    def deaf(event):
        raise ValueError

    heard = Heard()
    engine.submit(order(served, "thyroid", "x", 10_000), deaf)
    engine.submit(order(served, "loans", "a cough", 6), heard)
    assert heard.ids == alone(other, "loans", other.prompt("a cough"), 6)
    deadline = time.monotonic() + 30
    while engine.load != (0, 0):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_blank_at_the_beginning_of_an_answer_stays(served, monkeypatch):
    core = Tokenizer(
        Unigram([("<unk>", 0.0), ("▁a", -1.0), ("▁cough", -1.0), ("▁and", -1.0), ("▁fever", -1.0)], unk_id=0)
    )
    core.pre_tokenizer, core.decoder = Metaspace(), MetaspaceDecoder()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<unk>")
    monkeypatch.setattr(served, "tokenizer", tokenizer)
    monkeypatch.setattr(served, "requests", Requests(tokenizer, 64))
    writing = Writing(served, [1, 2])
    assert [writing.next(3), writing.next(4), writing.rest()] == [" and", " fever", ""]
    assert served.word(3) == " and"


def test_the_checkpoint_s_own_words_for_writing_end_a_text_too():
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7, 9]))
    assert _ends(SimpleNamespace(eos_token_id=2), model) == {2, 7, 9}
    assert _ends(SimpleNamespace(eos_token_id=None), SimpleNamespace()) == frozenset()


def test_free_rows_are_room_and_who_is_gone_takes_none(served):
    engine = Engine(served.composition, words=served.requests.words, rows=3, waiting=1)
    heard = [Heard() for _ in range(4)]
    tickets = [engine.submit(order(served, "thyroid", "x", 10_000), each) for each in heard]
    while engine.load[0] < 3:
        time.sleep(0.01)
    with pytest.raises(Busy):
        engine.submit(order(served, "thyroid", "x"), Heard())
    tickets[3].cancel()  # of the one that waits
    last = Heard()
    engine.submit(order(served, "loans", "x", 2), last)
    assert heard[3].reason == "cancelled"
    tickets[0].cancel()
    assert last.reason == "length"
    engine.stop()


@pytest.mark.parametrize("place", ["_write", "_leave"])
def test_no_error_ends_the_engine(served, other, engine, monkeypatch, place):
    with monkeypatch.context() as patch:
        patch.setattr(Engine, place, lambda self, *_: 1 / 0)
        for _ in range(3):
            heard = Heard()
            engine.submit(order(served, "thyroid", "x", 1), heard)
            assert heard.reason in ("failed", "length")
    assert engine.is_alive
    heard = Heard()
    engine.submit(order(served, "thyroid", "a cough", 6), heard)
    assert heard.ids == alone(other, "thyroid", other.prompt("a cough"), 6)


def test_rows_of_very_unlike_lengths_do_not_widen_each_other(other, monkeypatch):
    monkeypatch.setattr(rows_module, "_NARROW", 8)
    rows, weights = Rows(other.composition), other.models["thyroid"].weights
    texts = [[5] * 100, [6, 7], [8] * 8, [9] * 30]
    found = []
    for ids in texts:
        row = Row(weights)
        rows.begin(row, ids)
        ((_, logits),) = rows.read()
        row.last = int(logits.argmax())
        found.append((row, [row.last]))
    assert [len(group.rows) for group in rows._groups] == [2, 2]
    for _ in range(5):
        for row, logits in rows.step():
            row.last = int(logits.argmax())
            next(written for each, written in found if each is row).append(row.last)
    for ids, (_, written) in zip(texts, found, strict=True):
        assert written == alone(other, "thyroid", ids, 6)


@pytest.mark.parametrize("prefix", [0, 20])
def test_prompts_that_are_read_together_and_in_portions_are_those_read_one_by_one(other, monkeypatch, prefix):
    monkeypatch.setattr(rows_module, "PORTION", 64)
    rng, names, rows, passes = np.random.default_rng(0), list(other.models), Rows(other.composition), []
    lasting = [other.models[name].weights for name in names]
    start = rng.integers(5, 60, prefix).tolist()
    for weights in lasting:
        rows.keep(weights, [*start, 3, 3])  # of which all share the beginning
    taken = Rows._pass

    def counted(self, some, ids_RT, *rest):
        passes.append(tuple(ids_RT.shape))
        return taken(self, some, ids_RT, *rest)

    monkeypatch.setattr(Rows, "_pass", counted)
    sizes = [1, 200, 14, 3, 9, 20, 13, 130, 12, 1]
    texts = [[*start, *rng.integers(5, 60, size).tolist()] for size in sizes]
    of_row, written = {}, [[] for _ in texts]
    for place, ids in enumerate(texts):
        row = Row(lasting[place % 3])
        assert rows.begin(row, ids) == (prefix if prefix else 0)
        of_row[id(row)] = place, row
    for _ in range(30):
        for go_on in (rows.read, rows.step):
            found = go_on()
            for row, logits in found:
                row.last = int(logits.argmax())
                written[of_row[id(row)][0]].append(row.last)
    for place, ids in enumerate(texts):
        assert written[place][:12] == alone(other, names[place % 3], ids, 12)
    reading = [shape for shape in passes if shape[1] > 1]
    assert max(rows * tokens for rows, tokens in reading) <= (64 if prefix else 200)  # the first is read whole
    assert any(rows > 2 for rows, _ in reading)
    rows.end([row for _, row in of_row.values()])
    assert not len(rows)
    assert [len(each.ids) for each in rows._prefixes] == [22] * 3 if prefix else not rows._prefixes


def test_a_prompt_is_its_prefix_alone_and_a_text_can_end_while_it_is_read(other, monkeypatch):
    monkeypatch.setattr(rows_module, "PORTION", 16)
    rows, weights = Rows(other.composition), other.models["loans"].weights
    start = [*range(5, 25)]
    rows.keep(weights, start)
    rows.keep(weights, start[:5])  # is not worth it
    assert len(rows._prefixes) == 1
    same, other_model, late = Row(weights), Row(other.models["thyroid"].weights), Row(weights)
    assert rows.begin(same, start) == 19  # the last word must be read
    assert rows.begin(other_model, start) == 0
    rows.begin(late, [9] * 100)
    assert rows.due == [same]
    ((_, logits),) = rows.read()
    with other.composition.answering(torch.tensor([weights])) as adapted:
        want = adapted.model(torch.tensor([start]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(logits, want, rtol=1e-4, atol=1e-4)
    assert rows.read() == []  # a portion
    rows.end([other_model])
    rows.read()
    rows.end([late])
    assert rows.due == []
    assert len(rows) == 1
    kept = [each.clone() for layer in rows._prefixes[0].cache.layers for each in (layer.keys, layer.values)]
    for _ in range(3):
        rows.step()
    still = [each for layer in rows._prefixes[0].cache.layers for each in (layer.keys, layer.values)]
    assert all(torch.equal(*pair) for pair in zip(kept, still, strict=True))


def test_a_temperature_that_is_all_but_zero_takes_the_likeliest_word(served, other, engine):
    heard = Heard()
    engine.submit(order(served, "thyroid", "a cough", 6, temperature=1e-320), heard)
    assert heard.ids == alone(other, "thyroid", other.prompt("a cough"), 6)
