"""Settings of Hypothesis, before any test module is imported."""

from pathlib import Path

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(__file__).parent.parent / "build" / "hypothesis")

# Fixed seeds: a red test is red again. A deadline per example would measure the machine.
settings.register_profile("project", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("project")
