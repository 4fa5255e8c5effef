import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from confide.client_node.data.kept_files import KeptStates
from confide.client_node.data.records import read
from confide.client_node.policy.site_policy import load_policy
from confide.client_node.study.terms import StudyDraft
from confide.client_node.training import trainer as trainer_module
from confide.client_node.training.study_model import StudyModel, load_study_model
from confide.client_node.training.trainer import Trainer
from confide.kernels.formats import Int8Row, NF4Block64
from confide.kernels.linear import QuantisedLinear, packed_stacks
from confide.models.backbones.loading import load, save
from confide.models.backbones.moments import take_moments
from confide.models.errors import BackboneMismatch, InvalidBackbone
from confide.models.evaluation.binned import bin_edges, bin_of
from confide.models.heads.signature import signatures
from confide.privacy.errors import InvalidPrivacyParameter, UnitsCoupled

from ...models.tiny import byte_tokenizer, save_text_backbone
from ..conftest import CHAT, CHAT_CSV, DOCUMENT, NOTES_CSV, PATIENTS_CSV, TEXT, TURNS, Site, of_model, tokens
from ..test_node import Desk, make_desk

BINS = 20


def new_trainer(desk: Desk, *, max_rows: int = 64, kept: KeptStates | None = None) -> Trainer:
    policy = load_policy(desk.site.home)
    return Trainer(
        desk.study,
        policy.backbone.directory,
        lambda: read(policy, desk.study, site=None),
        site="svi",
        site_noise=desk.study.site_noise(desk.study.planned_round(1)),
        max_rows=max_rows,
        threads=1,
        kept=kept,
    )


def test_a_site_counts_as_much_as_the_study_says(site: Site):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    every = ("sample_rate = 0.2", "sample_rate = 1.0")
    desk = make_desk(site, *none, every)
    state = np.zeros(desk.study.dim, "<f4")
    whole = new_trainer(desk).release(state, 1)
    aggregation = desk.study.draft.aggregation.model_copy(update={"weights": {"svi": 0.5}})
    draft = desk.study.draft.model_copy(update={"aggregation": aggregation})
    desk = replace(desk, study=desk.study.model_copy(update={"draft": draft}))
    half = new_trainer(desk).release(state, 1)
    assert np.abs(whole).max() > 1000
    assert np.abs(half - whole / 2).max() <= 1


@pytest.mark.parametrize(("experts", "form"), [("int8", Int8Row), ("nf4", NF4Block64)])
def test_routed_experts_are_held_and_trained_on_in_the_format_that_the_study_says(site: Site, experts: str, form: type):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(site, *none, ("sample_rate = 0.2", "sample_rate = 1.0"))
    terms = desk.study.draft.model.model_copy(update={"experts": experts})
    draft = desk.study.draft.model_copy(update={"model": terms})
    plain = new_trainer(desk)
    packed = new_trainer(replace(desk, study=desk.study.model_copy(update={"draft": draft})))
    (bank,) = (module for name, module in packed.adapted.adapters.items() if name.endswith(".experts"))
    assert isinstance(bank.base.confide_experts.gate_up, form)
    assert isinstance(bank.base.confide_experts.down, form)
    state = plain.adapted.state() + np.random.default_rng(0).normal(0, 0.05, len(plain.adapted.state()))
    first, second = (trainer.release(state, 1) * 2.0**-24 for trainer in (plain, packed))
    assert 0 < np.linalg.norm(first - second) < 0.2 * np.linalg.norm(first)  # other experts by a rounding, same records


def test_linear_layers_are_held_and_trained_on_in_the_format_that_the_study_says(site: Site):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(site, *none, ("sample_rate = 0.2", "sample_rate = 1.0"))
    terms = type(desk.study.draft.model)(backbone=desk.study.draft.model.backbone, frozen="nf4")
    draft = desk.study.draft.model_copy(update={"model": terms})
    plain = new_trainer(desk)
    packed = new_trainer(replace(desk, study=desk.study.model_copy(update={"draft": draft})))
    layers = [module for module in packed.adapted.modules() if isinstance(module, QuantisedLinear)]
    assert layers
    stacks = [stack for module in packed.adapted.modules() for stack in packed_stacks(module)]
    assert len(stacks) == len(layers) + 2  # the experts are held as all else
    assert {type(stack) for stack in stacks} == {NF4Block64}
    assert any(isinstance(adapter.base, QuantisedLinear) for adapter in packed.adapted.adapters.values())
    state = plain.adapted.state() + np.random.default_rng(0).normal(0, 0.05, len(plain.adapted.state()))
    first, second = (trainer.release(state, 1) * 2.0**-24 for trainer in (plain, packed))
    assert 0 < np.linalg.norm(first - second) < 0.4 * np.linalg.norm(first)  # other weights by a rounding


