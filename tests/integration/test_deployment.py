"""What is shipped beside the code: `.env.example`, compose.yaml, the Containerfile, its locks and the version."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest
import yaml
from msgspec import Meta
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from zander.settings import Settings, load

ROOT = Path(__file__).parents[2]
ENV_EXAMPLE = ROOT / ".env.example"
COMPOSE = ROOT / "compose.yaml"
CONTAINERFILE = ROOT / "Containerfile"
SECRETS = {"EDGE_API_KEY": "a-key-of-the-relays", "POSTGRES_PASSWORD": "it's sp&c:al/@"}


class Line(NamedTuple):
    sentence: str
    commented: bool
    name: str
    value: str


def env_lines() -> list[Line]:
    found = re.findall(r"^# (.+)\n(# )?([A-Z_]+)=(.*)$", ENV_EXAMPLE.read_text(), re.MULTILINE)
    return [Line(sentence, bool(commented), name, value) for sentence, commented, name, value in found]


def sentences() -> dict[str, str]:
    hints = get_type_hints(Settings, include_extras=True)
    metas = {name: [it for it in hint.__metadata__ if isinstance(it, Meta)] for name, hint in hints.items()}
    return {name.upper(): it.description for name, found in metas.items() for it in found if it.description}


class TestEnvExample:
    def test_it_lists_every_setting_in_the_order_of_the_code_with_the_sentence_of_the_code(self) -> None:
        *settings, password = env_lines()
        assert {line.name: line.sentence for line in settings} == sentences()
        assert [line.name for line in settings] == [field.upper() for field in Settings.__struct_fields__]
        assert password.name == "POSTGRES_PASSWORD"

    def test_it_shows_the_defaults(self) -> None:
        shown = {line.name: line.value for line in env_lines()}
        assert load(shown, env_file=None) == Settings()

    def test_a_copy_of_it_loads_and_changes_nothing(self, tmp_path: Path) -> None:
        copy = tmp_path / ".env"
        shutil.copy(ENV_EXAMPLE, copy)
        assert load({}, copy) == Settings()

    def test_only_the_four_of_the_original_readme_are_there_to_be_filled_in(self) -> None:
        active = [line.name for line in env_lines() if not line.commented]
        assert active == ["DATABASE_URL", "REDIS_URL", "EDGE_API_KEY", "LOG_LEVEL"]

    def test_it_holds_no_secret(self) -> None:
        assert not [line for line in env_lines() if re.search("URL|KEY|PASSWORD", line.name) and line.value]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """compose.yaml as it is written."""
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


class TestCompose:
    def test_every_service_has_a_health_check_and_comes_back_after_a_crash(self, compose: dict[str, Any]) -> None:
        for name, service in compose["services"].items():
            assert service["healthcheck"]["test"], name
            assert service["restart"] == "unless-stopped", name

    def test_zander_waits_for_a_healthy_database_and_redis(self, compose: dict[str, Any]) -> None:
        zander = compose["services"]["zander"]
        assert zander["depends_on"] == {name: {"condition": "service_healthy"} for name in ("timescaledb", "redis")}
        assert "/health/ready" in zander["healthcheck"]["test"][-1]

    def test_the_database_is_a_timescaledb_that_can_copy_into_columns(self, compose: dict[str, Any]) -> None:
        image, _, tag = compose["services"]["timescaledb"]["image"].partition(":")
        version, _, postgres = tag.partition("-pg")
        assert image == "timescale/timescaledb"
        assert tuple(map(int, version.split("."))) >= (2, 29, 2)
        assert int(postgres) >= 17
        assert compose["services"]["timescaledb"]["volumes"] == ["timescaledb:/var/lib/postgresql/data"]

    def test_only_zander_is_reachable_from_outside(self, compose: dict[str, Any]) -> None:
        assert [name for name, service in compose["services"].items() if "ports" in service] == ["zander"]

    def test_a_stop_gives_zander_longer_than_its_drain(self, compose: dict[str, Any]) -> None:
        assert int(compose["services"]["zander"]["stop_grace_period"].removesuffix("s")) > 15

    def test_no_secret_has_a_default(self, compose: dict[str, Any]) -> None:
        services = compose["services"]
        assert services["zander"]["environment"]["EDGE_API_KEY"].startswith("${EDGE_API_KEY:?")
        assert services["zander"]["environment"]["PGPASSWORD"].startswith("${POSTGRES_PASSWORD:?")
        assert services["timescaledb"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")

    def test_the_environment_of_the_container_is_one_that_zander_starts_with(self, compose: dict[str, Any]) -> None:
        given = {**compose["services"]["zander"]["environment"], "EDGE_API_KEY": "a-key-of-the-relays"}
        settings = load(given, env_file=None)
        assert (settings.host, settings.port) == ("0.0.0.0", 8000)
        assert settings.database_url
        assert settings.redis_url


def docker_compose_is_here() -> bool:
    docker = shutil.which("docker")
    return (
        docker is not None
        and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0
    )


def docker_compose_config(tmp_path: Path, **secrets: str) -> subprocess.CompletedProcess[str]:
    """Let Docker read compose.yaml, away from any `.env`."""
    shutil.copy(COMPOSE, tmp_path)
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS} | secrets
    command = ["docker", "compose", "config", "--format", "json"]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not docker_compose_is_here(), reason="docker compose is not installed")
class TestDockerCompose:
    def test_it_accepts_the_file_and_carries_any_password_unchanged(self, tmp_path: Path) -> None:
        answer = docker_compose_config(tmp_path, **SECRETS)
        assert answer.returncode == 0, answer.stderr
        services = yaml.safe_load(answer.stdout)["services"]
        assert services["zander"]["environment"]["PGPASSWORD"] == SECRETS["POSTGRES_PASSWORD"]
        assert services["timescaledb"]["environment"]["POSTGRES_PASSWORD"] == SECRETS["POSTGRES_PASSWORD"]

    @pytest.mark.parametrize("missing", SECRETS)
    def test_it_refuses_to_start_without_a_secret_and_names_it(self, tmp_path: Path, missing: str) -> None:
        answer = docker_compose_config(tmp_path, **(SECRETS | {missing: ""}))
        assert answer.returncode != 0
        assert f"{missing} is not set" in answer.stderr


class TestContainerfile:
    def test_it_runs_as_a_fixed_user_who_is_not_root(self) -> None:
        users = re.findall(r"^USER (\S+)$", CONTAINERFILE.read_text(), re.MULTILINE)
        assert users == ["10001"]

    def test_it_listens_on_the_exposed_port_of_every_address(self) -> None:
        text = CONTAINERFILE.read_text()
        assert "HOST=0.0.0.0 PORT=8000" in text
        assert re.search(r"^EXPOSE 8000$", text, re.MULTILINE)

    def test_the_process_gets_the_signals_itself(self) -> None:
        assert CONTAINERFILE.read_text().rstrip().endswith('CMD ["zander", "serve"]')

    def test_the_health_check_goes_to_the_port_that_is_set(self) -> None:
        text = CONTAINERFILE.read_text()
        assert "HEALTHCHECK" in text
        assert "os.environ['PORT'] + '/health'" in text

    def test_the_build_sees_what_it_copies_and_nothing_else_at_the_top(self) -> None:
        ignored = (ROOT / ".dockerignore").read_text().splitlines()
        assert "*" in ignored
        kept = {line[1:] for line in ignored if line.startswith("!")}
        assert "src" in kept
        assert kept == set(re.findall(r"pyproject\.toml|README\.md|LICENSE|\bsrc\b", CONTAINERFILE.read_text()))

    def test_an_image_without_the_native_path_is_not_built(self) -> None:
        build, _, shipped = CONTAINERFILE.read_text().partition("COPY --from=build /opt/zander /opt/zander")
        assert 'RUN /opt/zander/bin/python -c "import zander._native"' in build
        assert shipped

    def test_dependencies_are_installed_before_the_code_is_copied_and_only_as_locked(self) -> None:
        dependencies, _, code = CONTAINERFILE.read_text().partition("COPY src src")
        installs = re.findall(r"pip install .*", dependencies)
        assert [re.search(r"--require-hashes --requirement (\S+)", line)[1] for line in installs] == [  # type: ignore[index]
            "src/requirements-build.txt",
            "src/requirements.txt",
        ]
        assert "cargo fetch --locked" in dependencies
        assert all("--no-deps" in line for line in re.findall(r"pip (?:install|wheel) .*", code))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml as it is written."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, Version]:
    """Return the versions of a lock; each has a hash."""
    text = (ROOT / "src" / name).read_text().replace("\\\n", "")
    pins = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert all(hashes and all(it.startswith("--hash=sha256:") for it in hashes) for _, *hashes in pins)
    return {canonicalize_name(name): Version(version) for name, version in (pin.split("==") for pin, *_ in pins)}


class TestLocks:
    """`make lock` writes them anew."""

    def test_the_image_has_what_the_server_needs_in_versions_that_it_allows(self, project: dict[str, Any]) -> None:
        versions = locked("requirements.txt")
        needs = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["server"]
        for need in map(Requirement, needs):
            assert versions[canonicalize_name(need.name)] in need.specifier, need

    def test_the_image_is_built_with_what_the_build_needs(self, project: dict[str, Any]) -> None:
        versions = locked("requirements-build.txt")
        for need in map(Requirement, project["build-system"]["requires"]):
            assert versions[canonicalize_name(need.name)] in need.specifier, need

    def test_they_name_no_index(self) -> None:
        for name in ("requirements.txt", "requirements-build.txt"):
            assert "://" not in (ROOT / "src" / name).read_text()


class TestVersion:
    def test_it_stands_in_one_place(self, project: dict[str, Any]) -> None:
        assert version("zander-eeg") == project["project"]["version"]
        for manifest in ("src/native/Cargo.toml", "benches/generator/Cargo.toml"):
            assert "version" not in tomllib.loads((ROOT / manifest).read_text())["package"]

    def test_both_crates_claim_one_compiler(self) -> None:
        manifests = [ROOT / "src/native/Cargo.toml", ROOT / "benches/generator/Cargo.toml"]
        assert len({tomllib.loads(it.read_text())["package"]["rust-version"] for it in manifests}) == 1
