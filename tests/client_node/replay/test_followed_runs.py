import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from confide.client_node.errors import MessageInvalid, StateRefused
from confide.client_node.replay import followed_runs
from confide.client_node.replay.checkpoint import Checkpoint
from confide.client_node.replay.followed_runs import FollowedRuns, Standing
from confide.client_node.replay.following import beginning, follow, round_start
from confide.client_node.study.study import Study
from confide.client_node.wire.messages import Outcome, Replay, SignedTotal, sign

from ..conftest import STUDY_TOML, build_study, changed, key_of

RUN, DIM, PART = "run-1", 1000, 3000
KINDS = {
    "sgd": (),
    "int8": (("rounds = 40", 'rounds = 40\nstate = "int8"'),),
    "adam": (("lr = 0.3", 'kind = "adam"\naveraging = "ema"\nlr = 0.3'),),
    "corrected": (("lr = 0.3", 'kind = "adam"\nnoise_correction = true\nlr = 0.3'),),
    "adaptive": (
        ("clip_norm = 1.0", 'clip_norm = 0.5\nclipping = "adaptive"'),
        ("rounds = 40", 'rounds = 40\nstate = "int8"'),
    ),
    "local steps": (
        ('mode = "distributed"', 'mode = "local"'),
        ("collusion = 1", "collusion = 1\nlocal_steps = 4"),
        ("lr = 0.3", "lr = 0.3\nlocal_lr = 0.1"),
    ),
    "none": (('mode = "distributed"', 'mode = "none"'), ("noise_multiplier = 1.19\n", ""), ("delta = 1e-5\n", "")),
    "tags": (("[participants]", "[aggregation]\nverify_total = true\n[participants]"),),
}


@dataclass
class Rounds:
    """What a coordinator has of a run: each round's total, the evidence, and its own checkpoints."""

    study: Study
    run: str = RUN
    seed: int = 0
    totals: list[bytes] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checkpoints.append(beginning(self.study, np.zeros(DIM, np.float32)))

    def key(self, number: int) -> str | None:
        return f"{number:064x}" if self.study.draft.aggregation.verify_total else None

    def grow(self, count: int) -> "Rounds":
        planned = self.study.planned_round(1)
        for _ in range(count):
            number, before = len(self.totals) + 1, self.checkpoints[-1]
            rng = np.random.default_rng((self.seed, number))
            units = np.rint(rng.normal(0, 2.0, DIM) * 2**planned.scale_bits).astype(np.int64)
            total = units.astype("<u8" if planned.ring_bits == 64 else "<u4").tobytes()
            self.totals.append(total)
            self.outcomes.append(self.signed(number, total))
            self.checkpoints.append(follow(self.study, before, total, kept=4))
        return self

    def signed(
        self,
        number: int,
        total: bytes,
        *,
        by: tuple[str, ...] = ("agg-a", "agg-b", "agg-c"),
        sites: tuple[str, ...] | None = None,
    ) -> Outcome:
        """What the three aggregators sign of a round that began where this coordinator stands."""
        digest = round_start(self.study, self.checkpoints[number - 1]).digest
        start = followed_runs.start_hash(digest, self.key(number))
        sites = tuple(sorted(self.study.site_names())) if sites is None else sites
        answer = SignedTotal(
            request="0" * 64, study=self.study.study_hash, run=self.run, round=number, start=start, kept=sites,
            set_digest="cd" * 32, total_digest=hashlib.sha256(total).hexdigest(),
        )  # fmt: skip
        return Outcome(round=number, sites=sites, evidence=tuple(sign(answer, key_of(n)).body.decode() for n in by))

    def messages(self, number: int) -> Iterator[tuple[Replay, bytes]]:
        total = self.totals[number - 1]
        for offset in range(0, len(total), PART):
            yield self.message(number, offset=offset), total[offset : offset + PART]

    def message(self, number: int, *, offset: int = 0, outcome: Outcome | None = None) -> Replay:
        return Replay(
            to="svi", study=self.study.study_hash, run=self.run, lease=1, outcome=outcome or self.outcomes[number - 1],
            tag_key=self.key(number), offset=offset,
        )  # fmt: skip


@dataclass
class FollowingSite:
    """A site that is started anew for every message."""

    home: Path
    study: Study

    def take(self, message: Replay, part: bytes) -> Standing:
        return FollowedRuns(self.home).take(self.study, message, part, self.start)

    def give(self, rounds: Rounds, number: int) -> Standing:
        for message, part in rounds.messages(number):
            standing = self.take(message, part)
        return standing

    def checkpoint(self) -> Checkpoint:
        return FollowedRuns(self.home).checkpoint(self.study, RUN, self.start)

    def start(self) -> np.ndarray:
        return np.zeros(DIM, np.float32)


def study_of(tmp_path: Path, kind: str = "sgd") -> Study:
    (tmp_path / "study.toml").write_text(changed(STUDY_TOML, KINDS[kind]))
    return build_study(tmp_path / "study.toml", {})


