"""Baselines for a private result, computed in one process from records that must be public.

`references` computes two baselines of a demo on one split: the untrained head, and the same study without noise and
secret sharing. `answer_references` computes those of a study whose answers are right or wrong, words or classes.
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
from ..comparison.federated import SiteArrays, federate, logits, untrained
from ..comparison.linear import word_ids


def references(
    study: Study,
    backbone: Path,
    train: Sequence[SitePolicy],
    held_out: Sequence[SitePolicy],
    *,
    max_rows: int,
    on_nonprivate: Callable[[AdaptedModel], None] = lambda _: None,
) -> dict[str, Any]:
    """Computes AUC on all held-out records: `auc_before` and `auc_nonprivate`, this one with its interval.

    Args:
        train: one policy a site, in the study's order.
        max_rows: of the training without noise, computed at once.
        on_nonprivate: called with the model trained without noise.
    """
    draft, scale_bits = study.draft, study.scale_bits
    trained_on, tested_on = ([site_arrays(policy, study) for policy in part] for part in (train, held_out))
    adapted = untrained(draft, backbone, expected_hash=study.backbone_hash)

    before = [logits(adapted, ids) for ids, _, _ in tested_on]
    sites = dict(zip(study.site_names(), trained_on, strict=True))
    federate(draft, adapted, sites, mode="none", scale_bits=scale_bits, seed=0, max_rows=max_rows)
    on_nonprivate(adapted)
    nonprivate = [logits(adapted, ids) for ids, _, _ in tested_on]
    labels = np.concatenate([labels for _, labels, _ in tested_on])
    found = auc(np.concatenate(nonprivate), labels)
    return {
        "auc_before": auc(np.concatenate(before), labels).value,
        "auc_nonprivate": found.value,
        "auc_nonprivate_interval": [found.low, found.high],
    }


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
    both = [
        (f"{metric}_{name}", estimate)
        for name, found in (("before", before), ("nonprivate", nonprivate))
        for metric, estimate in found.items()
        if metric != "records"
    ]
    intervals = {f"{name}_interval": [each["low"], each["high"]] for name, each in both if "low" in each}
    return {name: each["value"] for name, each in both} | intervals


def text_arrays(policy: SitePolicy, study: Study, model: StudyModel, *, site: str) -> SiteArrays:
    """Reads the records that a policy names as a site's trainer does, whatever their kind."""
    examples = model.examples(read_records(policy, study, site=site))
    return examples.ids, examples.targets, examples.units


def site_arrays(policy: SitePolicy, study: Study) -> SiteArrays:
    """Reads the records that a policy names as a site's trainer does, in a study with a classifier."""
    records = read_records(policy, study, site=None)
    assert records.labels is not None
    return word_ids(study.draft, records), records.labels, records.units