def test_a_histogram_counts_the_scores_that_the_model_gives(site: Site):
    table = PATIENTS_CSV.replace("p1,35", "p4,35")  # a unit for every record
    (site.home / "patients.csv").write_text(table)
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(site, *none, ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]"))
    trainer, policy = new_trainer(desk, max_rows=3), load_policy(site.home)
    state = np.random.default_rng(1).normal(0, 0.5, desk.study.dim).astype(np.float32)
    counts = trainer.histogram(state, lambda: read(policy, desk.study, site=None), 41, site_noise=0) / 2**20
    records = read(policy, desk.study, site=None)
    trainer.adapted.load_state(state)
    with torch.no_grad():
        scores = trainer.adapted.classify(torch.from_numpy(tokens(desk.study, records))).numpy()
    assert (
        np.abs(scores[:, None] - bin_edges(BINS)).min() > 1e-4
    )  # so far from an edge, a batch's rounding is no matter
    loop = np.zeros((2, BINS))
    for score, label in zip(scores, records.labels, strict=True):
        loop[label, sum(score >= edge for edge in bin_edges(BINS))] += 1
    assert len(set(bin_of(scores, BINS))) > 1
    np.testing.assert_array_equal(counts.reshape(2, BINS), loop)


def test_a_record_is_counted_by_itself_whoever_its_neighbours_are(site: Site, monkeypatch: pytest.MonkeyPatch):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(site, *none, ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]"))
    trainer, policy = new_trainer(desk), load_policy(site.home)
    seen = []
    monkeypatch.setattr(trainer.adapted, "classify", lambda ids: seen.append(ids) or torch.zeros(len(ids)))
    trainer.histogram(np.zeros(desk.study.dim), lambda: read(policy, desk.study, site=None), 41, site_noise=0)
    records = tokens(desk.study, read(policy, desk.study, site=None))
    assert [ids.tolist() for ids in seen] == [[[word for word in row if word]] for row in records.tolist()]


def test_a_table_without_records_has_an_empty_histogram(site: Site):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(site, *none, ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]"))
    (site.home / "patients.csv").write_text(PATIENTS_CSV.splitlines()[0] + "\n")
    records = read(load_policy(site.home), desk.study, site=None)
    counts = new_trainer(desk).histogram(np.zeros(desk.study.dim), lambda: records, 41, site_noise=0)
    assert counts.tolist() == [0] * 2 * BINS


class CentredOverRows(torch.nn.Module):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states - states.mean(0)


def test_a_model_that_mixes_records_is_refused_by_the_name_of_the_module(site: Site, monkeypatch: pytest.MonkeyPatch):
    desk, real = make_desk(site), trainer_module.load_study_model

    def load_sabotaged(draft: StudyDraft, directory: Path, *, expected_hash: str) -> StudyModel:
        loaded = real(draft, directory, expected_hash=expected_hash)
        base = loaded.adapted.model.model
        base.norm = torch.nn.Sequential(base.norm, CentredOverRows())
        return loaded

    new_trainer(desk)
    monkeypatch.setattr(trainer_module, "load_study_model", load_sabotaged)
    with pytest.raises(UnitsCoupled, match=r"model\.norm\.1 mixes rows"):
        new_trainer(desk)


def test_limits_below_a_units_records_are_refused_before_anything_is_charged(site: Site):
    with pytest.raises(InvalidPrivacyParameter, match="max_records_per_unit"):
        new_trainer(make_desk(site), max_rows=1)


def test_another_number_of_trained_parameters_is_refused(site: Site):
    desk = make_desk(site)
    desk.study = desk.study.model_copy(update={"dim": desk.study.dim + 1})
    with pytest.raises(BackboneMismatch, match="trained parameters, the study says"):
        new_trainer(desk)


NONE = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))


LAST_LAYER = ('seed = "thyroid-1"', 'seed = "thyroid-1"\nlayers = [1]')


