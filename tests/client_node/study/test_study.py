import contextlib
import dataclasses
import hashlib
import json
import math
import re
import ssl
import tomllib
import typing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from confide.client_node.errors import MessageInvalid, StudyInvalid, StudyOutdated
from confide.client_node.study.study import Study, load_draft
from confide.client_node.study.terms import parse_draft
from confide.models.backbones.family import WeightFormat
from confide.models.backbones.packing import PACK_OF
from confide.privacy.mechanism.adaptive_clipping import SENSITIVITY

from ..conftest import CHAT, EVALUATION, STUDY_TOML, TEXT, TURNS

# One change to a good study.toml, and what the message must name: the key, the value, the rule.
BAD_DRAFTS = {
    "sample_rate above 1": (
        ("sample_rate = 0.2", "sample_rate = 1.2"),
        "privacy.sample_rate is 1.2; it must be greater than 0 and at most 1",
    ),
    "sample_rate not a number": (
        ("sample_rate = 0.2", "sample_rate = nan"),
        "privacy.sample_rate is NaN; it must be a finite number",
    ),
    "infinite learning rate": (("lr = 0.3", "lr = inf"), "optimizer.lr is Infinity; it must be a finite number"),
    "rounds in quotes": (("rounds = 40", 'rounds = "40"'), 'rounds.rounds is "40"; it must be a whole number'),
    "rank is a truth": (("rank = 4", "rank = true"), "adapter.rank is true; it must be a whole number"),
    "sample rate missing": (("sample_rate = 0.2\n", ""), "privacy.sample_rate is missing; add it: sample_rate = 0.2"),
    "table missing": (("[optimizer]", "[optimiser]"), "optimiser is not a setting; did you mean optimizer?"),
    "unknown key": (("clip_norm", "clipnorm"), "privacy.clipnorm is not a setting; did you mean clip_norm?"),
    "unknown mode": (
        ('"distributed"', '"central"'),
        "privacy.mode is \"central\"; it must be 'distributed', 'local' or 'none'",
    ),
    "unknown target": (('"experts"', '"expert"'), "(did you mean experts?)"),
    "target that the head never runs": (('"experts"', '"lm_head"'), "a pooled head never runs lm_head"),
    "target twice": (('"experts"', '"o_proj"'), "more than once: o_proj"),
    "cuts not increasing": (
        ("[0.4, 4.0, 10.0]", "[0.4, 4.0, 4.0]"),
        "data.numeric.TSH is [0.4, 4.0, 4.0]; it must be strictly increasing",
    ),
    "cuts empty": (("[0.4, 4.0, 10.0]", "[]"), "data.numeric.TSH is []; it must have at least 1 entries"),
    "category twice": (('["F", "M"]', '["F", "F"]'), "data.categorical.sex"),
    "category named na": (('["F", "M"]', '["F", "na"]'), "sex"),
    "column of two kinds": (('flags = ["sick"]', 'flags = ["sick", "age"]'), "data: age is a column of two kinds"),
    "label among the columns": (('label = "diagnosis"', 'label = "sick"'), "data.label is 'sick'"),
    "records longer than max_tokens": (
        ("max_tokens = 64", "max_tokens = 3"),
        "data.max_tokens is 3; a record can hold 4 words",
    ),
    "bad site name": (('"svi"', '"St. Vincent"'), 'participants.sites.1 is "St. Vincent"'),
    "ball that nothing holds a site to": (
        ("[participants]", "[aggregation]\nnorm_check = false\nmax_norm = 9\n[participants]"),
        "aggregation.max_norm is 9 with aggregation.norm_check false",
    ),
    "older name of a setting": (
        ("momentum = 0.9", "momentum = 0.9\nepsilon = 2"),
        "optimizer.epsilon is 2; it must be greater than 0 and at most 1",
    ),
    "ball without a radius": (
        ("[participants]", "[aggregation]\nmax_norm = 0\n[participants]"),
        "aggregation.max_norm is 0; it must be greater than 0",
    ),
    "site that would know the tags' key": (
        ('[participants]\nsites = ["other"', '[aggregation]\nverify_total = true\n[participants]\nsites = ["agg-a"'),
        "agg-a is both site and aggregator; take another aggregator",
    ),
    "weight of a stranger": (
        ("[participants]", "[aggregation]\nweights = { mallory = 0.5 }\n[participants]"),
        "aggregation.weights names mallory; it must name sites of the study",
    ),
    "weight above one": (
        ("[participants]", "[aggregation]\nweights = { svi = 1.5 }\n[participants]"),
        "aggregation.weights.svi is 1.5; it must be at most 1",
    ),
    "rank of a stranger": (
        ("rank = 4\n", "rank = 4\nranks = { mallory = 2 }\n"),
        "adapter.ranks names mallory; it must name sites of the study",
    ),
    "rank of a site above all": (
        ("rank = 4\n", "rank = 4\nranks = { svi = 5 }\n"),
        "adapter.ranks.svi is 5; it must be at most 4, adapter.rank",
    ),
    "rank of a site below one": (("rank = 4\n", "rank = 4\nranks = { svi = 0 }\n"), "adapter.ranks.svi is 0"),
    "ranks of sites with an A that is trained": (
        ("rank = 4\n", "rank = 4\nfreeze_a = false\nranks = { svi = 2 }\n"),
        "adapter.ranks with adapter.freeze_a false; remove it, or freeze A",
    ),
    "state in a form that nobody knows": (
        ("rounds = 40", 'rounds = 40\nstate = "int4"'),
        "rounds.state is \"int4\"; it must be 'float32' or 'int8'",
    ),
    "site twice": (('"svi"', '"other"'), "more than once: other"),
    "two aggregators": ((', "agg-c"', ""), "participants.aggregators"),
    "one site": (('"other", "svi", "svhc", "rest"', '"other"'), "it must have at least 2 entries"),
    "one site is enough": (("min_sites = 3", "min_sites = 1"), "rounds.min_sites is 1; it must be at least 2"),
    "min_sites above those that must stay": (
        ("max_dropouts = 0", "max_dropouts = 2"),
        "rounds.min_sites is 3; it must be at most 2, the 4 sites less privacy.max_dropouts (2)",
    ),
    "everybody colludes": (("collusion = 1", "collusion = 4"), "privacy.collusion is 4; it must be less than 4"),
    "top-up of noise that nobody shares": (
        ('mode = "distributed"', 'mode = "local"\ndropouts = "top-up"'),
        "privacy.dropouts is 'top-up' with privacy.mode 'local'; remove it",
    ),
    "nobody knows its own noise": (("collusion = 1", "collusion = 0"), "privacy.collusion is 0"),
    "delta too large": (
        ("delta = 1e-5", "delta = 0.01"),
        "privacy.delta is 0.01; it must be at least 0 and at most 0.001",
    ),
    "delta missing": (("delta = 1e-5\n", ""), "privacy.delta must be greater than 0"),
    "noise missing": (("noise_multiplier = 1.19\n", ""), "privacy.noise_multiplier must be greater than 0"),
    "noise without privacy": (('"distributed"', '"none"'), "privacy.noise_multiplier is 1.19; remove it"),
    "noise and target": (
        ("delta = 1e-5", "delta = 1e-5\ntarget_epsilon = 3.0"),
        "privacy.noise_multiplier is 1.19 and privacy.target_epsilon is 3; keep one",
    ),
    "target of nothing": (("noise_multiplier = 1.19", "target_epsilon = 0.0"), "privacy.target_epsilon is 0.0"),
    "target without privacy": (
        ('"distributed"\nnoise_multiplier = 1.19', '"none"\ntarget_epsilon = 3.0'),
        "privacy.target_epsilon is 3; remove it",
    ),
    "distributed over two": (('"other", "svi", "svhc", "rest"', '"other", "svi"'), "it needs at least 3"),
    "odd bins": (
        ("[participants]", "[evaluation]\nbins = 5\nnoise_multiplier = 4.0\n[participants]"),
        "evaluation.bins is 5; it must be even",
    ),
    "evaluation without noise": (
        ("[participants]", "[evaluation]\n[participants]"),
        "evaluation.noise_multiplier must be greater than 0",
    ),
    "local steps on a share of the noise": (
        ("collusion = 1", "collusion = 1\nlocal_steps = 4"),
        "privacy.local_steps is 4 with privacy.mode 'distributed'; it must be 1",
    ),
    "local steps of no length": (
        ("collusion = 1", "collusion = 1\nlocal_steps = 4"),
        "optimizer.local_lr is missing with privacy.local_steps 4; add it",
    ),
    "a local rate for no local steps": (
        ("lr = 0.3", "lr = 0.3\nlocal_lr = 0.1"),
        "optimizer.local_lr is 0.1; remove it",
    ),
    "a layer twice": (("rank = 4", "rank = 4\nlayers = [1, 2, 1]"), "without repeats; more than once: 1"),
    "no label": (('label = "diagnosis"\n', ""), "data.label is missing; add it"),
    "a head for free text alone": (
        ('head = "pooled"', 'head = "lm"'),
        "adapter.head is 'lm' without a table [data.text]",
    ),
    "text beside columns": (
        ("[privacy]", '[data.text]\nprompt = "P {note}"\ncompletion = "{finding}"\n[privacy]'),
        "data.flags with a table [data.text]; remove it",
    ),
    "no such template": (
        ("[privacy]", '[data.text]\nprompt = "P {note"\ncompletion = "{finding}"\n[privacy]'),
        "data.text: prompt: expected '}'",
    ),
    "no name of a column": (
        ("[privacy]", '[data.text]\nprompt = "P {0}"\ncompletion = "{finding}"\n[privacy]'),
        "data.text names a column '0'; it must be a letter or _",
    ),
    "unknown clipping": (
        ("clip_norm = 1.0", 'clip_norm = 1.0\nclipping = "automatic"'),
        "privacy.clipping is \"automatic\"; it must be 'fixed' or 'adaptive'",
    ),
    "unknown optimizer": (("momentum = 0.9", 'kind = "sgd"'), 'optimizer.kind is "sgd"'),
    "not TOML": (("[rounds]", "[rounds"), "not TOML"),
    "a cut that no float holds": (("10.0]", f"{10**309}]"), "it must be a finite number"),
    "a number of 5,000 digits": (
        ("deadline_s = 60", "deadline_s = " + "9" * 5000),
        "more digits than any setting takes",
    ),
    "nested 3,000 times": (("deadline_s = 60", "deadline_s = " + "[" * 3000), "nested deeper than any setting is"),
}


