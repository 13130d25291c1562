"""The folders of the package may import downwards only; the contracts are in pyproject.toml."""

from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_imports_point_down():
    root = Path(__file__).parents[1]
    status = lint_imports(config_filename=str(root / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS


def test_heavy_packages_are_not_imported_with_the_package():
    """``import fscl`` and the command line answer at once: torch and Avalanche come with what needs them."""
    import subprocess
    import sys

    code = "import sys, fscl, fscl.files; print(sorted({'torch', 'avalanche', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