@pytest.fixture
def site(tmp_path: Path) -> FollowingSite:
    return FollowingSite(tmp_path / "svi", study_of(tmp_path))


def bits(checkpoint: Checkpoint) -> tuple[int, bytes]:
    return checkpoint.round, checkpoint.to_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_that_is_started_anew_for_every_part_has_every_bit_of_the_coordinator(tmp_path, kind):
    site = FollowingSite(tmp_path / "svi", study_of(tmp_path, kind))
    rounds = Rounds(site.study).grow(6)
    for number in range(1, 7):
        assert site.give(rounds, number) == Standing(number, 0)
        assert bits(site.checkpoint()) == bits(rounds.checkpoints[number])
        assert (
            round_start(site.study, site.checkpoint()).digest
            == round_start(site.study, rounds.checkpoints[number]).digest
        )
    kept = rounds.checkpoints[-1]
    assert (kept.residual is not None) == ('state = "int8"' in str(KINDS[kind]))
    assert (kept.average is not None, kept.second_moment is not None) == (kind == "adam", kind in ("adam", "corrected"))


def test_only_the_newest_state_is_kept_readable_by_its_owner_alone(site):
    rounds = Rounds(site.study).grow(3)
    for number in (1, 2, 3):
        site.give(rounds, number)
    (path,) = (site.home / "replay" / RUN).iterdir()
    assert (path.name.split("-")[1], path.stat().st_mode & 0o777) == ("3", 0o600)
    FollowedRuns(site.home).end(RUN)
    assert not any((site.home / "replay").iterdir())


def test_runs_that_are_not_active_are_forgotten_and_followed_anew(site):
    rounds = Rounds(site.study).grow(2)
    site.give(rounds, 1)
    FollowedRuns(site.home).keep({RUN})
    assert site.checkpoint().round == 1
    FollowedRuns(site.home).keep(set())
    assert site.checkpoint().round == 0
    assert [site.give(rounds, number).round for number in (1, 2)] == [1, 2]


def test_a_site_that_was_away_is_told_nothing_new_until_it_gets_the_round_that_it_lacks(site):
    rounds = Rounds(site.study).grow(4)
    assert site.give(rounds, 4) == Standing(0, 0)
    assert site.give(rounds, 2) == Standing(0, 0)
    assert [site.give(rounds, number).round for number in (1, 2, 3, 4)] == [1, 2, 3, 4]
    assert bits(site.checkpoint()) == bits(rounds.checkpoints[4])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["follow", "write_private", "rename"])
def test_a_site_that_is_killed_at_any_step_goes_on_bit_for_bit(site, monkeypatch, where):
    rounds = Rounds(site.study).grow(3)
    site.give(rounds, 1)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if where == "rename":
            patch.setattr(Path, "unlink", killed)  # the new state is there, and the old one still
        else:
            patch.setattr(followed_runs, where, killed)
        with pytest.raises(Killed):
            site.give(rounds, 2)
    (message, part), *_ = rounds.messages(2)
    assert site.take(message, part).round == 2  # the first part again: all of it is here
    site.give(rounds, 3)
    assert bits(site.checkpoint()) == bits(rounds.checkpoints[3])


def test_a_part_that_came_already_is_not_needed_again(site):
    rounds = Rounds(site.study).grow(1)
    (first, one), (second, two), (third, three) = rounds.messages(1)
    assert site.take(first, one) == Standing(0, PART)
    assert site.take(third, three) == Standing(0, PART)  # would leave a gap
    assert site.take(second, two) == Standing(0, 2 * PART)
    assert site.take(first, one) == Standing(0, 2 * PART)
    assert site.take(third, three) == Standing(1, 0)


def test_a_spoilt_state_on_disk_is_never_used(site, caplog):
    rounds = Rounds(site.study).grow(2)
    site.give(rounds, 1)
    (path,) = (site.home / "replay" / RUN).iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert site.checkpoint().round == 0
    assert "followed anew from its start" in caplog.text
    assert [site.give(rounds, number).round for number in (1, 2)] == [1, 2]
    assert bits(site.checkpoint()) == bits(rounds.checkpoints[2])


def test_a_total_that_the_disk_spoilt_is_asked_for_again(site, monkeypatch, caplog):
    rounds = Rounds(site.study).grow(1)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(followed_runs, "follow", killed)
        with pytest.raises(Killed):
            site.give(rounds, 1)
    (path,) = (site.home / "replay" / RUN).iterdir()
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    (message, part), *_ = rounds.messages(1)
    assert site.take(message, part) == Standing(0, 0)
    assert "asked for again" in caplog.text
    assert site.give(rounds, 1) == Standing(1, 0)
    assert bits(site.checkpoint()) == bits(rounds.checkpoints[1])


