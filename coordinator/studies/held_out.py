"""Makes policies that read tables of records on the operator's own machine: held out, or public."""

import json
from pathlib import Path

from ...client_node.errors import PolicyInvalid
from ...client_node.policy import SitePolicy
from ...client_node.policy.site_policy import DataPolicy
from ...client_node.study import Study
from ...client_node.study.toml import read_toml
from ...models.strict import StrictModel

RECORDS = "records.toml"  # in a site's folder, in the place of tables
_UNUSED = {"budget": {"epsilon": 1.0, "delta": 1e-5}, "backbone": {"directory": "."}}


def held_out_policy(path: Path, study: Study, unit_column: str) -> SitePolicy:
    """Makes a policy that reads `path` by the study's own column names, for records on the operator's machine.

    Files that the table names lie beside it, in the folder that the kind of record says: `pictures` or `sounds`.
    """
    folder = study.draft.data.kind.files
    data = {
        "path": str(path), "files": str(path.parent / folder) if folder else None, "name": "held-out",
        "unit": study.draft.data.unit, "unit_column": unit_column,
    }  # fmt: skip
    return SitePolicy.model_validate_json(json.dumps({"data": data, **_UNUSED}))


class DescribedRecords(StrictModel):
    """The `[data]` of a site.toml in a file of its own."""

    data: DataPolicy


def described_policies(path: Path) -> tuple[SitePolicy, SitePolicy]:
    """Makes two policies of the `[data]` of a site.toml in a file of its own: for training, and for what is held out.

    Raises:
        PolicyInvalid: the file cannot be read, is no such description, or names no records that are held out.
    """
    data = read_toml(path, DescribedRecords, error=PolicyInvalid).data.beside(path.resolve().parent)
    policy = SitePolicy.model_validate({"data": data, **_UNUSED})
    if (held_out := policy.held_out()) is None:
        raise PolicyInvalid(str(path), ("it names no records that are held out",))
    return policy, held_out
