"""The notebook runs from its first cell to its last, in a kernel of its own."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "digits.ipynb"


def test_notebook_holds_no_results():
    """Results would be those of one machine on one day."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
# zmq and tornado warn of the event loop's policy and of sockets that they close themselves.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_notebook_runs(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:  # as long as a test may take
        cell.source = cell.source.replace("trials=8", "trials=2").replace("trials=12", "trials=3")
    client = nbclient.NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output
    ]
    kinds = {kind for output in outputs for kind in output["data"]}
    assert {"text/html", "image/png"} <= kinds
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()
