import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from confide.models.adapters import AdapterConfig, attach
from confide.models.errors import InvalidAdapter
from confide.models.heads import PooledHead
from confide.models.heads.objectives import BinaryLabel, OneClass, PointOnScale, SeveralTasks, Task, TextTask
from confide.models.heads.written import ASKED, WRITTEN, apart, documents, joined

from ..tiny import random_ids, tiny_deepseek

TASKS = (Task("ill", BinaryLabel(), 2.0), Task("stage", OneClass(("a", "b", "c"))))
TOKENS = 12
ENDS = ((5, 7, 12), (3, 4, 9), (9, 9, 9), (12, 12, 12), (1, 3, 12))  # of document, of what is asked, of the text


def writing(*, reads=None, text_weight=0.7, targets=("down_proj",)):
    """A model with a head that reads documents and a text behind them, away from its start, in float64."""
    model = tiny_deepseek(dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    sizes = (64,) if reads is None else (len(reads), 32)
    whiten = torch.randn((*sizes, sizes[-1]), generator=generator, dtype=torch.float64) / 8
    head = PooledHead(
        torch.randn(sizes, generator=generator, dtype=torch.float64),
        whiten,
        objective=SeveralTasks(TASKS, text=TextTask("summary", "In short:", text_weight)),
        reads=reads,
    )
    adapted = attach(model, AdapterConfig(rank=3, alpha=6.0, targets=targets, seed="s"), head)
    adapted.load_state(np.random.default_rng(0).normal(size=adapted.layout.dim) * 0.2)
    return adapted


def rows():
    """Records of many lengths, some without a text, one without padding, and their targets."""
    ids, place = random_ids(len(ENDS), TOKENS).numpy(), np.arange(TOKENS)
    document, asked, text = (np.array(ends)[:, None] for ends in zip(*ENDS, strict=True))
    ids[place >= text] = 0
    objective = SeveralTasks(TASKS)
    told = objective.joined(
        [np.array([0, 1, 1, 0, 1]), np.array([2, 0, 1, 0, 2])],
        [np.array([True, True, False, True, False]), np.array([True, False, True, True, False])],
    )
    return ids, joined(told, (place >= document) & (place < asked), (place >= asked) & (place < text)), told


def test_what_is_joined_comes_apart_again():
    ids, targets, told = rows()
    found = apart(torch.from_numpy(targets))
    assert found.targets_R.tolist() == told.tolist()
    assert found.is_written_RT.sum(1).tolist() == [text - asked for _, asked, text in ENDS]
    assert (~found.is_document_RT).sum(1).tolist() == [text - document for document, _, text in ENDS]
    assert not found.is_written_RT[:, 0].any()
    assert found.is_document_RT[:, 0].all()
    read = documents(ids, targets)
    for row, (document, _, _) in enumerate(ENDS):
        assert read[row].tolist() == [*ids[row, :document].tolist(), *[0] * (TOKENS - document)]
        assert documents(ids[row], targets[row]).tolist() == read[row].tolist()
    assert documents(ids, told) is ids
    assert documents(ids[0], told[0]) is ids[0] or (documents(ids[0], told[0]) == ids[0]).all()
    assert {ASKED, WRITTEN} == {1, 2}


def test_the_first_number_is_the_head_s_whatever_the_masks_say_of_the_first_token():
    found = joined(np.array([2**61 - 1, 0]), np.ones((2, 3), bool), np.zeros((2, 3), bool))
    assert found.tolist() == [[2**61 - 1, ASKED, ASKED], [0, ASKED, ASKED]]


@pytest.mark.parametrize("reads", [None, (0, 1), (1, 2), (0,)])
def test_losses_are_those_of_the_head_on_documents_alone_and_of_the_text_behind_all_that_stands_before(reads):
    adapted = writing(reads=reads)
    ids, targets, told = rows()
    found = adapted.losses(torch.from_numpy(ids), torch.from_numpy(targets))
    for row, (document, asked, text) in enumerate(ENDS):
        own = torch.from_numpy(ids[row : row + 1])
        outputs = adapted.classify(own[:, :document])
        want = adapted.head.objective.losses(outputs, torch.tensor([told[row]]))[0]
        if text > asked:
            logits = adapted.model(input_ids=own[:, :text], use_cache=False).logits[0]
            want = want + 0.7 * F.cross_entropy(logits[asked - 1 : text - 1], own[0, asked:text])
        torch.testing.assert_close(found[row], want, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_two_passes():
    adapted, (ids, targets, told) = writing(reads=(1, 2)), rows()
    other = copy.deepcopy(adapted)
    adapted.losses(torch.from_numpy(ids), torch.from_numpy(targets)).sum().backward()
    of_head = other.head.objective.losses(
        other.classify(torch.from_numpy(documents(ids, targets))), torch.from_numpy(told)
    )
    of_head.sum().backward()
    for row, (_, asked, text) in enumerate(ENDS):
        if text > asked:
            own = torch.from_numpy(ids[row : row + 1, :text])
            logits = other.model(input_ids=own, use_cache=False).logits[0]
            (0.7 * F.cross_entropy(logits[asked - 1 : -1], own[0, asked:])).backward()
    for name, parameter in adapted.trained.items():
        torch.testing.assert_close(parameter.grad, other.trained[name].grad, rtol=1e-8, atol=1e-10)


def test_nothing_that_is_asked_or_written_reaches_the_head():
    adapted, (ids, targets, _) = writing(text_weight=0.0), rows()
    before = adapted.losses(torch.from_numpy(ids), torch.from_numpy(targets))
    for row, (document, _, text) in enumerate(ENDS):
        ids[row, document:text] = 1 + ids[row, document:text] % 60
    assert torch.equal(adapted.losses(torch.from_numpy(ids), torch.from_numpy(targets)), before)


def test_a_document_that_ends_in_word_0_is_read_as_it_is_without_a_text():
    adapted = writing(reads=(0, 2))
    ids = random_ids(1, 8).numpy()
    ids[0, 3] = 0  # a word of this number, and not padding, as words stand behind it
    targets = joined(np.array([5]), np.arange(8)[None] == 4, np.arange(8)[None] > 4)
    alone = adapted.head.objective.losses(adapted.classify(torch.from_numpy(ids[:, :4])), torch.tensor([5]))
    unwritten = writing(reads=(0, 2), text_weight=0.0)
    torch.testing.assert_close(unwritten.losses(torch.from_numpy(ids), torch.from_numpy(targets)), alone)


def test_layers_above_all_that_the_head_reads_learn_by_the_text_alone():
    adapted = writing(reads=(0, 1))
    adapted.losses(*map(torch.from_numpy, rows()[:2])).sum().backward()
    above = [name for name in adapted.trained if ".layers.1." in name]
    assert above
    assert all(bool(adapted.trained[name].grad.any()) for name in above)


def test_made_up_targets_tell_every_output_and_a_text_behind_a_first_half():
    adapted = writing()
    found = apart(adapted.made_up_targets(torch.ones(3, 8, dtype=torch.bool)))
    assert found.is_document_RT.sum(1).tolist() == [4, 4, 4]
    assert found.is_written_RT.sum(1).tolist() == [4, 4, 4]
    assert found.targets_R.tolist() == adapted.head.objective.made_up(3).tolist()
    alike = apart(adapted.made_up_targets(torch.ones(3, 2, dtype=torch.bool), are_alike=True))
    assert len(set(alike.targets_R.tolist())) == 1
    assert alike.is_written_RT.tolist() == [[False, True]] * 3


def test_a_meaning_says_what_is_written_and_texts_have_names_of_their_own():
    meaning = SeveralTasks(TASKS, text=TextTask("summary", "\nIn short:")).meaning
    assert meaning.startswith("It gives 4 numbers")
    assert meaning.endswith('Task "summary" is a text, which the model writes behind the record and "\\nIn short:".')
    assert "\n" not in meaning
    with pytest.raises(InvalidAdapter, match="a name of its own"):
        SeveralTasks((Task("summary", PointOnScale(0.0, 1.0)),), text=TextTask("summary", ":"))
    with pytest.raises(InvalidAdapter, match="one or more tasks for the head"):
        SeveralTasks((), text=TextTask("summary", ":"))
