"""Availability of the native path: `zander._native` is built, and the environment does not say ZANDER_NATIVE=0.

Without it everything works as with it, slower: what it does, `wire`, `session`, `ring` and `journal` do as well.
"""

from __future__ import annotations

import os

SWITCH = "ZANDER_NATIVE"

try:
    if os.environ.get(SWITCH) == "0":
        raise ImportError(f"{SWITCH} is 0")
    from zander._native import DEBUG
except ImportError as error:
    WHY_NOT, IS_DEBUG = str(error), False
else:
    WHY_NOT, IS_DEBUG = "", DEBUG

IS_NATIVE = not WHY_NOT
