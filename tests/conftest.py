"""Set-up for all tests: shapes and types in annotations are checked while tests run."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import autoprune

# The command line names types that it imports only where they are used.
_UNCHECKED = "autoprune.cli."
_ROOT = Path(autoprune.__file__).parent
_MODULES = [
    ".".join(("autoprune", *path.relative_to(_ROOT).with_suffix("").parts))
    for path in sorted(_ROOT.rglob("*.py"))
    if path.name != "__init__.py"
]

install_import_hook(
    [name for name in _MODULES if not name.startswith(_UNCHECKED)], "beartype.beartype"
)


@pytest.fixture(scope="session")
def board(tmp_path_factory):
    """Path of the profile of a device that does not exist, as a string."""
    from autoprune.latency.profile import save_profile
    from autoprune.testing.profiles import made_up_profile

    path = tmp_path_factory.mktemp("profiles") / "made_up.yaml"
    save_profile(made_up_profile(), path)
    return str(path)


@pytest.fixture
def no_onnx_export(monkeypatch):
    """An empty file stands for the export, which takes seconds and has its own tests."""
    monkeypatch.setattr(
        "autoprune.run.outcome.export_onnx", lambda model, inputs, path, metadata: path.touch()
    )