@pytest.mark.parametrize("case", BAD_DRAFTS)
def test_a_bad_draft_is_told_by_file_key_value_and_remedy(case, write_draft):
    change, expected = BAD_DRAFTS[case]
    path = write_draft(change)
    with pytest.raises(StudyInvalid) as caught:
        load_draft(path)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)


def test_a_study_states_the_noise_that_was_solved_for_its_target(make_study):
    with pytest.raises(StudyInvalid, match="states the one that was solved"):
        make_study(("noise_multiplier = 1.19", "target_epsilon = 3.0"))


def test_all_problems_come_at_once(write_draft):
    path = write_draft(("rank = 4", "rank = 0"), ("lr = 0.3", "lr = -1"), ("seed =", "sede ="))
    with pytest.raises(StudyInvalid) as caught:
        load_draft(path)
    keys = [problem.split(" ")[0] for problem in caught.value.problems]
    assert keys == ["adapter.rank", "adapter.seed", "adapter.sede", "optimizer.lr"]


def test_an_evaluation_has_no_noise_where_nothing_else_has(write_draft):
    path = write_draft(EVALUATION, ('"distributed"\nnoise_multiplier = 1.19', '"none"'), ("delta = 1e-5\n", ""))
    with pytest.raises(StudyInvalid, match=r"evaluation\.noise_multiplier must go"):
        load_draft(path)


