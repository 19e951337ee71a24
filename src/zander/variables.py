"""Variables of the environment and of `.env`. `zander watch` reads its key here, without what `settings` needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

ENV_FILE = Path(".env")

Sources = tuple[Mapping[str, str | None], ...]


def first_value(*variables: str, sources: Sources | None = None) -> str:
    """Return the first variable that is set to something, in the environment or else in `.env`; "" when none is."""
    sources = sources or read()
    for variable in variables:
        for source in sources:
            if value := (source.get(variable) or "").strip():
                return value
    return ""


def read(environ: Mapping[str, str] | None = None, env_file: Path | None = ENV_FILE) -> Sources:
    """Read where variables are set, the first that counts first: the environment, then `.env`."""
    file = dotenv_values(env_file, interpolate=False) if env_file and env_file.is_file() else {}
    return (os.environ if environ is None else environ, file)
