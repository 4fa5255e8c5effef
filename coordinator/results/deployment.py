"""Deploys the model of a run as a folder that runs without confide, and says which way of running suits a use."""

from collections.abc import Mapping
from pathlib import Path

from ...client_node.training.study_model import StudyModel
from ...models.adapters import ModelCard
from ...models.backbones.checkpoints import read_config, size
from ...models.backbones.loading import describe
from ...models.deployment.choosing import Modality, Option, Use, choose
from ...models.deployment.deploying import GRAPHS, Deployed, Target, default_weights, deploy
from ...models.deployment.description import Weights
from ..store import Store
from ..studies.catalogue import load_study, study_start
from .export import publish

_OF_KIND: Mapping[str, Modality] = {
    "fields": "table", "history": "table", "code": "code", "formulas": "mathematics", "picture": "pictures",
    "sound": "sounds",
}  # fmt: skip


def deploy_adapter(
    store: Store,
    home: Path,
    run_id: str,
    directory: Path,
    target: Target,
    weights: Weights | None,
    *,
    override_audit: str | None = None,
) -> Deployed:
    """Writes a folder that runs without confide; other arguments and errors are those of `export_adapter`.

    Raises:
        DeploymentRefused: the target has no such form, or the graph cannot be made or loaded here.
    """
    found: list[Deployed] = []

    def write(model: StudyModel, backbone: Path, card: ModelCard) -> None:
        request = model.kind.request(model.terms, model.reader)
        found.append(deploy(model.adapted, backbone, directory, card, request, target=target, weights=weights))

    publish(store, home, run_id, "adapter.deploy", directory, write, override_audit)
    return found[0]


def options_for(
    store: Store,
    home: Path,
    run_id: str,
    modality: Modality | None,
    *,
    milliseconds: float | None,
    megabytes: float | None,
    clients: int,
) -> tuple[Option, ...]:
    """Returns all ways to run a run's model for a use, the best first.

    Args:
        modality: None takes what the run's study reads.
    """
    study = load_study(store.study(store.run(run_id).study))
    backbone, data = study_start(home, study).backbone, study.draft.data
    found, described = size(backbone), describe(backbone)
    in_experts = 0
    if described.experts is not None and described.top_k is not None and described.experts > described.top_k:
        idle = found.parameters - found.active_parameters
        in_experts = idle * described.experts // (described.experts - described.top_k)
    family, config = read_config(backbone)
    is_head = data.kind.objective(data.terms) is not None
    weights = default_weights("onnx", is_head=is_head, has_experts=described.experts is not None)
    is_guided = any(getattr(data.terms, name, False) for name in ("engine", "grammar"))
    has_text_task = getattr(data.terms, "written", None) is not None
    return choose(
        Use(
            modality or _OF_KIND.get(data.kind.name, "text"), milliseconds, megabytes, clients,
            parameters=found.parameters, active=found.active_parameters, in_experts=in_experts,
            in_words=config["vocab_size"] * config["hidden_size"],
            in_float32=weights == "float32", is_guided=is_guided,
            no_graph="" if family.model_type in GRAPHS else f"no graph is made of a {family.name} yet",
            no_folder="takes confide to read its requests" if data.kind.name == "chat" or has_text_task else "",
        )
    )  # fmt: skip
