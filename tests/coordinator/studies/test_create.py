import hashlib
import json
import time

import dp_accounting as dpa
import numpy as np
import pytest

from confide.client_node.errors import StudyInvalid
from confide.client_node.study.cost import planned_releases, whole_cost
from confide.client_node.study.terms import load_draft
from confide.coordinator.errors import StateDamaged, StudyRefused
from confide.coordinator.studies.catalogue import load_study, start_file, study_start
from confide.coordinator.studies.learning_rates import with_rates
from confide.models.adapters.lora import AdapterConfig, attach
from confide.models.backbones.loading import backbone_hash, load
from confide.models.errors import InvalidBackbone
from confide.models.heads.pooling import PooledHead

from ...client_node.conftest import certificate_of, identity_of
from ..conftest import PARTIES, SITES


def test_a_study_names_the_registered_keys_and_addresses(federation):
    study = federation.create()
    assert [(site.name, site.identity) for site in study.sites] == [(name, identity_of(name)) for name in SITES]
    assert [(party.name, party.identity, party.address) for party in study.aggregators] == [
        (name, identity_of(name), f"{name}.example:7000") for name in PARTIES
    ]
    assert [party.certificate for party in study.aggregators] == [certificate_of(name) for name in PARTIES]
    assert study.coordinator == federation.pki.identity_hex


def test_a_stored_study_is_the_signed_one(federation):
    study = federation.create()
    row = federation.store.study("thyroid")
    assert load_study(row) == study
    assert row.hash == study.study_hash
    assert study.is_signed(row.signature)


def test_a_study_pins_the_backbone_and_the_size_of_its_adapter(federation):
    study = federation.create()
    backbone = load(federation.backbone, expected_hash=study.backbone_hash)
    head = PooledHead(backbone.center, backbone.whiten)
    assert attach(backbone.model, AdapterConfig(**study.adapter_config()), head=head).layout.dim == study.dim


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        (),
        (("max_dropouts = 0", "max_dropouts = 1"),),
        (("[rounds]", "[evaluation]\nnoise_multiplier = 8.0\n[rounds]"),),
    ],
    ids=["plain", "with room for a dropout", "with an evaluation"],
)
def test_noise_is_solved_for_the_target_of_the_whole_study(federation, changes):
    study = federation.create(("noise_multiplier = 1.19", "target_epsilon = 3.0"), *changes)
    privacy = study.draft.privacy
    assert privacy.target_epsilon == 3.0
    seen = [  # each release as an outsider sees it, by dp-accounting alone
        (release.noise_multiplier(privacy.collusion), release.sample_rate, count)
        for release, count in planned_releases(study)
    ]
    accountant = dpa.pld.PLDAccountant(value_discretization_interval=1e-3)
    for multiplier, rate, count in seen:
        accountant.compose(dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(multiplier)), count)
    for cost in (accountant.get_epsilon(privacy.delta), whole_cost(study)):
        assert 0.99 * 3.0 <= cost <= 3.0
    assert load_study(federation.store.study("thyroid")) == study


def test_a_target_out_of_reach_is_refused_and_nothing_stored(federation):
    with pytest.raises(StudyInvalid, match="no noise multiplier up to 512 reaches epsilon 1e-06"):
        federation.create(("noise_multiplier = 1.19", "target_epsilon = 1e-6"))
    assert federation.store.studies() == []


def test_a_study_keeps_the_operator_s_folders_to_itself(federation):
    assert str(federation.home.parent).encode() not in federation.create().canonical()


def test_the_ring_holds_the_sum_and_its_rounding_is_negligible(federation):
    study = federation.create()
    largest_batch = 4 * study.draft.rounds.batch_units * study.draft.privacy.clip_norm
    noise = 10 * study.draft.privacy.noise_multiplier * study.draft.privacy.clip_norm
    assert (largest_batch + noise) * 2**study.scale_bits < 2 ** (study.ring_bits - 1)
    assert study.dim**0.5 * 2.0**-study.scale_bits <= 1e-3 * study.draft.privacy.clip_norm


@pytest.mark.parametrize(("batch_units", "ring_bits"), [("20", 32), ("1e6", 64)])
def test_a_small_study_travels_in_the_small_ring(federation, batch_units, ring_bits):
    assert federation.create(("batch_units = 1374", f"batch_units = {batch_units}")).ring_bits == ring_bits


def test_a_run_begins_with_the_adapter_s_own_start(federation):
    study = federation.create()
    found = study_start(federation.home, study)
    assert found.backbone == federation.backbone
    assert found.start.round == 0
    assert found.start.state.shape == found.start.velocity.shape == (study.dim,)
    assert not found.start.velocity.any()
    assert not found.start.state.any()  # B and the head begin at zero: the adapter changes nothing yet
    assert study.start.head_size == 65  # a weight for each pooled coordinate and the constant
    assert study.start.state == hashlib.sha256(bytes(4 * study.dim)).hexdigest()


def test_a_start_that_is_not_the_one_in_the_study_s_hash_is_refused(federation):
    study = federation.create()
    path = start_file(federation.home, study.study_hash)
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"state": [1e6, *stored["state"][1:]]}))
    with pytest.raises(StateDamaged, match="is not the start that study thyroid states"):
        study_start(federation.home, study)