def text_desk(site: Site, *changes: tuple[str, str], kind=TEXT, table: str = NOTES_CSV) -> Desk:
    """A desk whose study learns to write the findings of `NOTES_CSV`, or what else the table holds."""
    save_text_backbone(site.home / "backbone")
    (site.home / "patients.csv").write_text(table)
    draft = site.study(*kind, ("sample_rate = 0.2", "sample_rate = 1.0"), *changes)
    model = load_study_model(draft.draft, site.home / "backbone")
    study = of_model(draft, model.backbone_hash, model.adapted)
    return Desk(site, study, None, None, [])  # type: ignore[arg-type]


def written(desk: Desk, state: np.ndarray) -> list[tuple[bool, float]]:
    """Of each record, whether the likeliest words are the completion, and the mean log-likelihood of that."""
    model = load_study_model(desk.study.draft, desk.site.home / "backbone")
    model.adapted.load_state(state)
    tokenizer, found = byte_tokenizer(), []
    for note, finding in (("feels tired, <|end|> gains weight", "low"), ("", "none"), ("sweats", "high")):
        core = tokenizer.backend_tokenizer
        core.encode_special_tokens = True
        plain = core.encode(note, add_special_tokens=False).ids
        core.encode_special_tokens = False
        prompt = core.encode("<|start|>").ids + plain + core.encode("\n").ids
        asked = core.encode(finding + "<|end|>").ids
        with torch.no_grad():
            logits = model.adapted.model(input_ids=torch.tensor([prompt + asked])).logits[0, len(prompt) - 1 : -1]
        likely = torch.log_softmax(logits.double(), -1)[torch.arange(len(asked)), asked]
        found.append((logits.argmax(-1).tolist() == asked, float(likely.mean())))
    return found


@pytest.mark.parametrize("layers", [None, LAST_LAYER], ids=["all layers", "from kept states"])
@pytest.mark.parametrize(
    ("kind", "table"), [(TEXT, NOTES_CSV), ((*TEXT, TURNS), NOTES_CSV), (CHAT, CHAT_CSV)], ids=["text", "turns", "chat"]
)
def test_free_text_is_released_as_the_clipped_sum_of_losses_on_completions(site: Site, kind, table: str, layers):
    desk = text_desk(site, *NONE, *([] if layers is None else [layers]), kind=kind, table=table)
    trainer = new_trainer(desk, kept=KeptStates(home=None, study_hash="s", most_bytes=2**20))
    trainer.keep(seconds=60)
    assert trainer.starts_from == ("tokens" if layers is None else "kept states")
    got = trainer.release(np.zeros(desk.study.dim, np.float32), 1) * 2.0**-desk.study.scale_bits
    model = load_study_model(desk.study.draft, desk.site.home / "backbone")
    examples = model.examples(read(load_policy(site.home), desk.study, site=None))
    total = np.zeros(desk.study.dim)
    for unit in (0, 1):
        rows = examples.units == unit
        losses = model.adapted.losses(torch.from_numpy(examples.ids[rows]), torch.from_numpy(examples.targets[rows]))
        grads = torch.autograd.grad(losses.mean(), list(model.adapted.trained.values()))
        gradient = np.concatenate([grad.double().numpy().ravel() for grad in grads])
        total += gradient * min(1.0, 1.0 / np.linalg.norm(gradient))
    np.testing.assert_allclose(got, total, atol=1e-5)
    assert np.linalg.norm(total) > 0.1


def test_a_histogram_of_free_text_counts_exact_completions_by_their_likelihood(site: Site):
    desk = text_desk(site, *NONE, ("max_records_per_unit = 2", "max_records_per_unit = 1"),
                     ("[participants]", f"[evaluation]\nbins = {BINS}\n[participants]"))  # fmt: skip
    (site.home / "patients.csv").write_text(NOTES_CSV.replace("p1,sweats", "p3,sweats"))
    trainer, policy = new_trainer(desk), load_policy(site.home)
    state = np.random.default_rng(1).normal(0, 0.5, desk.study.dim).astype(np.float32)
    counts = trainer.histogram(state, lambda: read(policy, desk.study, site=None), 41, site_noise=0) / 2**20
    want = np.zeros((2, BINS))
    for is_exact, mean_log in written(desk, state):
        want[int(is_exact), bin_of([mean_log - np.log(-np.expm1(mean_log))], BINS)[0]] += 1
    np.testing.assert_array_equal(counts.reshape(2, BINS), want)


def test_a_backbone_without_a_tokenizer_is_refused_by_a_study_of_free_text(site: Site):
    desk = text_desk(site)
    (site.home / "backbone" / "tokenizer.json").unlink()
    with pytest.raises(BackboneMismatch):
        new_trainer(desk)
    with pytest.raises(InvalidBackbone, match=r"no tokenizer\.json"):
        load_study_model(desk.study.draft, site.home / "backbone")


