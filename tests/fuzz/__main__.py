"""`python tests/fuzz`: see `running`."""

import sys
import types
from pathlib import Path

# The tests import each other by relative names; "tests" itself may be an installed package of others.
package = types.ModuleType("confide_tests")
package.__path__ = [str(Path(__file__).parents[1])]
sys.modules[package.__name__] = package

from confide_tests.fuzz.running import main  # type: ignore[import-not-found]  # noqa: E402

sys.exit(main())
