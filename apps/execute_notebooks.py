"""Run every script of apps/notebooks as a notebook and keep the outputs beside it: uv run apps/execute_notebooks.py"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

import console

FOLDER = Path(__file__).parent / "notebooks"


def main(arguments: Sequence[str]) -> Mapping[str, object]:
    scripts = [FOLDER / f"{name}.py" for name in arguments] or sorted(FOLDER.glob("*.py"))
    for script in scripts:
        console.say(f"run {script.name}")
        execute(script)
    return {"notebooks": [script.with_suffix(".ipynb").name for script in scripts]}


def execute(script: Path) -> Path:
    """A percent script as an executed notebook of the same name; it works in a folder of its own."""
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}, record_timing=False).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    temporary = script.with_suffix(f".{os.getpid()}.tmp")
    nbformat.write(notebook, temporary)
    return temporary.replace(script.with_suffix(".ipynb"))


if __name__ == "__main__":
    console.run(main)
