# SPDX-License-Identifier: Apache-2.0
"""Runs `main` of a module of this package: `python -I isolated.py MODULE LIBRARIES [ARGUMENT...]`.

-I: nothing is imported from the current directory, from paths in the environment, or from a user's site-packages. The
place of this file gives the place of this package. LIBRARIES: directories to import from last, joined by ":".
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path


def main() -> None:
    """Run `main` of the module that the arguments name."""
    _, module, libraries, *arguments = sys.argv
    package = Path(__file__).resolve().parents[1]
    # Not by sys.path: a checkout holds other modules next to the package, and these must not hide any module.
    spec = importlib.util.spec_from_file_location(
        package.name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None  # noqa: S101 - there is a loader for .py
    assert spec.loader is not None  # noqa: S101
    sys.modules[package.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[package.name])
    sys.path += [entry for entry in libraries.split(os.pathsep) if entry and entry not in sys.path]
    sys.argv[1:] = arguments
    importlib.import_module(f"{package.name}.process.startup").start()
    importlib.import_module(module).main()


if __name__ == "__main__":
    main()