def test_problems_between_tables_come_at_once(write_draft):
    path = write_draft(('label = "diagnosis"', 'label = "sex"'), ("collusion = 1", "collusion = 9"))
    with pytest.raises(StudyInvalid) as caught:
        load_draft(path)
    assert len(caught.value.problems) == 2


def test_the_documented_draft_is_valid(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "study-toml.md").read_text()
    (tmp_path / "study.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    assert load_draft(tmp_path / "study.toml").name == "thyroid"


def test_a_study_of_free_text_keeps_its_hash(make_study):
    """It was made when a template was a prompt and a completion, and nothing else could be said."""
    study = make_study(*TEXT)
    assert study.study_hash == "262eb805a198e90030527eab6e897bdb9957eab8f32032e24c0a4494ffed8259"
    assert b'"text":{"completion":"{finding}<|end|>","prompt":"<|start|>{note}\\n"}' in study.canonical()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((*TEXT, TURNS), {"turns": ["user: {note}", "assistant: {finding}"]}),
        (CHAT, {"turns": "the last 16, the assistant's learned", "system's turn": "allowed"}),
        (
            (*CHAT, ("[data.chat]", "[data.chat]\ndate = 2026-01-31\nmax_turns = 4\nsystem = false")),
            {"turns": "the last 4, the assistant's learned", "system's turn": "refused", "date": "2026-01-31"},
        ),
    ],
)
def test_a_study_of_turns_or_conversations_says_so_and_has_one_form(make_study, changes, said):
    study = make_study(*changes)
    assert Study.parse(study.canonical()) == study
    facts = study.facts()["Data"]
    assert {name: facts[name] for name in said} == said


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (('role = "user"', 'role = "tool"'), "data.text.turns.0.role is \"tool\"; it must be 'system', 'user' or"),
        (('{ role = "user", text = "{note}" }, ', ""), "data.text: turns must be a system's, if any"),
        (("[data.text]", '[data.text]\nprompt = "P {note}"'), "data.text: turns beside prompt or completion"),
        (("[data.text]", "[data.text]\ndate = 1"), "data.text.date is 1; it must be a date like 2026-01-31"),
    ],
)
def test_what_is_wrong_with_turns_is_said_as_ever(write_draft, change, expected):
    with pytest.raises(StudyInvalid, match=re.escape(expected)):
        load_draft(write_draft(*TEXT, TURNS, change))


