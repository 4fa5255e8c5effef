"""What three aggregators' signatures prove to a site."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.client_node.errors import MessageInvalid
from confide.client_node.study.study import AggregatorParty, Study
from confide.client_node.wire.evidence import _EarlierShare, require_evidence, signed_total
from confide.client_node.wire.messages import Outcome, SetTaken, SignedTotal, sign

from ..conftest import identity_of, key_of

STUDY, RUN, REQUEST = "ab" * 32, "thyroid-0001", "cd" * 32
TOTAL = b"ring elements"
SUMMED = ("other", "rest", "svhc", "svi")


def evidence(study, *changes: dict[str, object], run: str = RUN) -> Outcome:
    """An outcome with three aggregators' signed answers, to each of which its change was made before it signed."""
    bodies = []
    for party, changed in zip(study.aggregators, changes or ({}, {}, {}), strict=True):
        answer = SignedTotal(
            request=REQUEST, study=study.study_hash, run=run, round=1, start="ab" * 32, kept=SUMMED,
            set_digest="ef" * 32, total_digest=hashlib.sha256(TOTAL).hexdigest(),
        ).model_copy(update=changed)  # fmt: skip
        bodies.append(sign(answer, key_of(party.name), {"total": TOTAL}).body.decode())
    return Outcome(round=1, sites=SUMMED, evidence=tuple(bodies))


def earlier(study, places=range(3)) -> tuple[str, ...]:
    """Evidence as version 0.2 had it, at `places`; of today elsewhere."""
    named = {"request": REQUEST, "study": study.study_hash, "run": RUN, "round": 1, "kept": SUMMED, "rejected": ()}
    answer = _EarlierShare(**named, set_digest="ef" * 32)
    bodies = list(evidence(study).evidence)
    for place in places:
        bodies[place] = sign(answer, key_of(study.aggregators[place].name), {"share": b"of it"}).body.decode()
    return tuple(bodies)


def test_the_total_that_all_aggregators_signed_is_known_by_its_digest_without_its_bytes(make_study):
    study = make_study()
    assert signed_total(study, RUN, evidence(study)).total_digest == hashlib.sha256(TOTAL).hexdigest()


def test_a_round_that_an_earlier_version_released_holds_but_proves_no_total(make_study):
    study = make_study()
    outcome = Outcome(round=1, sites=SUMMED, evidence=earlier(study))
    assert require_evidence(study, RUN, outcome) is None
    with pytest.raises(MessageInvalid, match="signed no total"):
        signed_total(study, RUN, outcome)


@pytest.mark.parametrize("places", [(0,), (1, 2)], ids=str)
def test_evidence_of_two_versions_does_not_hold(make_study, places):
    study = make_study()
    with pytest.raises(MessageInvalid, match="round 1: "):
        require_evidence(study, RUN, Outcome(round=1, sites=SUMMED, evidence=earlier(study, places)))


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(
    "changed",
    [
        {"study": STUDY}, {"run": "thyroid-0002"}, {"round": 2}, {"kept": ("other",)}, {"set_digest": "ee" * 32},
        {"start": "aa" * 32}, {"total_digest": "cc" * 32},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_an_outcome_of_which_one_aggregator_signed_something_else_is_refused(make_study, place, changed):
    study = make_study()
    with pytest.raises(MessageInvalid, match="round 1: "):
        require_evidence(study, RUN, evidence(study, *[changed if i == place else {} for i in range(3)]))


def test_an_outcome_with_another_set_than_was_signed_is_refused(make_study):
    study = make_study()
    outcome = evidence(study).model_copy(update={"sites": ("other", "rest", "svi")})
    with pytest.raises(MessageInvalid, match="another set than the coordinator says"):
        require_evidence(study, RUN, outcome)


@pytest.mark.parametrize("order", [(0, 1), (), (0, 0, 1), (1, 0, 2)], ids=str)
def test_an_outcome_without_each_aggregator_s_own_word_is_refused(make_study, order):
    study = make_study()
    outcome = evidence(study)
    with pytest.raises(MessageInvalid):
        require_evidence(study, RUN, outcome.model_copy(update={"evidence": tuple(outcome.evidence[i] for i in order)}))


def test_another_message_of_an_aggregator_is_no_evidence(make_study):
    study = make_study()
    taken = SetTaken(request=REQUEST, run=RUN, round=1, bound=SUMMED)
    bodies = tuple(sign(taken, key_of(party.name)).body.decode() for party in study.aggregators)
    with pytest.raises(MessageInvalid, match="unexpected bound message"):
        require_evidence(study, RUN, Outcome(round=1, sites=SUMMED, evidence=bodies))


@given(st.text(max_size=100))
def test_arbitrary_text_is_no_evidence(text):
    party = AggregatorParty.model_construct(name="agg-a", identity=identity_of("agg-a"))
    study = Study.model_construct(aggregators=(party,))
    with pytest.raises(MessageInvalid):
        require_evidence(study, RUN, Outcome(round=1, sites=SUMMED, evidence=(text,)))
