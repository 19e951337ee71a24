"""How hard Hypothesis tries. In CI the examples are the same on every run; elsewhere they are new ones each time."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("zander", deadline=None, derandomize="CI" in os.environ, database=None, max_examples=100)
settings.load_profile("zander")