def test_a_classifier_on_a_backbone_without_moments_is_refused(site: Site):
    study = site.study(*DOCUMENT)
    save_text_backbone(site.home / "backbone")
    with pytest.raises(BackboneMismatch, match="has no moments of its pooled states"):
        load_study_model(study.draft, site.home / "backbone")


def test_a_site_s_log_names_adapted_experts_to_which_no_public_token_goes(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    desk = make_desk(site)
    new_trainer(desk)
    assert not caplog.records
    loaded = load(site.home / "backbone")
    for name, tensor in loaded.model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor[:2] = 9.0
    shutil.rmtree(site.home / "backbone")
    digest = save(loaded.model, loaded.schema, loaded.center, loaded.whiten, site.home / "backbone")
    new_trainer(replace(desk, study=desk.study.model_copy(update={"backbone_hash": digest})))
    (record,) = caplog.records
    assert "experts 2, 3 of layer 1" in record.getMessage()


def test_a_prototype_is_the_sum_of_the_units_mean_signatures_at_the_backbone(site: Site):
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(site, *none, ("[participants]", "[prototype]\nlength = 16\n[participants]"))
    trainer = new_trainer(desk)
    before = trainer.release(np.ones(desk.study.dim, "<f4"), 1)
    found = trainer.prototype(41, site_noise=0) / 2**20
    records = read(load_policy(site.home), desk.study, site=None)
    backbone = load(load_policy(site.home).backbone.directory)
    want = np.zeros(16)
    for unit in np.unique(records.units):
        own = [tokens(desk.study, records)[row : row + 1] for row in np.flatnonzero(records.units == unit)]
        with torch.no_grad():
            vectors = [signatures(backbone.model, backbone.head(), torch.from_numpy(ids), 16)[0] for ids in own]
        want += torch.stack(vectors).double().mean(0).numpy()
    np.testing.assert_allclose(found, want, atol=1e-5)
    np.testing.assert_array_equal(trainer.release(np.ones(desk.study.dim, "<f4"), 1), before)


def test_a_record_is_read_by_itself_for_a_prototype(site: Site):
    """A longer neighbour pads a batch and moves last bits, so each unit's part must not depend on the table."""
    none = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
    desk = make_desk(site, *none, ("[participants]", "[prototype]\nlength = 16\n[participants]"))
    head, *rows = PATIENTS_CSV.splitlines()
    first, others = ([row for row in rows if row.startswith("p1,") == is_first] for is_first in (True, False))
    found = []
    for some in (rows, first, others):
        (site.home / "patients.csv").write_text("\n".join([head, *some]) + "\n")
        found.append(new_trainer(desk).prototype(41, site_noise=0))
    np.testing.assert_array_equal(found[0], found[1] + found[2])
    assert np.abs(found[1]).max() > 2**15


def test_a_prototype_of_free_text_reads_prompts_alone(site: Site, tmp_path: Path):
    save_text_backbone(tmp_path / "plain")
    texts = ["fever and cough", "a broken leg", "nothing to report", "pain in the chest"]
    take_moments(tmp_path / "plain", texts, tmp_path / "backbone", reads=(0, 2))
    draft = site.study(*TEXT, *NONE, ("[participants]", "[prototype]\nlength = 16\n[participants]"))
    model = load_study_model(draft.draft, tmp_path / "backbone")
    study = of_model(draft, model.backbone_hash, model.adapted)
    found = []
    for table in (NOTES_CSV, NOTES_CSV.replace("high", "not known"), NOTES_CSV.replace("sweats", "no sweats")):
        (site.home / "patients.csv").write_text(table)
        policy = load_policy(site.home)
        trainer = Trainer(
            study, tmp_path / "backbone", lambda policy=policy: read(policy, study, site=None), site="svi",
            site_noise=0, max_rows=64, threads=1,
        )  # fmt: skip
        found.append(trainer.prototype(41, site_noise=0))
    np.testing.assert_array_equal(found[0], found[1])  # another completion
    assert np.abs(found[0] - found[2]).max() > 2**15  # another prompt


def test_a_prototype_needs_a_backbone_with_moments_of_so_many_numbers(site: Site):
    desk = make_desk(site, ("[participants]", "[prototype]\nlength = 4096\nnoise_multiplier = 40.0\n[participants]"))
    with pytest.raises(BackboneMismatch, match="so a prototype has at most as many, not 4096"):
        new_trainer(desk)
