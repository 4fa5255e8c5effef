"""Baselines for a private result, computed in one process from records that must be public.

`references` computes four baselines of a demo on one split: the untrained head, the same study without noise and secret
sharing, the head alone under the same noise (to separate the adapters' effect from the head's), and a private logistic
regression on the record's words, which needs no language model. `answer_references` computes those of a study whose
answers are right or wrong, words or classes: the backbone by itself, and the same study without noise and secret
sharing.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...client_node.data import read as read_records
from ...client_node.policy import SitePolicy
from ...client_node.study import Study
from ...client_node.training.study_model import StudyModel
from ...models.adapters import AdaptedModel
from ...models.evaluation.metrics import auc
from ...models.records.kind import Examples
from ..comparison.federated import SiteArrays, federate, head_inputs, logits, untrained
from ..comparison.ladder import linear_rate
from ..comparison.linear import private_linear, word_ids, word_inputs


def references(
    study: Study,
    backbone: Path,
    train: Sequence[SitePolicy],
    held_out: Sequence[SitePolicy],
    *,
    max_rows: int,
    on_nonprivate: Callable[[AdaptedModel], None] = lambda _: None,
) -> dict[str, Any]:
    """Computes AUC on all held-out records: `auc_before`, `auc_nonprivate`, `auc_head_only`, `auc_control`.

    Args:
        train: one policy a site, in the study's order.
        max_rows: of the training without noise, computed at once.
        on_nonprivate: called with the model trained without noise.
    """
    draft, scale_bits = study.draft, study.scale_bits
    trained_on, tested_on = ([site_arrays(policy, study) for policy in part] for part in (train, held_out))
    adapted = untrained(draft, backbone, expected_hash=study.backbone_hash)

    def linear(inputs_of: Callable[[np.ndarray], np.ndarray], lr: float) -> np.ndarray:
        inputs = [inputs_of(ids) for ids, _, _ in trained_on]
        test = np.concatenate([inputs_of(ids) for ids, _, _ in tested_on])
        labels, units = [labels for _, labels, _ in trained_on], [units for _, _, units in trained_on]
        rng = np.random.default_rng(0)
        return private_linear(draft, inputs, labels, test, lr=lr, scale_bits=scale_bits, rng=rng, units=units)

    before = [logits(adapted, ids) for ids, _, _ in tested_on]
    head_only = linear(lambda ids: head_inputs(adapted, ids), draft.optimizer.rates[1])
    control = linear(lambda ids: word_inputs(draft, ids), linear_rate(draft))
    sites = dict(zip(study.site_names(), trained_on, strict=True))
    federate(draft, adapted, sites, mode="none", scale_bits=scale_bits, seed=0, max_rows=max_rows)
    on_nonprivate(adapted)
    nonprivate = [logits(adapted, ids) for ids, _, _ in tested_on]
    scores = {
        "before": np.concatenate(before),
        "nonprivate": np.concatenate(nonprivate),
        "head_only": head_only,
        "control": control,
    }
    labels = np.concatenate([labels for _, labels, _ in tested_on])
    return {f"auc_{name}": auc(found, labels).value for name, found in scores.items()}


def answer_references(
    study: Study,
    untouched: StudyModel,
    train: Sequence[SitePolicy],
    held_out: Sequence[SitePolicy],
    *,
    max_rows: int,
) -> dict[str, Any]:
    """Computes every metric on all held-out records, of the backbone as it starts and of the study without noise.

    Args:
        untouched: the study's model as it starts; afterwards it is the one that was trained without noise.
        train: one policy a site, in the study's order, as are those of held-out records.
        max_rows: of the training without noise, computed at once.
    """
    names = study.site_names()
    tested_on, trained_on = (
        [text_arrays(policy, study, untouched, site=site) for site, policy in zip(names, part, strict=True)]
        for part in (held_out, train)
    )
    tables = [Examples(*arrays) for arrays in tested_on]
    before = untouched.evaluate(tables)
    sites = dict(zip(names, trained_on, strict=True))
    federate(study.draft, untouched.adapted, sites, mode="none", scale_bits=study.scale_bits, seed=0, max_rows=max_rows)
    nonprivate = untouched.evaluate(tables)
    return {
        f"{metric}_{name}": estimate["value"]
        for name, found in (("before", before), ("nonprivate", nonprivate))
        for metric, estimate in found.items()
        if metric != "records"
    }


def text_arrays(policy: SitePolicy, study: Study, model: StudyModel, *, site: str) -> SiteArrays:
    """Reads the records that a policy names as a site's trainer does, whatever their kind."""
    examples = model.examples(read_records(policy, study, site=site))
    return examples.ids, examples.targets, examples.units


def site_arrays(policy: SitePolicy, study: Study) -> SiteArrays:
    """Reads the records that a policy names as a site's trainer does, in a study with a classifier."""
    records = read_records(policy, study, site=None)
    assert records.labels is not None
    return word_ids(study.draft, records), records.labels, records.units
