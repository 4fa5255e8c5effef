"""Makes up one hospital's FHIR R4 Bulk Data export with the package `clinosim` (MIT licence).

    python examples/fhir/hospital.py DIRECTORY POPULATION SEED

Writes Patient.ndjson, Observation.ndjson, Condition.ndjson and MedicationRequest.ndjson into DIRECTORY, of one year of
POPULATION people, of whom somewhat more than half become patients. The same seed gives the same bytes. It is a process
of its own, since clinosim prints its progress and keeps tables of the process.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from clinosim.modules.output import fhir_r4
from clinosim.modules.output.cif_writer import write_cif
from clinosim.simulator.engine import run_beta
from clinosim.types.config import SimulatorConfig

YEAR = ("2025-01-01", "2025-12-31")
FILES = ("Patient.ndjson", "Observation.ndjson", "Condition.ndjson", "MedicationRequest.ndjson")
# What makes these four; that of notes, staff and all else takes most of the time, and is not read here.
_BUILDERS = (
    "_bb_patient", "_bb_conditions", "_bb_labs", "_bb_vitals", "_bb_anthropometrics", "_bb_medication_requests",
    "_bb_discharge_medication_requests",
)  # fmt: skip


def make_up(directory: Path, population: int, seed: int) -> None:
    """Writes the export of a hospital in the middle of so many people."""
    fhir_r4._BUNDLE_BUILDERS[:] = [each for each in fhir_r4._BUNDLE_BUILDERS if each.__name__ in _BUILDERS]
    config = SimulatorConfig(
        country="US", catchment_population=population, random_seed=seed, time_range=YEAR, snapshot_date=YEAR[1]
    )
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory) as scratch:
        write_cif(run_beta(config), f"{scratch}/cif")
        fhir_r4.convert_cif_to_fhir(f"{scratch}/cif", f"{scratch}/fhir", country="US")
        for name in FILES:
            Path(scratch, "fhir", name).replace(directory / name)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    make_up(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
