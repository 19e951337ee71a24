"""How hard Hypothesis tries. In CI the examples are the same on every run; elsewhere they are new ones each time.

A failure in CI is shown as it was found: to shrink one of a state machine can take longer than a test may. The same
examples fail on any machine with CI=true; without it, what is found is shrunk.
"""

from __future__ import annotations

import os

from hypothesis import Phase, settings

settings.register_profile("zander", deadline=None, database=None, max_examples=100)
settings.register_profile(
    "zander-ci",
    settings.get_profile("zander"),
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
)
settings.load_profile("zander-ci" if "CI" in os.environ else "zander")