def test_the_documented_records_of_text_are_valid(write_draft):
    """Every table [data.text] and [data.chat] of the page, in place of that of a study of free text."""
    page = (Path(__file__).parents[3] / "docs" / "study-toml.md").read_text()
    tables = [block.split("```")[0] for block in page.split("```toml\n")[1:]]
    tables = [table for table in tables if table.startswith(("[data.text]", "[data.chat]"))]
    found = [load_draft(write_draft(*TEXT, (f"[data.text]\n{TURNS[0]}", table))).data for table in tables]
    assert [data.kind.name for data in found] == ["text", "text", "text", "chat"]
    assert len(found[1].text.turns) == 3
    assert [bool(style.turns) for style in found[2].text.styles] == [False, True]


def test_a_study_of_free_text_names_its_columns_and_needs_a_rate(make_study, write_draft):
    study = make_study(*TEXT)
    assert study.draft.data.text.template().prompt_columns == ("note",)
    assert study.draft.optimizer.rates == (0.3, 0.3)
    facts = study.facts()["Data"]
    assert facts["columns"] == ["note (free text, shown)", "finding (free text, learned)"]
    assert facts["prompt"] == "<|start|>{note}\n"
    assert Study.parse(study.canonical()) == study
    for change, expected in (
        (("lr = 0.3\n", ""), "optimizer.lr is missing with adapter.head 'lm'"),
        (("lr = 0.3\n", "lr = 0.3\nhead_lr = 1.0\n"), "optimizer.head_lr with adapter.head 'lm'; remove it"),
    ):
        with pytest.raises(StudyInvalid, match=re.escape(expected)):
            load_draft(write_draft(*TEXT, change))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(StudyInvalid, match="cannot be read"):
        load_draft(tmp_path / "absent.toml")


def test_the_hash_is_the_sha256_of_the_canonical_text_and_never_changes(make_study):
    study = make_study()
    assert study.study_hash == hashlib.sha256(study.canonical()).hexdigest()
    assert study.study_hash == "f1ebd8785f6f86be64fb2458f331f75742ed6a0c161b5786471dd626f89ed486"


def test_a_study_of_format_4_keeps_its_hash_and_is_read_but_not_run(make_study):
    old = make_study().model_copy(update={"format": 4, "start": None})
    assert old.study_hash == "323d663835e873bd0121bf6c6eea5c21453c33d1a1b838c7982a729f86af9bab"
    assert Study.parse(old.canonical()) == old
    with pytest.raises(StudyOutdated, match=r"made by an earlier version .* create it again from the same study\.toml"):
        old.require_start()


def test_the_start_is_in_the_hash(make_study):
    study = make_study()
    first = study.study_hash
    other = study.model_copy(update={"start": study.start.model_copy(update={"state": "ab" * 32})})
    assert other.study_hash == Study.parse(other.canonical()).study_hash != first
    assert study.model_copy().study_hash == study.study_hash == first


def test_a_hash_that_was_asked_for_is_no_part_of_the_study(make_study):
    study, other = make_study(), make_study()
    canonical = study.canonical()
    assert study.study_hash
    assert study == other
    assert other == study
    assert study.canonical() == canonical


@pytest.mark.parametrize(
    ("version", "section", "key"), [(1, "privacy", "max_dropouts"), (2, "aggregation", "kem"), (3, "model", "experts")]
)
def test_a_study_of_an_earlier_version_is_refused_with_where_to_read_on(make_study, version, section, key):
    old = json.loads(make_study().canonical()) | {"format": version}
    del old["draft"][section][key]
    with pytest.raises(StudyInvalid, match=r"made by an earlier version.*docs/operator.md"):
        Study.parse(json.dumps(old, sort_keys=True, separators=(",", ":")).encode())


def test_the_order_of_tables_and_columns_does_not_change_the_hash(make_study):
    swapped = make_study(
        ("age = [20, 40, 60, 80]\nTSH = [0.4, 4.0, 10.0]\n", "TSH = [0.4, 4, 10]\nage = [20.0, 40, 60, 80]\n")
    )
    assert swapped.study_hash == make_study().study_hash


