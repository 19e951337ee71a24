"""The README tells the truth about the code."""

from __future__ import annotations

import re
from pathlib import Path

from zander.routes import ROUTES
from zander.settings import Settings, descriptions, environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def settings_table() -> list[str]:
    """The rows that the README should have, from `settings.py`."""
    defaults = environment(Settings())
    return [
        f"| `{name.upper()}` | {defaults.get(name.upper(), '')} | {text} |" for name, text in descriptions().items()
    ]


def test_the_settings_table_is_that_of_the_code() -> None:
    rows = [line for line in README.splitlines() if re.match(r"\| `[A-Z_]+` \|", line)]
    assert rows == settings_table()


def test_every_endpoint_is_named() -> None:
    for route in ROUTES:
        assert route.path.replace("{user_id}", "") in README.replace("{user_id}", ""), route.path  # type: ignore[attr-defined]


def test_every_module_at_the_root_is_named_and_no_other() -> None:
    listing = README.split("src/zander/\n", 1)[1].split("```", 1)[0]
    named = {word for line in listing.splitlines() for word in line[:43].split()}
    there = {path.name for path in (ROOT / "src/zander").glob("[!_]*.py")} | {
        f"{path.name}/" for path in (ROOT / "src/zander").iterdir() if path.is_dir() and not path.name.startswith("_")
    }
    assert named == there


def test_every_make_target_it_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}:" in makefile
