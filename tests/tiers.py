"""Which files only `make test-long` runs, and why: the table in CONTRIBUTING.md says the same."""

BUDGET_S = 20  # wall seconds of one file in `make test`, on a quiet machine with two cores

# Paths below tests/, of a file or of a whole folder.
LONG = {
    "browser": "each page in Chromium, in nine ways",
    "client_node/cli/test_setup_sources.py": "sets a site up from every kind of source",
    "client_node/data/test_sql.py": "starts a PostgreSQL server and fills it",
    "client_node/page/test_process.py": "starts a daemon with its page",
    "client_node/test_stopping.py": "starts a daemon and sends it signals",
    "client_node/training/test_sharding.py": "splits a model over processes",
    "client_node/training/test_workers.py": "starts worker processes that load a model each",
    "coordinator/api/test_described.py": "schemathesis asks what the API's description allows, and more",
    "coordinator/cli/test_oversight.py": "tries every command in every role",
    "coordinator/demo/test_baselines.py": "trains the baselines of a demo",
    "coordinator/fleet/test_superlink_process.py": "starts Flower's SuperLink",
    "coordinator/gateway/test_admission.py": "waits for limits of the public port",
    "coordinator/page/test_adapters.py": "trains, merges and downloads adapters through the page",
    "coordinator/page/test_app.py": "tries every page in every role",
    "coordinator/results/test_file_asking.py": "asks trained models about whole files",
    "coordinator/results/test_privacy_audit.py": "audits runs by their canaries",
    "coordinator/run/test_liars.py": "runs a federation for each way to lie",
    "coordinator/run/test_rollback.py": "runs a federation for each home put back from a copy",
    "damage": "damages every file of a home in five ways",
    "examples/fhir/test_prepare.py": "makes up FHIR exports",
    "examples/test_quick_benchmarks.py": "runs whole benchmarks as a person does",
    "kernels/test_gpu_benchmark.py": "compiles and interprets kernels of a benchmark",
    "kernels/test_triton.py": "interprets Triton's kernels",
    "kernels/test_triton_compiles.py": "compiles for three cards",
    "models/adapters/test_carrying.py": "takes adapters through every way of compression",
    "models/backbones/test_smollm2.py": "loads a published checkpoint",
    "models/compression/test_compressing.py": "compresses backbones and trains them again",
    "models/deployment/test_deploying.py": "deploys models and asks them without confide",
    "models/deployment/test_exporting.py": "exports a graph of every family",
    "models/space/test_encoders.py": "reads published encoders",
    "mpc/party/test_handle.py": "starts the three parties",
    "mpc/party/test_shards.py": "runs the protocol with and without shards",
    "privacy/audit/test_engine_checks.py": "breaks the engine in every way that its checks should find",
    "privacy/mechanism/test_batches.py": "clips in batches of every shape",
    "system": "whole federations of real processes",
    "test_secrets_in_errors.py": "makes every error of every package",
    "test_wheel.py": "builds the wheel and installs it in an empty environment",
}


def is_long(path: str) -> bool:
    """Says whether only `make test-long` runs the file.

    Args:
        path: below tests/, with slashes.
    """
    parts = path.split("/")
    return any("/".join(parts[:end]) in LONG for end in range(1, len(parts) + 1))