def test_every_term_is_in_the_hash(make_study):
    changes = [
        ("rank = 4", "rank = 5"), ("alpha = 4.0", "alpha = 4.1"), ("[20, 40, 60, 80]", "[20, 40, 60, 81]"),
        ('["F", "M"]', '["M", "F"]'), ("delta = 1e-5", "delta = 2e-5"), ("lr = 0.3", "lr = 0.4"),
        ("rounds = 40", "rounds = 41"), ('"agg-b"', '"agg-d"'), ("batch_units = 1374", "batch_units = 1375"),
        ("[adapter]", 'experts = "int8"\n[adapter]'), ("[adapter]", 'frozen = "int8"\n[adapter]'),
        ("[adapter]", 'frozen = "int8"\nexperts = "float32"\n[adapter]'),
        ("[participants]", '[aggregation]\nkem = "mlkem768-x25519"\n[participants]'),
        ("rank = 4", "rank = 4\nranks = { svi = 2 }"), ("rank = 4", "rank = 4\nranks = { svi = 3 }"),
        ("rounds = 40", 'rounds = 40\nstate = "int8"'), ("[adapter]", "[model.segments]\n[adapter]"),
        ("[adapter]", "segments = { window = 16 }\n[adapter]"), ("[adapter]", "segments = { top = 9 }\n[adapter]"),
    ]  # fmt: skip
    hashes = {make_study(change).study_hash for change in changes}
    assert len(hashes | {make_study().study_hash}) == len(changes) + 1


def test_experts_are_held_as_all_frozen_layers_unless_said_otherwise(make_study):
    found = {}
    for terms in ("", 'frozen = "nf4"', 'frozen = "nf4"\nexperts = "int8"', 'experts = "int8"'):
        study = make_study(("[adapter]", f"{terms}\n[adapter]"))
        found[terms] = (study.draft.model.frozen, study.draft.model.experts)
        shown = study.facts()["Study"]  # what a site approves
        assert (shown["linear layers"], shown["routed experts"]) == found[terms]
    assert list(found.values()) == [("float32", "float32"), ("nf4", "nf4"), ("nf4", "int8"), ("float32", "int8")]


def test_attention_in_segments_is_shown_to_those_who_approve(make_study):
    for terms, sizes in (("", None), ("segments = {}", {"window": 32, "top": 8}), ("[model.segments]\ntop = 3", None)):
        shown = make_study(("[adapter]", f"{terms}\n[adapter]")).facts()["Study"]["attention in segments"]
        assert shown == (sizes or ({"window": 32, "top": 3} if terms else None))
    assert b"segments" not in make_study().canonical()


def test_a_study_that_says_nothing_of_frozen_layers_has_the_hash_that_it_had(make_study):
    plain, stated = make_study(), make_study(("[adapter]", 'frozen = "float32"\n[adapter]'))
    assert stated.study_hash == plain.study_hash
    assert re.search(rb'"model":{"backbone":"[^"]*","experts":"float32"}', plain.canonical())
    assert b'"frozen":"nf4"' in make_study(("[adapter]", 'frozen = "nf4"\n[adapter]')).canonical()


def test_formats_of_a_study_are_those_that_can_be_packed():
    assert typing.get_args(WeightFormat) == tuple(PACK_OF)


def test_a_study_reads_itself_whether_it_uses_a_later_term_or_not(make_study):
    later = ("rank = 4", "rank = 4\nranks = { svi = 2 }"), ("rounds = 40", 'rounds = 40\nstate = "int8"')
    for study in (make_study(), *map(make_study, (*later, ("[adapter]", 'frozen = "nf4"\n[adapter]')))):
        assert Study.parse(study.canonical()) == study


def test_the_state_to_train_from_is_rounded_and_the_one_to_evaluate_is_not(make_study):
    adaptive = ("clip_norm = 1.0", 'clip_norm = 1.0\nclipping = "adaptive"')
    study = make_study(("rounds = 40", 'rounds = 40\nstate = "int8"'), adaptive, EVALUATION)
    update, evaluation = (study.state_format(study.planned_round(number)) for number in (1, 41))
    assert (update.kind, update.dim, update.exact) == ("int8", study.dim, 1)  # the clip's logarithm stays exact
    assert (evaluation.kind, evaluation.size) == ("float32", 4 * study.dim)
    plain = make_study()
    assert plain.state_format(plain.planned_round(1)).size == 4 * plain.dim


def test_the_rounds_of_a_study_are_its_updates_and_then_its_evaluation(make_study):
    study = make_study(EVALUATION)
    planned = [study.planned_round(number) for number in range(1, study.last_round + 1)]
    assert [each.number for each in planned] == list(range(1, 42))
    assert [each.purpose for each in planned] == ["update"] * 40 + ["evaluation"]
    assert (planned[0].dim, planned[0].noise_multiplier, planned[0].sample_rate) == (1000, 1.19, 0.2)
    last = planned[-1]
    assert (last.dim, last.noise_multiplier, last.sample_rate, last.clip_norm) == (20, 4.0, 1.0, 1.0)
    assert 2.0 ** (last.ring_bits - 1 - last.scale_bits) > 1e12  # more units than there are


@pytest.mark.parametrize("number", [-1, 0, 41])
def test_a_study_has_no_round_beyond_its_last(make_study, number):
    with pytest.raises(MessageInvalid, match="has rounds 1 to 40"):
        make_study().planned_round(number)


