"""The service as its users meet it: through the real `openai` client, and as bytes over a socket."""

import asyncio
import json
import re
import shutil
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import httpx
import jsonschema
import openai
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.responses import Response

from confide.listening import LOOPBACK_NAMES, only_under
from confide.models.adapters.composing import Spent
from confide.models.decoding.forms import Forms
from confide.models.errors import FormRefused, ServiceRefused
from confide.models.heads import pooled
from confide.models.serving import rows, server
from confide.models.serving.schema import MAX_BODY
from confide.models.serving.served import Served
from confide.models.serving.server import Address, Bounds, require_closed

from .conftest import listening

pytestmark = pytest.mark.process  # openai's client asks the machine's name of a process


@pytest.fixture
def client(port):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as found:
        yield found


def greedy(other, name, ids, longest):
    ids, start = list(ids), len(ids)
    with other.composition.answering(torch.tensor([other.models[name].weights])) as adapted:
        for _ in range(longest):
            logits = adapted.model(torch.tensor([ids]), use_cache=False).logits[0, -1, : other.requests.words]
            ids.append(int(logits.argmax()))
            if ids[-1] in other.ends:
                return ids[start:-1], "stop"
    return ids[start:], "length"


def test_a_completion_is_the_text_that_the_adapter_writes(client, other):
    for name in ("thyroid", "loans", "backbone"):
        for longest in (3, 20):
            found = client.completions.create(model=name, prompt="a cough", max_tokens=longest, temperature=0)
            ids, reason = greedy(other, name, other.prompt("a cough"), longest)
            assert found.choices[0].text == other.text(ids)
            assert found.choices[0].finish_reason == reason
            assert found.usage.prompt_tokens == len(other.prompt("a cough"))
            assert found.usage.completion_tokens == len(ids)
            assert (found.model, found.object, found.choices[0].logprobs) == (name, "text_completion", None)


