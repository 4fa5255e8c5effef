import pytest

from confide.client_node.policy.site_policy import load_policy
from confide.client_node.training.warm_model import WarmModel


class PlayedTrainer:
    """Stands where a model would be and notes its end."""

    def __init__(self, study):
        self.study, self.is_stopped = study, False

    def stop(self):
        self.is_stopped = True


@pytest.fixture
def made(monkeypatch):
    """Every model that was made."""
    trainers = []

    def make(self, study, policy):
        trainers.append(PlayedTrainer(study))
        return trainers[-1]

    monkeypatch.setattr(WarmModel, "_new_trainer", make)
    return trainers


@pytest.fixture
def studies(make_study):
    return [make_study(('name = "thyroid"', f'name = "{name}"')) for name in ("one", "two", "three")]


@pytest.fixture
def policy(site):
    return load_policy(site.home)


def test_two_studies_that_ask_in_turn_make_one_model_each(made, studies, policy):
    model = WarmModel("svi")
    for study in (*studies[:2], *studies[:2], *studies[:2]):
        assert model.load(study, policy).study is study
    assert len(made) == 2


def test_the_model_used_longest_ago_makes_room_for_a_third(made, studies, policy):
    model = WarmModel("svi")
    for study in (studies[0], studies[1], studies[0], studies[2]):
        model.load(study, policy)
    assert [each.is_stopped for each in made] == [False, True, False]
    assert model.load(studies[0], policy) is made[0]


def test_a_site_with_little_memory_keeps_one(made, studies, policy):
    policy = policy.model_copy(update={"limits": policy.limits.model_copy(update={"warm_studies": 1})})
    model = WarmModel("svi")
    for study in (studies[0], studies[1], studies[0]):
        model.load(study, policy)
    assert [each.is_stopped for each in made] == [True, True, False]


def test_a_changed_table_makes_only_that_study_s_model_anew(made, studies, policy):
    model = WarmModel("svi")
    model.load(studies[0], policy)
    model.load(studies[1], policy)
    with policy.data.path.open("a") as table:
        table.write("\n")
    assert model.load(studies[0], policy) is made[2]
    assert [each.is_stopped for each in made] == [True, False, False]


def test_all_models_end_with_the_node(made, studies, policy):
    model = WarmModel("svi")
    model.load(studies[0], policy)
    model.load(studies[1], policy)
    model.stop()
    assert all(each.is_stopped for each in made)
    model.load(studies[0], policy)
    assert len(made) == 3
