"""The notebook in samples/ runs in a kernel of its own, from its own folder, and shows what it says."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

SAMPLES = Path(__file__).parents[1] / "samples"


def test_captions_stand_beside_the_pictures() -> None:
    notebook = nbformat.read(SAMPLES / "captions.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is committed without outputs"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(SAMPLES)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    (page,) = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    names = sorted(path.name for path in (SAMPLES / "images").iterdir())
    assert re.search(rf"\|\s*ok\|\s*{len(names)}\|", printed)
    captions = dict(zip(names, re.findall(r"<img src=.*?><figcaption>(.*?)</figcaption>", page), strict=True))
    assert "dog" in captions["dog.jpg"]
    for name in ("dog.jpg", "two_dogs.jpg"):  # by SQL too
        assert re.search(rf"\|{name}\s*\|{re.escape(captions[name])}\s*\|", printed), printed