def test_parse_is_the_inverse_of_canonical(make_study):
    for change in [
        EVALUATION,
        ("rank = 4", "rank = 4"),
        ('"distributed"\nnoise_multiplier = 1.19', '"local"\nnoise_multiplier = 2.5'),
    ]:
        study = make_study(change)
        assert Study.parse(study.canonical()) == study
        assert Study.parse(study.canonical()).canonical() == study.canonical()


def test_another_spelling_of_a_study_is_refused(make_study):
    canonical = make_study().canonical()
    spaced = json.dumps(json.loads(canonical), sort_keys=True).encode()
    doubled = canonical.replace(b'{"aggregators"', b'{"dim":7,"aggregators"', 1)
    integral = canonical.replace(b'"alpha":4.0', b'"alpha":4')
    for text in (spaced, doubled, integral, canonical + b"\n"):
        assert text != canonical
        with pytest.raises(StudyInvalid, match="canonical form"):
            Study.parse(text)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b"\xff", b"{" * 100_000, b" " * (2**20 + 1)])
def test_what_is_no_study_is_refused(text):
    with pytest.raises(StudyInvalid):
        Study.parse(text)


def test_a_certificate_of_an_unknown_version_is_refused(make_study):
    study = make_study()
    pem = study.aggregators[0].certificate
    der = bytearray(x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER))
    version = der.index(b"\xa0\x03\x02\x01\x02") + 4
    der[version] = 9
    changed = ssl.DER_cert_to_PEM_cert(bytes(der))
    with pytest.raises(StudyInvalid, match="certificate"):
        Study.parse(study.canonical().replace(json.dumps(pem).encode(), json.dumps(changed).encode()))


@pytest.mark.slow
def test_no_changed_byte_gives_the_same_study(make_study):
    study = make_study()
    canonical = study.canonical()

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, len(canonical) - 1), st.integers(1, 255))
    def change(place, flip):
        text = bytearray(canonical)
        text[place] ^= flip
        with contextlib.suppress(StudyInvalid):
            assert Study.parse(bytes(text)).study_hash != study.study_hash

    change()


def test_a_study_cannot_be_changed(make_study):
    study = make_study()
    with pytest.raises(ValidationError):
        study.dim = 3
    with pytest.raises(ValidationError):
        study.draft.privacy.noise_multiplier = 0.1
    with pytest.raises(TypeError):
        study.draft.data.numeric["age"] = (1.0,)


def test_only_the_coordinator_named_in_it_can_sign_a_study(make_study, coordinator_key):
    study = make_study()
    assert study.is_signed(study.sign(coordinator_key))
    assert not study.is_signed(make_study(("rank = 4", "rank = 5")).sign(coordinator_key))
    for forged in ("", "00" * 64, "not hex"):
        assert not study.is_signed(forged)


def test_the_operators_folders_stay_with_the_operator(make_study):
    assert b"some/where" not in make_study().canonical()


BAD_PARTIES = {
    "site without key": (lambda s: s["sites"].pop(), "draft.participants.sites"),
    "site added": (lambda s: s["sites"].append({"name": "late", "identity": "77" * 32}), "draft.participants.sites"),
    "sites swapped": (lambda s: s["sites"].reverse(), "draft.participants.sites"),
    "one key for two sites": (lambda s: s["sites"][0].update(identity=s["sites"][1]["identity"]), "occurs twice"),
    "a site's key for an aggregator": (
        lambda s: s["aggregators"][0].update(identity=s["sites"][1]["identity"]),
        "two names share one",
    ),
    "the coordinator's key for a site": (lambda s: s["sites"][0].update(identity=s["coordinator"]), "coordinator has"),
    "one address for two": (
        lambda s: s["aggregators"][0].update(address=s["aggregators"][1]["address"]),
        "aggregators: address occurs twice",
    ),
    "no port": (lambda s: s["aggregators"][0].update(address="host"), 'aggregators.0.address is "host"'),
    "no certificate": (lambda s: s["aggregators"][0].update(certificate="PEM"), "one certificate in PEM form"),
    "short key": (lambda s: s["sites"][0].update(identity="ab"), 'sites.0.identity is "ab"'),
    "narrow ring": (lambda s: s.update(ring_bits=32), "a sum could reach"),
    "no length": (lambda s: s.update(dim=0), "dim is 0; it must be at least 1"),
    "another format": (lambda s: s.update(format=6), "format is 6; it must be 4 or 5"),
    "no start": (lambda s: s.update(start=None), "start is missing; a study of format 5 states it"),
    "a start in an old study": (lambda s: s.update(format=4), "start is there; a study of format 4 has none"),
    "a head longer than the state": (lambda s: s["start"].update(head_size=1001), "start.head_size is 1001"),
}


