"""Print the other Pythons of this machine that the package supports, one of each minor version."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

MINORS: Final = range(11, 20)


def is_right(python: str, minor: int) -> bool:
    """Return whether this is a Python of that minor version: a shim may start none."""
    asked = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603
    return answer.stdout.split() == ["3", str(minor)]


def find(minor: int) -> str | None:
    """Return the path of a Python of that minor version, on the PATH or of pyenv."""
    name = f"python3.{minor}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(name), *sorted(pyenv.glob(f"versions/3.{minor}.*/bin/{name}"))]
    return next((str(path) for path in found if path and is_right(str(path), minor)), None)


def main() -> None:
    """Print the paths."""
    for minor in MINORS:
        if minor != sys.version_info.minor and (python := find(minor)):
            sys.stdout.write(f"{python}\n")


if __name__ == "__main__":
    main()