@pytest.mark.parametrize("sites", [("hub",) * 4, tuple("abcdefgh"), ("svi",), ()], ids=str)
def test_a_total_over_sites_that_the_study_never_sums_is_refused_whoever_signed_it(site, sites):
    """Its bound grows with the sites in it: a thousand made-up ones would allow a total a thousand times as long."""
    rounds = Rounds(site.study)
    total = bytes(round_start(site.study, rounds.checkpoints[0]).planned.ring_bits // 8 * DIM)
    outcome = rounds.signed(1, total, sites=sites)
    with pytest.raises(MessageInvalid, match="no sum over these sites"):
        site.take(rounds.message(1, outcome=outcome), total)
    assert site.checkpoint().round == 0


def test_a_made_up_total_with_two_signatures_is_refused(site):
    rounds = Rounds(site.study).grow(1)
    total = bytes(len(rounds.totals[0]))
    for by in (("agg-a", "agg-b"), ("agg-a", "agg-b", "agg-b"), ("agg-a", "agg-b", "coordinator")):
        with pytest.raises(MessageInvalid):
            site.take(rounds.message(1, outcome=rounds.signed(1, total, by=by)), total)
    assert site.checkpoint().round == 0


def test_a_total_that_is_not_the_signed_one_is_refused_and_not_kept(site):
    rounds = Rounds(site.study).grow(1)
    forged = bytearray(rounds.totals[0])
    forged[0] ^= 1
    with pytest.raises(MessageInvalid, match="not the bytes that were announced"):
        site.take(rounds.message(1), bytes(forged))
    assert site.checkpoint().round == 0
    assert site.give(rounds, 1) == Standing(1, 0)


def test_a_total_of_another_run_study_or_round_is_refused(site, tmp_path):
    rounds = Rounds(site.study).grow(2)
    site.give(rounds, 1)
    other_run = Rounds(site.study, run="run-2", seed=1).grow(2)
    (tmp_path / "other").mkdir()
    other_study = Rounds(study_of(tmp_path / "other", "adam")).grow(2)
    renumbered = rounds.outcomes[0].model_copy(update={"round": 2})
    for outcome in (other_run.outcomes[1], other_study.outcomes[1], renumbered):
        with pytest.raises(MessageInvalid, match="is about another round"):
            site.take(rounds.message(2, outcome=outcome), rounds.totals[1])
    assert site.checkpoint().round == 1


def test_an_older_total_that_is_replayed_changes_nothing(site):
    rounds = Rounds(site.study).grow(2)
    for number in (1, 2):
        site.give(rounds, number)
    before = bits(site.checkpoint())
    for number in (1, 2):
        assert site.give(rounds, number) == Standing(2, 0)
    assert bits(site.checkpoint()) == before


def test_a_total_of_updates_from_another_state_is_refused(site):
    """Two totals of one round: a coordinator that runs the round twice cannot have a site take the second's sequel."""
    rounds, fork = Rounds(site.study).grow(1), Rounds(site.study, seed=1).grow(2)
    site.give(rounds, 1)
    with pytest.raises(StateRefused, match="not of updates that started from the state that follows"):
        site.give(fork, 2)
    assert bits(site.checkpoint()) == bits(rounds.checkpoints[1])


def test_with_tags_the_signed_start_covers_the_tag_key(tmp_path):
    site = FollowingSite(tmp_path / "svi", study_of(tmp_path, "tags"))
    rounds = Rounds(site.study).grow(1)
    with pytest.raises(StateRefused):
        site.take(rounds.message(1).model_copy(update={"tag_key": "ab" * 32}), rounds.totals[0])
    assert site.give(rounds, 1).round == 1


def test_a_total_that_is_too_long_is_refused_before_the_step_whoever_signed_it(site):
    rounds, planned = Rounds(site.study), site.study.planned_round(1)
    assert planned.bound_units is not None
    entry = int(2.01 * 4 * planned.bound_units / DIM**0.5)
    total = np.full(DIM, entry, "<u8" if planned.ring_bits == 64 else "<u4").tobytes()
    with pytest.raises(StateRefused, match="longer than a total of 4 sites can be"):
        site.take(rounds.message(1, outcome=rounds.signed(1, total)), total)
    assert site.checkpoint().round == 0


def test_the_evaluation_has_no_total_to_follow(tmp_path):
    site = FollowingSite(tmp_path / "svi", study_of(tmp_path).model_copy())
    rounds = Rounds(site.study)
    late = rounds.signed(1, b"").model_copy(update={"round": 41})
    assert site.take(rounds.message(1, outcome=late), b"") == Standing(0, 0)


def test_a_start_that_is_not_the_study_s_is_refused(site, monkeypatch):
    rounds = Rounds(site.study).grow(1)
    monkeypatch.setattr(FollowingSite, "start", lambda _: np.full(DIM, 1e6, np.float32))
    with pytest.raises(StateRefused, match="is not the one that it states"):
        site.give(rounds, 1)
