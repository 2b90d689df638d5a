"""Runs a notebook's cells from the first to the last, as Jupyter does, without Jupyter.

A line that begins with ! is a command of the shell. What a cell prints, and the value of its last
line, become its outputs; an error ends the run.

    python tools/run_notebook.py examples/tour.ipynb            # runs it, and changes nothing
    python tools/run_notebook.py examples/tour.ipynb --write    # keeps the outputs in the file
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def shell(command: str) -> None:
    """Run a command line; print its output and errors.

    Raises:
        SystemExit: the command ended with an error.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout, end="")
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stdout}")


def run_cell(source: str, names: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Run a cell.

    Args:
        source: text of the cell.
        names: variables of the notebook, which it reads and changes.
        count: its number among the cells of code.

    Returns:
        Its outputs, in the notebook format.
    """
    python = re.sub(r"^!(.*)$", lambda it: f"_shell({it[1]!r})", source, flags=re.MULTILINE)
    body = ast.parse(python).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(text)})
    if value is not None:
        data = {"text/plain": _lines(repr(value))}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = _lines(value._repr_html_())
        outputs.append(
            {"output_type": "execute_result", "execution_count": count, "data": data}
            | {"metadata": {}}
        )
    return outputs


def run_notebook(notebook: dict[str, Any]) -> None:
    """Run all cells of code, and put their outputs in place of those they have.

    Raises:
        SystemExit: a cell failed; the message has its number and the error.
    """
    names: dict[str, Any] = {"__name__": "__main__", "_shell": shell}
    cells = [it for it in notebook["cells"] if it["cell_type"] == "code"]
    for count, cell in enumerate(cells, 1):
        try:
            cell["outputs"] = run_cell("".join(cell["source"]), names, count)
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(f"cell {count} failed: {error}") from error
        cell["execution_count"] = count


def _lines(text: str) -> list[str]:
    """Text as notebooks store it."""
    return text.splitlines(keepends=True)


def main() -> None:
    """Run a notebook in its own folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebook", type=Path, help="the .ipynb file")
    parser.add_argument("--write", action="store_true", help="keep the outputs in the file")
    arguments = parser.parse_args()
    if not arguments.notebook.is_file():
        raise SystemExit(f"there is no notebook {arguments.notebook}")
    path = arguments.notebook.absolute()
    notebook = json.loads(path.read_text("utf-8"))
    os.chdir(path.parent)
    run_notebook(notebook)
    if arguments.write:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print("ran", sum(it["cell_type"] == "code" for it in notebook["cells"]), "cells")


if __name__ == "__main__":
    main()
