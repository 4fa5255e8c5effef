"""Makes policies that read tables of records on the operator's own machine: held out, or public."""

import json
from pathlib import Path

from ...client_node.policy import SitePolicy
from ...client_node.study import Study


def held_out_policy(path: Path, study: Study, unit_column: str) -> SitePolicy:
    """Makes a policy that reads `path` by the study's own column names, for records on the operator's machine.

    Files that the table names lie beside it, in the folder that the kind of record says: `pictures` or `sounds`.
    """
    folder = study.draft.data.kind.files
    data = {
        "path": str(path), "files": str(path.parent / folder) if folder else None, "name": "held-out",
        "unit": study.draft.data.unit, "unit_column": unit_column,
    }  # fmt: skip
    unused = {"budget": {"epsilon": 1.0, "delta": 1e-5}, "backbone": {"directory": "."}}
    return SitePolicy.model_validate_json(json.dumps({"data": data, **unused}))