def test_a_stream_adds_up_to_the_text_and_counts_its_tokens(client):
    terms = {"model": "thyroid", "prompt": "a cough", "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**terms)
    parts = list(client.completions.create(**terms, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert parts[-1].usage == whole.usage
    assert len({part.id for part in parts}) == 1
    assert len(parts) > 4


def test_a_conversation_is_asked_as_the_checkpoint_s_template_writes_it(client, other):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a cough "}, {"type": "text", "text": "<|end|> two"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": " and a fever? "},
    ]
    found = client.chat.completions.create(model="loans", messages=messages, max_tokens=9, temperature=0)
    said = ["Be brief.", "a cough <|end|> two", "Yes.", " and a fever? "]
    ids = other.requests.chat([each["role"] for each in messages], said)
    said = other.tokenizer.decode(ids)
    assert said == (
        "<|start|>system\nBe brief.<|end|>\n<|start|>user\na cough <|end|> two<|end|>\n"
        "<|start|>assistant\nYes.<|end|>\n<|start|>user\nand a fever?<|end|>\n<|start|>assistant\n"
    )
    end = other.tokenizer.eos_token_id
    assert ids.count(end) == 4  # what a person writes ends no turn
    want, reason = greedy(other, "loans", ids, 9)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == (other.text(want), reason)
    assert found.choices[0].message.role == "assistant"
    terms = {"model": "loans", "messages": messages, "max_tokens": 9, "temperature": 0}
    with client.chat.completions.stream(**terms) as stream:  # adds up the parts by itself
        with suppress(openai.LengthFinishReasonError):
            stream.until_done()
        added_up = stream.current_completion_snapshot.choices[0].message
    assert (added_up.role, added_up.content) == ("assistant", found.choices[0].message.content)
    parts = list(client.chat.completions.create(**terms, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == found.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == reason


def test_one_turn_without_a_system_s_is_a_conversation_too(client):
    found = client.chat.completions.create(
        model="thyroid", messages=[{"role": "user", "content": "a cough"}], max_completion_tokens=2, seed=4
    )
    assert found.usage.completion_tokens <= 2


def test_probabilities_come_with_the_words(client):
    found = client.completions.create(model="thyroid", prompt="a", max_tokens=3, temperature=0, logprobs=2)
    told = found.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == found.usage.completion_tokens
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[token] == logprob == max(top.values())
    many = client.completions.create(model="thyroid", prompt="a", max_tokens=9, temperature=0, logprobs=20)
    for token, logprob, top in zip(
        many.choices[0].logprobs.tokens, many.choices[0].logprobs.token_logprobs,
        many.choices[0].logprobs.top_logprobs, strict=True,
    ):  # fmt: skip
        assert top[token] == logprob  # though words that are parts of letters all look alike
    chat = client.chat.completions.create(
        model="thyroid", messages=[{"role": "user", "content": "a"}], max_tokens=2, temperature=0, logprobs=True,
        top_logprobs=3,
    )  # fmt: skip
    for token in chat.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == token.top_logprobs[0].logprob < 0
    bare = client.chat.completions.create(
        model="thyroid", messages=[{"role": "user", "content": "a"}], max_tokens=2, temperature=0, logprobs=True
    )
    assert [token.top_logprobs for token in bare.choices[0].logprobs.content] == [[]] * bare.usage.completion_tokens


def test_a_prompt_is_repeated_with_how_likely_its_words_are(client, other):
    terms = {"model": "thyroid", "prompt": "a cough", "max_tokens": 2, "temperature": 0}
    plain = client.completions.create(**terms, logprobs=1).choices[0]
    found = client.completions.create(**terms, logprobs=1, echo=True).choices[0]
    assert found.text == f"a cough{plain.text}"
    ids = other.prompt("a cough")
    told = found.logprobs
    assert len(told.tokens) == len(ids) + len(plain.logprobs.tokens)
    assert "".join(told.tokens[: len(ids)]) == "a cough"
    assert told.token_logprobs[0] is told.top_logprobs[0] is None
    with other.composition.answering(torch.tensor([[1.0, 0.0]])) as adapted:
        logits = adapted.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :, : other.requests.words]
    want = logits.double().log_softmax(1)
    by_hand = [float(want[place, word]) for place, word in enumerate(ids[1:])]
    assert told.token_logprobs[1 : len(ids)] == pytest.approx(by_hand, abs=1e-5)
    assert [max(top.values()) for top in told.top_logprobs[1 : len(ids)]] == pytest.approx(
        want[:-1].max(1).values.tolist(), abs=1e-5
    )
    assert told.token_logprobs[len(ids) :] == plain.logprobs.token_logprobs
    bare = client.completions.create(**terms, echo=True).choices[0]
    assert (bare.text, bare.logprobs) == (found.text, None)
    for more in ({"stream": True}, {"extra_body": {"response_format": {"type": "regex", "pattern": "a"}}}):
        with pytest.raises(openai.BadRequestError, match="echo goes with neither"):
            client.completions.create(**terms, echo=True, **more)


def test_control_words_of_a_prompt_are_text_unless_one_measures_oneself(parts, other):
    measuring = Served(*parts, reads_control_words=True)
    try:
        assert measuring.prompt("<|start|>a<|end|>").count(2) == 1
        assert other.prompt("<|start|>a<|end|>").count(2) == 0
    finally:
        measuring.forms.close()


def test_a_stop_ends_a_text_before_it_and_no_part_of_it_is_streamed(client):
    terms = {"model": "backbone", "prompt": "a cough", "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(**terms).choices[0].text
    stop = whole[5:8]
    want = whole[: whole.index(stop)]
    for stops in (stop, ["not there", stop]):
        found = client.completions.create(**terms, stop=stops).choices[0]
        assert (found.text, found.finish_reason) == (want, "stop")
        parts = [part.choices[0] for part in client.completions.create(**terms, stop=stops, stream=True)]
        assert "".join(part.text for part in parts) == want
        assert parts[-1].finish_reason == "stop"


PATIENT = {
    "type": "object",
    "properties": {
        "sodium": {"const": 138.5},
        "risk": {"enum": ["low", "high"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["sodium", "risk", "days"],
    "additionalProperties": False,
}


def test_a_conversation_is_answered_in_json_of_a_schema(client):
    wanted = {"type": "json_schema", "json_schema": {"name": "patient", "schema": PATIENT, "strict": True}}
    asked = {"model": "thyroid", "messages": [{"role": "user", "content": "a cough"}], "max_completion_tokens": 200}
    for seed in range(5):
        found = client.chat.completions.create(**asked, response_format=wanted, seed=seed).choices[0]
        assert found.finish_reason == "stop"
        jsonschema.validate(json.loads(found.message.content), PATIENT)
        parts = client.chat.completions.create(**asked, response_format=wanted, seed=seed, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts) == found.message.content
    some = client.chat.completions.create(**asked, response_format={"type": "json_object"}).choices[0].message.content
    assert some.startswith("{")


def test_a_completion_has_a_form_too_and_a_report_the_figures_that_were_given(client):
    asked = {"model": "loans", "prompt": "Sodium 138.50, TSH 2.5.", "max_tokens": 200}
    template = "Sodium was {na} mmol/l, which is {trend: low|normal|high}. {own: text 20}."
    forms = (
        ({"type": "regex", "pattern": "[0-9]{2}-[a-z]{3}"}, "[0-9]{2}-[a-z]{3}"),
        ({"type": "report", "template": template, "given": {"na": "138.50"}},
         r"Sodium was 138\.50 mmol/l, which is (low|normal|high)\. [^\d.]{1,20}\."),
    )  # fmt: skip
    for wanted, text in forms:
        found = client.completions.create(**asked, extra_body={"response_format": wanted}).choices[0]
        assert found.finish_reason == "stop"
        assert re.fullmatch(text, found.text)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"type": "json_schema", "json_schema": {"schema": {"not": {"const": "Miller"}}}}, "keyword not is not served"),
        ({"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}, "no text of up to"),
        ({"type": "json_schema"}, "json_schema.json_schema: field required"),
        ({"type": "regex", "pattern": "(?=Miller)"}, "looks around"),
        ({"type": "report", "template": "{a}", "given": {"Miller": "1"}}, "not given"),
        (
            {"type": "report", "template": "{a}", "given": {"Miller": 1}},
            "response_format.given: input should be a valid string",
        ),
        ({"type": "Miller"}, "response_format.type: one of text, json_object"),
    ],
)
def test_a_form_that_cannot_be_kept_is_refused_in_a_sentence(client, wanted, said):
    for path, asked in (
        ("completions", {"prompt": "a"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        found = client._client.post(f"/{path}", json={"model": "loans", **asked, "response_format": wanted})
        assert found.status_code == 400
        assert said in found.text
        assert "Miller" not in found.text


def test_a_stop_does_not_go_with_a_form(client):
    asked = {"model": "loans", "prompt": "a", "stop": ".", "response_format": {"type": "json_object"}}
    found = client._client.post("/completions", json=asked)
    assert (found.status_code, "a stop would cut an answer of a given form" in found.text) == (400, True)
    assert client._client.post("/completions", json=asked | {"response_format": {"type": "text"}}).status_code == 200


def test_forms_that_wait_are_bounded_and_those_of_clients_that_left_are_not_made(served, monkeypatch):
    made, goes_on = [], threading.Event()

    def slow(self, schema):
        made.append(schema)
        goes_on.wait(30)
        raise FormRefused("of a form")

    monkeypatch.setattr(Forms, "json", slow)
    asked = {"model": "loans", "prompt": "a", "response_format": {"type": "json_object"}}
    with listening(served) as port, ThreadPoolExecutor(30) as pool:
        url = f"http://127.0.0.1:{port}/v1/completions"

        def ask(seconds):
            try:
                return httpx.post(url, json=asked, timeout=seconds).status_code
            except httpx.ReadTimeout:
                return None

        codes = [each.result() for each in [pool.submit(ask, 8.0) for _ in range(20)]]
        assert (codes.count(None), codes.count(429)) == (16, 4)
        deadline = time.monotonic() + 20
        while ask(2.0) == 429:  # until it is seen that the others have left
            assert time.monotonic() < deadline
        assert len(made) == 1  # one at a time, though nobody waits for it
        goes_on.set()
        assert ask(30.0) == 400
    assert len(made) <= 3
    monkeypatch.undo()
    monkeypatch.setattr(Forms, "json", lambda self, schema: time.sleep(2))
    with listening(served, bounds=Bounds(rows=4, waiting=6, seconds=0.5)) as port:
        found = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=asked, timeout=30)
    assert (found.status_code, "the form was not made within 0.5 s" in found.text) == (504, True)


def test_models_are_listed_with_what_they_may_tell_of_a_person(client, port):
    listed = {model.id: model for model in client.models.list()}
    assert [*listed] == ["backbone", "thyroid", "loans"]
    assert listed["thyroid"].spent == [Spent("patient", 1, 2.914, 1e-5)._asdict()]
    assert listed["backbone"].spent == []
    assert client.models.retrieve("loans").spent == listed["loans"].spent
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    assert (listed["thyroid"].classifies, listed["loans"].classifies) == (False, True)


def test_documents_are_classified_by_the_head_of_the_model(port, other):
    texts = ["a fever", "a cough", "two legs and a fever"]
    found = httpx.post(
        f"http://127.0.0.1:{port}/v1/classify", json={"model": "loans", "input": texts, "template": "Note: {text}"}
    ).json()
    model = other.models["loans"]
    assert found["meaning"] == model.meaning
    assert found["spent"] == [each._asdict() for each in model.spent]
    for text, row in zip(texts, found["data"], strict=True):
        (ids,) = other.documents([text], "Note: {text}")
        with other.composition.answering(torch.tensor([model.weights])) as adapted, torch.no_grad():
            want = model.head(pooled(adapted.model, torch.tensor([ids]), model.head.reads))[0]
        assert row["outputs"] == pytest.approx(want.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("completions", {"model": "nobody", "prompt": "a"}, 404, "no such model; there are backbone, thyroid, loans"),
        ("completions", {"model": "loans"}, 400, "prompt: field required"),
        ("completions", {"model": "loans", "prompt": 3}, 400, "prompt: input should be a valid string"),
        ("completions", {"model": "loans", "prompt": "a", "suffix": "b"}, 400, "suffix is not served here"),
        ("completions", {"model": "loans", "prompt": "a", "n": 2}, 400, "n: input should be 1"),
        ("completions", {"model": "loans", "prompt": "a", "max_tokens": 0}, 400, "max_tokens: input should be greater"),
        ("completions", {"model": "loans", "prompt": "a", "temperature": 9}, 400, "temperature: input should be less"),
        ("completions", {"model": "loans", "prompt": "a", "stop": [""]}, 400, "stop"),
        (
            "completions",
            {"model": "loans", "prompt": "a", "stream_options": {"include_usage": True}},
            400,
            "stream_options goes with stream alone",
        ),
        (
            "chat/completions",
            {"model": "loans", "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2},
            400,
            "top_logprobs goes with logprobs alone",
        ),
        ("completions", {"model": "loans", "prompt": "a " * 1000}, 400, "tokens, and the model reads"),
        ("completions", {"model": "loans", "prompt": "a " * 50_000}, 400, "longer than the 256 tokens"),
        ("completions", {"model": "loans", "prompt": "a", "Mrs Example": 1}, 400, "a field of the request is not"),
        ("classify", {"model": "loans", "input": ["a", "b" * 300]}, 400, "must have at most 256 tokens"),
        ("chat/completions", {"model": "loans", "messages": []}, 400, "messages"),
        ("chat/completions", {"model": "loans", "messages": [{"role": "assistant", "content": "a"}]}, 400, "in turn"),
        ("chat/completions", {"model": "loans", "messages": [{"role": "tool", "content": "a"}]}, 400, "role"),
        (
            "chat/completions",
            {
                "model": "loans",
                "messages": [{"role": "user", "content": "a"}],
                "response_format": {"type": "grammar"},
            },
            400,
            "response_format.type: one of text",
        ),
        ("classify", {"model": "thyroid", "input": "a"}, 400, "thyroid has no head"),
        ("classify", {"model": "loans", "input": []}, 400, "input"),
        ("classify", {"model": "loans", "input": "a", "template": "no name"}, 400, "must hold one name in braces"),
        ("nothing", {}, 404, "no such address"),
    ],
)
def test_what_is_not_served_is_refused_in_a_sentence(port, path, body, status, said):
    found = httpx.post(f"http://127.0.0.1:{port}/v1/{path}", json=body)
    assert found.status_code == status
    assert said in found.json()["error"]["message"]
    assert "Traceback" not in found.text


def test_a_refusal_never_repeats_what_was_asked(port):
    secret = "Mrs Example has a fever"
    for body in (
        {"model": "loans", "prompt": [secret]},
        {"model": secret, "prompt": "a"},
        {"model": "loans", "prompt": "a", "stop": secret * 100},
        {"model": "loans", "prompt": "a", "seed": secret},
        {"model": "loans", "prompt": "a", secret: 1},
        {"model": "loans", "input": "a", "template": secret},
        {"model": "loans", "input": "a", "template": "{" + secret + "}{b}"},
    ):
        path = "classify" if "template" in body else "completions"
        found = httpx.post(f"http://127.0.0.1:{port}/v1/{path}", json=body)
        assert found.status_code in (400, 404)
        assert "Example" not in found.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": "loans", "prompt": "\\ud800"}', b"null"])
def test_bytes_that_are_no_request_are_refused(port, body):
    found = httpx.post(
        f"http://127.0.0.1:{port}/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    assert found.status_code == 400


def test_more_than_a_request_may_hold_is_refused_before_it_is_read_whole(port):
    found = httpx.post(
        f"http://127.0.0.1:{port}/v1/completions", content=b" " * (MAX_BODY + 1),
        headers={"content-type": "application/json"},
    )  # fmt: skip
    assert found.status_code == 413


def test_a_page_of_elsewhere_reaches_nothing(port):
    url = f"http://127.0.0.1:{port}/v1/completions"
    as_form = httpx.post(url, content=b'{"model": "loans", "prompt": "a"}', headers={"content-type": "text/plain"})
    assert as_form.status_code == 415
    for name in ("evil.example", "127.0.0.1.evil.example", f"evil.example:{port}", "", "[::1"):
        renamed = httpx.post(url, json={"model": "loans", "prompt": "a"}, headers={"host": name})
        assert renamed.status_code == 400
    assert httpx.get(f"http://localhost:{port}/healthz").status_code == 200


def test_a_client_that_goes_away_ends_what_is_written_for_it(port):
    url = f"http://127.0.0.1:{port}"
    body = {"model": "thyroid", "prompt": "a cough", "max_tokens": 400, "temperature": 0, "stream": True}

    with httpx.stream("POST", f"{url}/v1/completions", json=body) as stream:
        next(stream.iter_lines())
    with asking(port, "completions", body | {"stream": False}):
        time.sleep(0.2)
    until(lambda: not at_work(port)[0])


@contextmanager
def asking(port, path, body):
    """A connection on which a request was sent; it is closed with the context, without a look at an answer."""
    sent = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        lines = (f"POST /v1/{path} HTTP/1.1", "host: localhost", "content-type: application/json")
        connection.sendall("\r\n".join([*lines, f"content-length: {len(sent)}", "", ""]).encode() + sent)
        yield


def is_given_up(port, path):
    """True once a request was answered to nobody."""
    told = f'confide_requests_total{{path="/v1/{path}",status="499"}} 1'
    return told in httpx.get(f"http://127.0.0.1:{port}/metrics").text


def test_a_client_that_goes_away_ends_the_reading_of_its_documents(served, monkeypatch):
    passes = []

    def slow(self, model, documents):
        passes.append(len(documents))
        time.sleep(0.1)
        return [[0.0] * 3] * len(documents)

    monkeypatch.setattr(Served, "classify", slow)
    body = {"model": "loans", "input": ["a" * size for size in range(1, 129)]}  # each of a length of its own
    with listening(served) as port:
        with asking(port, "classify", body):
            until(lambda: passes)
        until(lambda: is_given_up(port, "classify"))
        counted = len(passes)
        assert counted < 64
        assert httpx.post(f"http://127.0.0.1:{port}/v1/classify", json={"model": "loans", "input": "a"}).is_success
        assert len(passes) <= counted + 2  # that one, and one that had begun


def test_a_prompt_is_not_scored_for_a_client_that_went_away(served, monkeypatch):
    scored, is_reading, goes_on = [], threading.Event(), threading.Event()

    def held(self, model, documents):
        is_reading.set()
        goes_on.wait(30)
        return [[0.0] * 3] * len(documents)

    monkeypatch.setattr(Served, "classify", held)
    monkeypatch.setattr(Served, "scored", lambda self, model, ids, likeliest: scored.append(ids) or [])
    body = {"model": "thyroid", "prompt": "a", "max_tokens": 1, "echo": True, "logprobs": 1}
    with listening(served) as port, ThreadPoolExecutor(1) as pool:
        url = f"http://127.0.0.1:{port}/v1"
        other = pool.submit(httpx.post, f"{url}/classify", json={"model": "loans", "input": "a"}, timeout=60)
        assert is_reading.wait(20)
        with asking(port, "completions", body):
            until(lambda: at_work(port)[1] == 1)
        until(lambda: is_given_up(port, "completions"))
        goes_on.set()
        assert other.result().is_success
        assert not scored
        assert httpx.post(f"{url}/completions", json=body).is_success
        assert len(scored) == 1


def test_more_requests_than_may_wait_are_told_when_to_come_again(served):
    with listening(served, bounds=Bounds(rows=1, waiting=1)) as port:
        url = f"http://127.0.0.1:{port}/v1/completions"
        body = {"model": "thyroid", "prompt": "a", "max_tokens": 400, "temperature": 0}
        answers = []

        def ask():
            answers.append(httpx.post(url, json=body, timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        busy = [each for each in answers if each.status_code == 429]
        assert {each.status_code for each in answers} == {200, 429}
        assert all(1 <= int(each.headers["retry-after"]) <= 60 for each in busy)
        assert busy[0].json()["error"]["code"] == "rate_limit_exceeded"
        assert len({each.json()["choices"][0]["text"] for each in answers if each.status_code == 200}) == 1


def test_a_text_that_takes_too_long_is_ended(served):
    with listening(served, bounds=Bounds(rows=1, waiting=4, seconds=0.05)) as port:
        body = {"model": "thyroid", "prompt": "a", "max_tokens": 2000, "temperature": 0}
        found = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)
        assert found.status_code == 504
        assert "0.05 s" in found.json()["error"]["message"]


@pytest.mark.parametrize("first", ["a form", "a form, streamed", "its prompt"])
def test_a_request_has_one_time_for_all_that_is_done_for_it(served, monkeypatch, first):
    form, seconds = served.forms.regex("[a-z]{200}"), 2.0
    word_logits = rows.word_logits

    def late(result):
        time.sleep(0.8 * seconds)
        return result

    words = []

    def slow(*args):
        words.append(time.sleep(0.03))  # 200 words take thrice the time
        return word_logits(*args)

    monkeypatch.setattr(Forms, "regex", lambda self, pattern: late(form))
    monkeypatch.setattr(Served, "scored", lambda self, model, ids, likeliest: late([]))
    monkeypatch.setattr(rows, "word_logits", slow)
    form_asked = {"response_format": {"type": "regex", "pattern": "a"}, "stream": "streamed" in first}
    body = {"model": "backbone", "prompt": "a", "max_tokens": 200, "temperature": 1, "seed": 1}
    with listening(served, bounds=Bounds(rows=1, waiting=4, seconds=seconds)) as port:
        more = {"echo": True, "logprobs": 1} if first == "its prompt" else form_asked
        found = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body | more, timeout=60)
    if "streamed" in first:
        assert '"code": "late"' in found.text
    else:
        assert (found.status_code, "not written within 2 s" in found.text) == (504, True)
    assert len(words) <= 0.2 * seconds / 0.03 + 1  # a clock for each part would leave time for five times as many


def test_a_token_is_asked_for_and_made_if_there_is_none(served, tmp_path):
    path = tmp_path / "token"
    with listening(served, Address(port=0, token_file=path)) as port:
        assert path.stat().st_mode & 0o777 == 0o600
        token, url = path.read_text().strip(), f"http://127.0.0.1:{port}"
        assert len(token) >= 40
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {token}"}):
            for request in (httpx.get, lambda *a, **k: httpx.post(*a, json={}, **k)):
                path_asked = "/v1/models" if request is httpx.get else "/v1/completions"
                assert request(f"{url}{path_asked}", headers=headers).status_code == 401
        with openai.OpenAI(base_url=f"{url}/v1", api_key=token) as client:
            assert len(list(client.models.list())) == 3
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        assert httpx.get(f"{url}/metrics").status_code == 401
        shown = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {token}"}).text
        assert 'confide_requests_total{path="/v1/models",status="200"} 1' in shown
        assert 'path="/v1/models",status="401"' in shown
    again = Address(port=0, token_file=path)
    with listening(served, again) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"authorization": f"Bearer {token}"}).is_success
    path.chmod(0o644)
    with pytest.raises(ServiceRefused, match="chmod 600"):
        server._token(again)
    path.write_text("short")
    path.chmod(0o600)
    with pytest.raises(ServiceRefused, match="one token of 32"):
        server._token(again)


def self_signed(folder):
    """A certificate for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(plain)
    return folder / "cert.pem", folder / "key.pem"


def test_others_than_this_machine_are_served_by_tls_and_token_alone(served, tmp_path):
    certificate, key = self_signed(tmp_path)
    bare, half = Address(host="0.0.0.0"), Address(host="0.0.0.0", certificate=certificate, key=key)
    for address, said in (
        (bare, "add --certificate and --key and --token-file"),
        (half, "add --token-file"),
        (Address(host="hospital.example"), "is reached by others"),
        (Address(certificate=certificate), "a certificate needs its key"),
    ):
        with pytest.raises(ServiceRefused, match=said):
            require_closed(address)
    whole = Address(port=0, certificate=certificate, key=key, token_file=tmp_path / "token")
    with listening(served, whole) as port:
        context = ssl.create_default_context(cafile=str(certificate))
        token = (tmp_path / "token").read_text().strip()
        found = httpx.get(
            f"https://localhost:{port}/v1/models", verify=context, headers={"authorization": f"Bearer {token}"}
        )
        assert found.status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://localhost:{port}/healthz")


def test_a_port_that_is_taken_is_told(served, port):
    with pytest.raises(ServiceRefused, match=f"cannot listen on 127.0.0.1:{port}"):
        server.run(served, Address(port=port), Bounds(), lambda _: None)


def test_nothing_that_is_asked_is_logged(client, caplog, capfd):
    with caplog.at_level("DEBUG"):
        client.completions.create(model="thyroid", prompt="Mrs Example", max_tokens=2)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="Mrs Example", prompt="a")
    said = capfd.readouterr()
    own = [
        record.getMessage() for record in caplog.records if not record.name.startswith(("openai", "httpx", "httpcore"))
    ]
    assert "Example" not in said.out + said.err + "".join(own)


def test_an_answer_ends_at_the_word_that_ends_a_turn_whatever_the_tokenizer_calls_the_end(parts, tmp_path, monkeypatch):
    backbone, adapters = parts
    served = Served(backbone, adapters)
    end = served.tokenizer.eos_token_id
    assert served.requests.turn_ends(["user"]) == {end}
    monkeypatch.setattr(served, "ends", frozenset())  # as where a tokenizer ends texts by another word than turns
    steps = iter([*served.requests.plain("yes"), end, *served.requests.plain("more")])
    scores = torch.zeros(served.requests.words)

    def written(model, hidden):
        scores.zero_()
        scores[next(steps)] = 9
        return scores.expand(len(hidden), -1).clone()

    monkeypatch.setattr("confide.models.serving.rows.word_logits", written)
    with listening(served) as port:
        body = {"model": "thyroid", "messages": [{"role": "user", "content": "a"}], "max_tokens": 9, "temperature": 0}
        choice = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("yes", "stop")


def test_an_epsilon_that_nothing_bounds_is_told_as_such(parts, tmp_path):
    backbone, (one, _) = parts
    shutil.copytree(one, tmp_path / "one")
    facts = json.loads((tmp_path / "one" / "confide.json").read_text())
    facts["sources"][0]["epsilon"] = "inf"
    (tmp_path / "one" / "confide.json").write_text(json.dumps(facts))
    with listening(Served(backbone, [tmp_path / "one"])) as port:
        listed = httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["data"]
    assert listed[1]["spent"][0]["epsilon"] == "inf"


def test_connections_that_ask_nothing_are_ended_and_others_are_answered(served, monkeypatch):
    monkeypatch.setattr("confide.listening.HEAD_S", 3.0)
    with listening(served) as port:
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        silent[0].sendall(b"GET /healthz HTTP/1.1\r\n")  # a head that does not end
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").is_success
        for each in silent:
            each.settimeout(10)
            with suppress(ConnectionResetError):
                assert each.recv(1) == b""
            each.close()
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:  # one that is used again is kept
            for _ in range(3):
                assert client.get("/healthz").is_success
                time.sleep(1.2)


def test_whoever_waits_is_told_when_the_service_ends(served, capfd):
    answers = []
    with listening(served, bounds=Bounds(rows=2, waiting=20)) as port:
        body = {"model": "thyroid", "prompt": "a", "max_tokens": 250, "temperature": 0}

        def ask(stream):
            url = f"http://127.0.0.1:{port}/v1/completions"
            answers.append(httpx.post(url, json=body | {"stream": stream}, timeout=60))

        threads = [threading.Thread(target=ask, args=(place % 2 == 0,)) for place in range(12)]
        for thread in threads:
            thread.start()
        while sum(at_work(port)) + len(answers) < 12:  # a connection that nobody has taken yet is just reset
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert len(answers) == 12
    for answer in answers:
        assert answer.status_code in (200, 429, 503)
        assert "Internal Server Error" not in answer.text
    assert "Traceback" not in "".join(capfd.readouterr())


def until(is_so):
    """Waits for something."""
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def at_work(port):
    """Texts that are being written, and requests that wait."""
    lines = [line.split() for line in httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()]
    found = {words[0]: words[1] for words in lines if not words[0].startswith("#")}
    return int(found["confide_texts_running"]), int(found["confide_requests_waiting"])


def test_an_answer_that_fails_is_one_sentence(served, monkeypatch, caplog):
    monkeypatch.setattr(Served, "prompt", lambda self, text: 1 / 0)
    with listening(served) as port:
        found = httpx.post(
            f"http://127.0.0.1:{port}/v1/completions", json={"model": "thyroid", "prompt": "Mrs Example"}
        )
    assert found.status_code == 500
    assert found.json()["error"]["code"] == "failed"
    assert "Example" not in caplog.text


@pytest.mark.parametrize(
    ("host", "status"),
    [("[::1]:8000", 200), ("[::1]", 200), ("LOCALHOST:8000", 200), ("127.0.0.1", 200), ("[::1", 400),
     ("::1", 400), ("localhost.", 400), ("evil.example:8000", 400), ("[evil.example]", 400), ("", 400)],
)  # fmt: skip
def test_a_loopback_port_answers_under_its_own_names_alone(host, status):
    async def app(scope, receive, send):
        await Response("here")(scope, receive, send)

    async def ask():
        transport = httpx.ASGITransport(only_under(app, LOOPBACK_NAMES, Response(status_code=400)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/", headers={"host": host})

    assert asyncio.run(ask()).status_code == status
