"""Run the notebooks beside this file and keep their outputs: python examples/run_notebooks.py"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient


def main() -> None:
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        place = {"metadata": {"path": path.parent}}
        NotebookClient(notebook, resources=place, coalesce_streams=True).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day
        nbformat.write(notebook, path)
        print(path.name)


if __name__ == "__main__":
    main()
