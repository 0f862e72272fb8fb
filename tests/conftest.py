import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(
    os.environ.get("MENGZI_OSCAR_SHARED", REPOSITORY.parent / "shared")
)  # goldens and photos, not in the repo


def shared_path(relative: str) -> Path:
    """A file of the golden data; tests that need it are skipped where it is not at hand."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {relative} from the project's shared folder (set MENGZI_OSCAR_SHARED), which is not here")
    return path


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
