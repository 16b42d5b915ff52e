from __future__ import annotations

import subprocess
import sys

HEAVY = ("pandas", "sklearn", "scipy", "anndata", "PIL", "plotly", "typer", "matplotlib")


def test_data_needs_torch_and_numpy_only():
    # a service that draws from a saved prior imports Batch, and should not pay for readers it never calls
    code = f"import latentfit.data, sys; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