@pytest.mark.parametrize("case", BAD_PARTIES)
def test_bad_parties_are_told(case, make_study):
    spoil, expected = BAD_PARTIES[case]
    plain = json.loads(make_study().canonical())
    spoil(plain)
    with pytest.raises(StudyInvalid) as caught:
        Study.parse(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode())
    assert expected in str(caught.value)


def test_a_site_may_aggregate_under_its_own_key(make_study):
    plain = json.loads(make_study().canonical())
    plain["draft"]["participants"]["aggregators"][0] = plain["aggregators"][0]["name"] = "svi"
    plain["aggregators"][0]["identity"] = plain["sites"][1]["identity"]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    assert Study.parse(text).aggregators[0].name == "svi"


def test_a_sum_with_distributed_noise_never_holds_fewer_sites_than_the_noise_is_sized_for(make_study):
    assert make_study().quorum == 4  # min_sites = 3, but no dropout is provided for
    assert make_study(("max_dropouts = 0", "max_dropouts = 1")).quorum == 3
    assert make_study(('"distributed"', '"local"')).quorum == 3


def test_the_schema_and_the_adapter_are_those_of_the_draft(make_study):
    study = make_study()
    schema = study.record_schema()
    assert [field.name for field in schema.numeric] == ["TSH", "age"]
    assert schema.categorical[0].values == ("F", "M")
    assert study.adapter_config()["targets"][-1] == "experts"


def test_the_adapter_accepts_every_setting(make_study):
    from confide.models.adapters.lora import AdapterConfig

    config = AdapterConfig(**make_study().adapter_config())
    assert {field.name for field in dataclasses.fields(config)} == set(make_study().adapter_config())


def test_a_draft_may_leave_the_rates_to_the_rule_and_a_study_may_not(write_draft, make_study):
    no_rates = ("lr = 0.3\nhead_lr = 10.0\n", "")
    assert load_draft(write_draft(no_rates)).optimizer.lr is None
    with pytest.raises(StudyInvalid, match=r"(?s)optimizer\.lr is missing.*optimizer\.head_lr is missing"):
        make_study(no_rates)


def test_an_adaptive_clip_adds_one_number_to_the_state_and_fixes_the_sensitivity(write_draft):
    fixed = load_draft(write_draft(("clip_norm = 1.0", "clip_norm = 0.25")))
    adaptive = load_draft(write_draft(("clip_norm = 1.0", 'clip_norm = 0.25\nclipping = "adaptive"')))
    assert (fixed.state_dim(100), fixed.privacy.sensitivity, fixed.update_divisor) == (100, 0.25, 1374 * 0.25)
    assert (adaptive.state_dim(100), adaptive.privacy.sensitivity) == (101, SENSITIVITY)
    assert adaptive.update_divisor == 1374  # the sum is in clip units already
    assert adaptive.noise_std == pytest.approx(4 * SENSITIVITY * fixed.noise_std)


@pytest.mark.parametrize("dropouts", ["over-provision", "top-up"])
def test_the_noise_of_a_whole_sum_is_what_the_sites_add(make_study, dropouts):
    """Adam takes its variance off: with top-ups sites add less at first, and all that is missing is made up for."""
    study = make_study(("max_dropouts = 0", f'max_dropouts = 1\ndropouts = "{dropouts}"'))
    each = study.site_noise(study.planned_round(1)) / 2**study.scale_bits
    assert study.draft.noise_std == pytest.approx(each * len(study.sites) ** 0.5, rel=1e-4)


def with_aggregation(terms):
    return ("[participants]", f"[aggregation]\n{terms}\n[participants]")


def test_norms_are_checked_unless_the_study_says_otherwise(make_study):
    planned = make_study(EVALUATION).planned_round(1)
    assert planned.norm_bound > make_study(EVALUATION).draft.max_norm
    assert not planned.verify_total
    assert make_study(EVALUATION).planned_round(41).norm_bound is None  # an evaluation
    off = make_study(with_aggregation("norm_check = false\nverify_total = true"))
    assert off.draft.max_norm is None
    assert off.planned_round(1).norm_bound is None
    assert off.planned_round(1).bound_units is None
    assert off.planned_round(1).verify_total


def test_longest_sum_is_in_clip_norms(make_study):
    changes = with_aggregation("max_norm = 12.5"), ("clip_norm = 1.0", "clip_norm = 0.5")
    assert make_study(*changes).draft.max_norm == 6.25
    assert make_study(*changes, ("clip_norm = 0.5", 'clip_norm = 0.5\nclipping = "adaptive"')).draft.max_norm == 12.5


