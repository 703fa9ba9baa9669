"""Programs from the packages of Debian and Ubuntu, unpacked into the checkout's `.debian`.

Nothing is installed into the system, and no rights are needed.

`python tests/debian.py pgbouncer postgresql-15` unpacks these two, unless they are there already.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True)
class Package:
    """A package with a program that the tests run.

    Attributes:
        name: The name of the package.
        folder: The directory of its program, relative to the root of the file system.
        program: The name of the program.
        any_version: Whether a program of that name on the PATH may be used, whatever its version.
    """

    name: str
    folder: str
    program: str
    any_version: bool = False

    @property
    def unpacked(self) -> Path:
        """The directory into which `fetch` unpacks the package and its libraries."""
        return Path(__file__).resolve().parent.parent / ".debian" / self.name

    def find(self) -> Path | None:
        """Return the path of the program, or `None` if it is neither installed nor unpacked."""
        path = [f"/{self.folder}", str(self.unpacked / self.folder)]
        if self.any_version:
            path.append(os.environ.get("PATH", os.defpath))
        found = shutil.which(self.program, path=os.pathsep.join(path))
        return None if found is None else Path(found)

    def environment(self, program: Path) -> dict[str, str]:
        """Return the environment for running a program: an unpacked one needs its libraries."""
        if not program.is_relative_to(self.unpacked):
            return {**os.environ}
        libraries = sorted({str(path.parent) for path in self.unpacked.rglob("*.so*")})
        return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}

    def fetch(self) -> None:
        """Download and unpack the package and its libraries.

        Raises:
            OSError: There is no `apt-get`.
            subprocess.CalledProcessError: The packages cannot be downloaded.
        """
        self.unpacked.parent.mkdir(exist_ok=True)
        # Package lists of our own: the system's may be missing or old, and only root updates them.
        with tempfile.TemporaryDirectory(dir=self.unpacked.parent) as name:
            top = Path(name)
            for folder in ("state/lists/partial", "cache/archives/partial", "packages", "unpacked"):
                (top / folder).mkdir(parents=True)
            options = {
                "Dir::State": top / "state",
                "Dir::State::status": "/var/lib/dpkg/status",
                "Dir::Cache": top / "cache",
                # Else root's apt downloads as another user, who may not enter this directory.
                "APT::Sandbox::User": "root",
            }
            apt = [f"-o{key}={value}" for key, value in options.items()]
            # Unchecked: if one of several package sources fails, another may have the packages.
            _run("apt-get", *apt, "-qq", "update", check=False)
            wanted: set[str] = set()
            new = {self.name}
            while new:
                wanted |= new
                shown = _run("apt-cache", *apt, "depends", *new, stdout=subprocess.PIPE).stdout
                new = set(re.findall(rf"Depends: (lib(?!{_LEFT_OUT})\S+)", shown)) - wanted
            packages = top / "packages"
            _run("apt-get", *apt, "-qq", "download", *wanted, cwd=packages)
            for package in packages.glob("*.deb"):
                _run("dpkg", "-x", package, top / "unpacked")
            (top / "unpacked").rename(self.unpacked)


_LEFT_OUT: Final = r"c6\b|llvm"
"""Libraries that are not fetched: the system has its C library, and no test needs LLVM (120 MB)."""

PGBOUNCER: Final = Package("pgbouncer", "usr/sbin", "pgbouncer", any_version=True)
POSTGRESQL_15: Final = Package("postgresql-15", "usr/lib/postgresql/15/bin", "postgres")

PACKAGES: Final = {package.name: package for package in (PGBOUNCER, POSTGRESQL_15)}


def _run(
    *command: str | Path, check: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, text=True, **options)


def main() -> None:
    """Fetch the packages that the arguments name, unless their programs are there already."""
    for name in sys.argv[1:]:
        package = PACKAGES[name]
        if package.find() is None:
            try:
                package.fetch()
            except (OSError, subprocess.CalledProcessError) as exc:
                sys.stderr.write(
                    f"{name} is not installed, and its package cannot be downloaded: {exc}. Tests "
                    f"that need it are skipped, or fail where CI is set. Install it to run them.\n"
                )


if __name__ == "__main__":
    main()
