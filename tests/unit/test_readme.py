"""The READMEs, CONTRIBUTING and the decision records agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zander.routes import ROUTES
from zander.settings import Settings, descriptions, environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / ".github/CONTRIBUTING.md").read_text()
DECISIONS = sorted((ROOT / "src").rglob("DECISIONS.md"))
OPERATIONS = ROOT / ".github/OPERATIONS.md"
TEXTS = [ROOT / "README.md", ROOT / "benches/README.md", ROOT / ".github/CONTRIBUTING.md", OPERATIONS, *DECISIONS]
MAX_CHARACTERS = 140


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
    listing = CONTRIBUTING.split("src/zander/\n", 1)[1].split("```", 1)[0]
    named = {word for line in listing.splitlines() for word in line[:43].split()}
    there = {path.name for path in (ROOT / "src/zander").glob("[!_]*.py")} | {
        f"{path.name}/" for path in (ROOT / "src/zander").iterdir() if path.is_dir() and not path.name.startswith("_")
    }
    assert named == there


def test_every_make_target_that_a_text_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"[`$]\s?make ([\w-]+)", "".join(text.read_text() for text in TEXTS)):
        assert f"\n{target}:" in makefile


def anchors(text: str) -> set[str]:
    """Return the names under which the headings of a Markdown text can be linked to."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("text", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(text: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text.read_text()):
        path, _, anchor = target.partition("#")
        file = text.parent / path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("text", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_line_is_too_long_to_be_read(text: Path) -> None:
    assert [line for line in text.read_text().splitlines() if len(line) > MAX_CHARACTERS] == []


@pytest.mark.parametrize("text", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_that_a_text_names_is_there(text: Path) -> None:
    folders = [ROOT / folder for folder in ("src/zander", "benches", "tests")]
    files = [
        *(ROOT / "src/native").glob("*.rs"),
        *(ROOT / "benches/generator").glob("*.rs"),
        *(file for folder in folders for file in folder.rglob("*.py*")),
    ]
    named = re.findall(r"`([\w/]+\.(?:py|pyi|rs))`", text.read_text())
    assert {name for name in named if not any(str(file).endswith(f"/{name}") for file in files)} == set()


def test_every_decision_is_named_in_contributing() -> None:
    for text in DECISIONS:
        for title in re.findall(r"^## (.+)$", text.read_text(), re.MULTILINE):
            anchor = title.lower().replace(" ", "-")
            assert f"(../{text.relative_to(ROOT)}#{anchor})" in CONTRIBUTING