def test_bound_grows_with_the_ball_and_the_noise_and_counts_ring_units(make_study):
    narrow, wide = (make_study(with_aggregation(f"max_norm = {norm}")).planned_round(1) for norm in (1, 500))
    noise = 1.19 / 3**0.5 * 1000**0.5  # std, over a thousand numbers
    assert noise < narrow.norm_bound < 1.3 * noise + 1
    assert 500 < wide.norm_bound < 500 + narrow.norm_bound
    assert narrow.bound_units == math.ceil(narrow.norm_bound * 2**narrow.scale_bits)
    noisy = make_study(with_aggregation("max_norm = 1"), ("noise_multiplier = 1.19", "noise_multiplier = 2.38"))
    assert noisy.planned_round(1).norm_bound == pytest.approx(2 * narrow.norm_bound, rel=0.1)


@pytest.mark.parametrize("dropouts", ["over-provision", "top-up"])
def test_no_vectors_that_may_pass_the_norm_check_reach_what_is_refused(make_study, dropouts):
    """Each of four sites, and its top-up, twice as long as its bound and in one entry; below what a ring holds."""
    spare = ("max_dropouts = 0", f'max_dropouts = 1\ndropouts = "{dropouts}"')
    study = make_study(spare, with_aggregation("max_norm = 1\nverify_total = true"))
    planned = study.planned_round(1)
    topup = study.topup_bound(1, 3)
    assert (topup > 0) == (dropouts == "top-up")
    most = 2 ** (planned.ring_bits - 1) - 1
    assert study.largest_units(planned) == min(most, 4 * 2 * (planned.bound_units + topup))
    assert study.largest_units(planned) > 2**planned.scale_bits * planned.largest_total
    evaluation = make_study(EVALUATION, with_aggregation("verify_total = true"))
    assert evaluation.largest_units(evaluation.planned_round(41)) == 2**44


def test_bound_of_local_steps_holds_all_of_them(make_study):
    local = (
        ('mode = "distributed"', 'mode = "local"\nlocal_steps = 4'),
        with_aggregation("max_norm = 300"),
    )
    planned = make_study(*local, ("[optimizer]", "[optimizer]\nlocal_lr = 0.3")).planned_round(1)
    assert 4 * 300 < planned.norm_bound < 4 * 300 + 1.3 * 2 * 1.19 * 1000**0.5


def test_bound_without_noise_is_the_ball(make_study):
    quiet = (
        ('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'),
        ("delta = 1e-5\n", ""),
        with_aggregation("max_norm = 300"),
    )
    assert make_study(*quiet).planned_round(1).norm_bound == pytest.approx(300, rel=1e-5)


def test_top_up_is_bounded_by_its_noise_alone(make_study):
    study = make_study(("max_dropouts = 0", 'max_dropouts = 1\ndropouts = "top-up"'))
    topup, update = study.planned_topup(3, 3), study.planned_round(3)
    std = study.topup_noise(update, 3) * 2.0**-update.scale_bits
    assert std * 1000**0.5 < topup.norm_bound < 1.3 * std * 1000**0.5 < update.norm_bound
    assert dataclasses.replace(topup, norm_bound=update.norm_bound) == update


def test_ring_too_small_for_the_check_is_told(make_study):
    plain = json.loads(make_study().canonical())
    plain |= {"ring_bits": 32, "scale_bits": 18}  # holds the sum, 5,600 at most
    text = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(StudyInvalid, match="can be checked: take 64 bits"):
        Study.parse(text)


def test_a_text_and_a_table_make_the_draft_of_the_file(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(STUDY_TOML)
    drafts = [parse_draft(STUDY_TOML, "text"), parse_draft(tomllib.loads(STUDY_TOML), "table"), load_draft(file)]
    assert drafts[0] == drafts[1] == drafts[2]
    both = STUDY_TOML.replace("delta = 1e-5", "delta = 1e-5\ntarget_epsilon = 3.0")
    with pytest.raises(StudyInvalid, match=r"text: 1 problem\n.*keep one"):
        parse_draft(both, "text")


def test_a_text_of_more_than_a_mebibyte_is_not_parsed():
    with pytest.raises(StudyInvalid, match="longer than"):
        parse_draft("# " + "é" * 2**19, "text")


def test_terms_for_more_sites_than_a_draft_names_are_those_of_a_simulation(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY_TOML.replace("max_dropouts = 0", "max_dropouts = 20"))
    with pytest.raises(StudyInvalid, match="max_dropouts"):
        load_draft(path)
    many = [f"site-{number}" for number in range(200)]
    draft = load_draft(path, sites=many)
    assert (draft.participants.sites, draft.quorum) == (tuple(many), 180)
    with pytest.raises(StudyInvalid, match=r"rounds.min_sites is 3; it must be at most 2"):
        load_draft(path, sites=many[:22])
    path.write_text("participants = 1")
    with pytest.raises(StudyInvalid):
        load_draft(path, sites=many)
