"""Settings all tests share: Hypothesis draws the same examples on every CI run."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from volpatch.cli import main as cli

# Commands and worker processes that tests start import tests.helpers_functions by name. The
# current folder, which comes first under `python -m pytest`, is not searched; later ones are.
ROOT = str(Path(__file__).parents[1])
sys.path.append(ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))

# A shell that starts the tests in the background has them, and all they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that functions find too."""
    monkeypatch.setenv("VOLPATCH_TEST_FOLDER", str(tmp_path))
    return tmp_path


@pytest.fixture
def ask(capfd):
    """Run the command in this process: exit code, stdout, stderr."""

    def call(*args):
        capfd.readouterr()
        code = cli.execute([str(a) for a in args])
        return code, *capfd.readouterr()

    return call
