import math
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import poisson

from confide.client_node.errors import StudyInvalid
from confide.client_node.study import cost
from confide.client_node.study.study import Study
from confide.client_node.study.terms import AggregationTerms, load_draft
from confide.mpc.sharing.sketch import largest_bound
from confide.privacy.report import study_terms

DIM = 1000
NOISY = ("noise_multiplier = 1.19", "noise_multiplier = 4.0")  # small losses are composed faster
EVALUATED = ("[rounds]", "[evaluation]\nnoise_multiplier = 8.0\n[rounds]")
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def draft(write_draft):
    return load_draft(write_draft(EVALUATED, NOISY))


@pytest.mark.process
def test_reading_a_study_loads_no_accountant_and_no_torch():
    """Every command and every node reads studies; only what asks for a cost pays for the accountants."""
    code = "import sys, confide.client_node.study; print({*sys.modules} & {'dp_accounting', 'scipy', 'torch'})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


@pytest.mark.process
@pytest.mark.parametrize("example", ["thyroid", "outlook"])
def test_reading_a_study_of_tasks_or_of_one_outcome_loads_no_reader_of_tables_either(example):
    path = Path(__file__).parents[3] / "examples" / example / "study.toml"
    code = (
        "import sys, pathlib; from confide.client_node.study import load_draft; "
        f"load_draft(pathlib.Path({str(path)!r})); print({{*sys.modules}} & {{'torch', 'pyarrow', 'scipy'}})"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


TOPPED = ("max_dropouts = 0", 'max_dropouts = 1\ndropouts = "top-up"')
SPARED = ("max_dropouts = 0", "max_dropouts = 1")
ADAPTIVE = ("clip_norm = 1.0", 'clip_norm = 0.5\nclipping = "adaptive"')
LOCAL = (
    ('mode = "distributed"', 'mode = "local"'), ("collusion = 1", "collusion = 1\nlocal_steps = 4"),
    ("lr = 0.3", "lr = 0.3\nlocal_lr = 0.1"),
)  # fmt: skip


@pytest.mark.parametrize("changes", [(), (EVALUATED,), (EVALUATED, TOPPED), (SPARED,), (ADAPTIVE,), LOCAL])
def test_whoever_reads_a_report_takes_from_a_study_s_text_what_its_rounds_are_charged(make_study, changes):
    study = make_study(*changes)
    terms = study_terms.read(study.canonical().decode())
    assert study_terms.hash_of(study.canonical().decode()) == study.study_hash
    assert terms.cohort == tuple(sorted(study.site_names()))
    for number in (1, study.last_round):
        planned = study.planned_round(number)
        assert terms.release(planned.purpose) == cost.release(study, planned, sites=study.quorum)


def test_a_provisional_study_releases_what_the_real_one_does(make_study):
    study = make_study(EVALUATED)
    found = cost.provisional(study.draft, study.dim)
    assert found.last_round == study.last_round == 41
    for number in (1, 41):
        ours, real = found.planned_round(number), study.planned_round(number)
        assert (ours.dim, ours.clip_norm, ours.sample_rate) == (real.dim, real.clip_norm, real.sample_rate)
        assert ours.noise_multiplier == real.noise_multiplier
    assert found.quorum == study.quorum


@pytest.mark.parametrize("name", sorted(path.parent.name for path in EXAMPLES.glob("*/study.toml")))
@pytest.mark.parametrize("noise_multiplier", [0.5, 4.0])  # theirs are solved: about 2.4
@pytest.mark.parametrize("dim", [4_737, 16_513, 60_000])
def test_every_example_is_summed_in_32_bits(name, noise_multiplier, dim):
    draft = cost.with_noise(load_draft(EXAMPLES / name / "study.toml"), noise_multiplier)
    assert cost.ring_of(draft, dim).bits == 32


@pytest.mark.parametrize("batch_units", [0.001, 1.0, 5.0, 40.0, 1374.0, 1e6])
def test_the_clipped_units_of_a_step_are_fewer_than_the_ring_is_planned_for(draft, batch_units):
    """Exactly, for the Poisson limit of samples of that mean, which has the heaviest tail of them all."""
    rounds = draft.rounds.model_copy(update={"batch_units": batch_units})
    quiet = draft.model_copy(update={"rounds": rounds, "privacy": draft.privacy.model_copy(update={"mode": "none"})})
    quiet = quiet.model_copy(update={"aggregation": AggregationTerms(norm_check=False)})
    most = quiet.largest_total / quiet.privacy.clip_unit
    assert poisson.sf(most - 1, batch_units) < 1e-28


def test_every_mode_s_noise_is_in_the_largest_total(write_draft):
    """The std of the opened sum by definition: three of four sites make up the multiplier, or each of them alone."""
    for mode, variance in (("distributed", 1.19**2 * 4 / 3), ("local", 4 * 1.19**2), ("none", 0.0)):
        change = {"mode": mode, "collusion": 1}
        draft = load_draft(write_draft())
        draft = draft.model_copy(update={"privacy": draft.privacy.model_copy(update=change)})
        assert draft.largest_total == pytest.approx(4 * draft.max_norm + 10 * math.sqrt(variance))
        unchecked = draft.model_copy(update={"aggregation": AggregationTerms(norm_check=False)})
        assert unchecked.largest_total == pytest.approx(4 * 1374 + 30 + 10 * math.sqrt(variance))


def test_a_study_whose_sum_could_wrap_is_refused(make_study):
    """One bit more of scale than the ring was planned for at the very edge."""
    study = make_study(("[participants]", "[aggregation]\nnorm_check = false\n[participants]"))
    most = int(math.log2(2**31 / study.draft.largest_total))
    fields = {name: getattr(study, name) for name in Study.model_fields} | {"ring_bits": 32}
    Study(**fields | {"scale_bits": most})
    with pytest.raises(ValueError, match="wrap"):
        Study(**fields | {"scale_bits": most + 1})


@pytest.mark.parametrize("dim", [100, 16_514, 10**6])
@pytest.mark.parametrize("terms", ["max_norm = 2", "max_norm = 2000", "norm_check = false"])
@pytest.mark.parametrize("dropouts", ["over-provision", "top-up"])
def test_the_ring_of_a_draft_is_large_enough_to_check_a_norm(write_draft, dim, terms, dropouts):
    """Of an update, and of the longest top-up: two sites' for four."""
    draft = load_draft(
        write_draft(
            ("[participants]", f"[aggregation]\n{terms}\n[participants]"),
            ("min_sites = 3", "min_sites = 2"),
            ("max_dropouts = 0", f'max_dropouts = 2\ndropouts = "{dropouts}"'),
        )
    )
    ring, study = cost.ring_of(draft, dim), cost.provisional(draft, dim)
    bounds = [study.planned_round(1).bound_units, *(study.planned_topup(1, sites).bound_units for sites in (2, 3))]
    assert all(bound is None or bound <= largest_bound(ring.bits) for bound in bounds)
    assert math.ldexp(draft.largest_total, ring.scale_bits) + 4 < 2 ** (ring.bits - 1)
    assert math.sqrt(dim) * 2.0**-ring.scale_bits <= (1e-2 if ring.bits == 32 else 1e-3)


def test_a_sum_over_all_sites_has_more_noise_than_the_charge_counts_on(make_study):
    study = make_study(EVALUATED, ("max_dropouts = 0", "max_dropouts = 1"))
    assert [release.sites for release, _ in cost.planned_releases(study)] == [3, 3]
    assert [release.sites for release, _ in cost.planned_releases(study, sites=4)] == [4, 4]


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ([("[rounds]", "[evaluation]\nnoise_multiplier = 1.0\n[rounds]")], "raise evaluation.noise_multiplier"),
        ([("delta = 1e-5", "delta = 1e-12"), ("rounds = 40", "rounds = 90000")], "plan fewer rounds"),
    ],
    ids=["by the evaluation", "by the rounds"],
)
def test_a_target_out_of_reach_names_what_puts_it_there(write_draft, changes, remedy):
    hopeless = load_draft(write_draft(("noise_multiplier = 1.19", "target_epsilon = 0.01"), *changes))
    with pytest.raises(StudyInvalid, match="target_epsilon is 0.01.*or " + remedy):
        cost.solve_noise(hopeless, DIM)