def test_a_start_file_that_is_gone_is_named(federation):
    study = federation.create()
    start_file(federation.home, study.study_hash).unlink()
    with pytest.raises(StateDamaged, match=r"create the study again from the same study\.toml"):
        study_start(federation.home, study)


def test_a_study_changed_in_the_store_is_refused(federation):
    study = federation.create()
    row = federation.store.study("thyroid")
    row.canonical = study.model_copy(update={"dim": study.dim + 1}).canonical()
    with pytest.raises(StateDamaged, match="is not the one that was approved"):
        load_study(row)


def test_the_same_draft_on_the_same_day_is_the_same_study(federation):
    first = federation.create()
    assert federation.create().study_hash == first.study_hash
    assert len(federation.store.studies()) == 1


def test_another_draft_is_another_study(federation):
    assert federation.create().study_hash != federation.create(("lr = 0.3", "lr = 0.4")).study_hash
    assert len(federation.store.studies()) == 2


def test_every_site_that_cannot_take_part_is_named_at_once(federation):
    federation.change("svi", enrolled_at=None)
    federation.change("svhc", revoked_at=time.time())
    federation.change("rest", roles="aggregate")
    with pytest.raises(StudyRefused) as caught:
        federation.create(('"other",', '"stranger",'))
    assert str(caught.value).splitlines()[1:] == [
        "  stranger is not a site; invite it: coordinator site invite stranger --role train",
        "  svi was invited and has not enrolled yet",
        "  svhc was revoked",
        "  rest has roles aggregate, the study needs it to train",
    ]


@pytest.mark.parametrize(
    ("values", "why"), [({"enrolled_at": None}, "has not enrolled"), ({"roles": "train"}, "needs it to aggregate")]
)
def test_an_aggregator_that_cannot_take_part_is_named(federation, values, why):
    federation.change("agg-b", **values)
    with pytest.raises(StudyRefused, match=f"agg-b .*{why}"):
        federation.create()


def test_a_refused_draft_leaves_nothing(federation):
    federation.change("svi", revoked_at=time.time())
    with pytest.raises(StudyRefused):
        federation.create()
    assert federation.store.studies() == []
    assert not (federation.home / "studies").exists()


def test_a_backbone_of_another_schema_is_refused(federation):
    with pytest.raises(StudyRefused, match=r"another schema than \[data\] describes"):
        federation.create(("TSH = [0.4, 4.0, 10.0]", "TSH = [0.4, 4.0]"))


def test_adapters_on_experts_that_no_token_reaches_are_refused_unless_that_is_accepted(federation, collapsed):
    """They would take noise, charge nobody less, and learn nothing."""
    on_collapsed = (str(federation.backbone), str(collapsed))
    with pytest.raises(StudyRefused, match=r"no token to experts 2, 3 of layer 1, .* leave \"experts\" out") as refused:
        federation.create(on_collapsed)
    assert "--accept-unused-experts" in str(refused.value)
    assert federation.store.studies() == []
    assert federation.create(on_collapsed, accept_unused_experts=True).backbone_hash == backbone_hash(collapsed)


def test_unused_experts_do_not_matter_to_a_study_that_adapts_none(federation, collapsed):
    federation.create((str(federation.backbone), str(collapsed)), (', "experts"]', "]"))


def test_a_backbone_that_is_not_there_is_refused(federation):
    with pytest.raises(InvalidBackbone, match="nowhere"):
        federation.create((str(federation.backbone), "nowhere"))


def test_a_backbone_s_path_is_read_beside_the_draft(federation):
    (federation.home / "near").symlink_to(federation.backbone)
    study = federation.create((str(federation.backbone), "near"))
    assert study_start(federation.home, study).backbone == federation.backbone


def test_a_wrong_draft_is_refused_before_anything_is_loaded(federation):
    with pytest.raises(StudyInvalid, match="clip_norm"):
        federation.create(("clip_norm = 1.0", "clip_norm = -1.0"), (str(federation.backbone), "nowhere"))


def test_the_start_survives_json_bit_for_bit(federation):
    study = federation.create()
    backbone = load(federation.backbone)
    adapted = attach(
        backbone.model, AdapterConfig(**study.adapter_config()), head=PooledHead(backbone.center, backbone.whiten)
    )
    np.testing.assert_array_equal(study_start(federation.home, study).start.state, adapted.state())


def test_an_adaptive_study_begins_with_its_clip_where_the_draft_says(federation):
    fixed = federation.create()
    study = federation.create(("clip_norm = 1.0", 'clip_norm = 0.5\nclipping = "adaptive"'))
    found = study_start(federation.home, study)
    assert study.dim == fixed.dim + 1 == len(found.start.state)
    assert found.start.state[-1] == 0  # the logarithm of the clip over clip_norm
    assert study.start.head_size == 65


def test_a_study_states_the_rates_that_were_chosen_for_it(federation):
    study = federation.create(("lr = 0.3\nhead_lr = 10.0\n", ""))
    draft = load_draft(federation.home / "study.toml")
    assert study.draft.optimizer.rates == with_rates(draft, study.dim - 65).optimizer.rates
