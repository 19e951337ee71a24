"""The packages of a release, as `make dist` leaves them: what they hold, and what works in a fresh environment."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
BASE = {"numpy", "orjson", "python-dotenv", "websockets"}
MAX_BASE_BYTES = 60_000_000

CLIENT = """
import asyncio
from zander.client import Consumer, Relay
from zander.terminal.watch import watch
from zander.native import IS_NATIVE
print(IS_NATIVE)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def package(pattern: str) -> Path:
    """Return the one package whose name fits."""
    (found,) = DIST.glob(pattern)
    return found


def fresh(folder: Path, python: str, requirement: str) -> Run:
    """Install into a new environment; return what runs one of its programs, in a folder of its own."""
    if python == sys.executable:
        venv.create(folder, with_pip=False)
    else:
        subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", requirement], check=True, timeout=300)

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin" / program), *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """The pure wheel, alone."""
    folder = tmp_path_factory.mktemp("base")
    return folder, fresh(folder, sys.executable, str(package("*-py3-none-any.whl")))


class TestBase:
    def test_it_is_four_packages_of_60_mb_without_byte_code(self, base: tuple[Path, Run]) -> None:
        (site,) = base[0].glob("lib/python*/site-packages")
        names = {re.split(r"-\d", it.name)[0].replace("_", "-") for it in site.glob("*.dist-info")}
        assert names == BASE | {"zander-eeg"}
        files = [it for it in site.rglob("*") if it.is_file() and it.suffix != ".pyc"]
        assert sum(it.stat().st_size for it in files) <= MAX_BASE_BYTES

    def test_the_client_is_there(self, base: tuple[Path, Run]) -> None:
        ended = base[1]("python", "-W", "error", "-c", CLIENT)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "False\n", "")

    def test_zander_watch_waits_for_a_server(self, base: tuple[Path, Run]) -> None:
        ended = base[1]("zander", "watch", "--url", "ws://127.0.0.1:9", "--seconds", "1")
        assert "Traceback" not in ended.stderr
        assert "ModuleNotFoundError" not in ended.stdout + ended.stderr

    @pytest.mark.parametrize(
        ("arguments", "extra"), [(["serve"], "server"), (["migrate"], "server"), (["relay", "--sample"], "local")]
    )
    def test_what_needs_an_extra_says_so(self, base: tuple[Path, Run], arguments: list[str], extra: str) -> None:
        ended = base[1]("zander", *arguments)
        assert ended.returncode == 2
        assert re.fullmatch(rf"zander: [^\n]+: install `zander-eeg\[{extra}\]`\n", ended.stderr)


class TestNative:
    @pytest.mark.parametrize("minor", [11, 12, 13])
    def test_one_wheel_serves_every_python(self, tmp_path: Path, minor: int) -> None:
        name = f"python3.{minor}"
        pythons = (
            [sys.executable] if sys.version_info[1] == minor else [*pyenv(minor), *filter(None, [shutil.which(name)])]
        )
        if not pythons:
            pytest.skip(f"{name} is not installed")
        run = fresh(tmp_path, pythons[0], str(package("*-cp311-abi3-*.whl")))
        assert run("zander", "--version").stdout == f"zander {package('*.tar.gz').name.split('-')[1][:-7]}\n"
        ended = run("python", "-W", "error", "-c", CLIENT)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def pyenv(minor: int) -> list[str]:
    """Return the Pythons that pyenv keeps; its own programs may point to none."""
    return [str(it) for it in sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3"))]


class TestContents:
    def test_the_source_package_can_build_the_native_path(self) -> None:
        with tarfile.open(package("*.tar.gz")) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        assert {"src/native/Cargo.toml", "src/native/Cargo.lock", "src/native/lib.rs"} <= names
        assert not {name for name in names if "target" in name.split("/")}

    def test_the_native_wheel_holds_the_native_path_and_the_pure_one_does_not(self) -> None:
        for pattern, expected in {"*-cp311-abi3-*.whl": ["zander/_native.abi3.so"], "*-py3-none-any.whl": []}.items():
            with zipfile.ZipFile(package(pattern)) as archive:
                assert [name for name in archive.namelist() if name.endswith((".so", ".pyd"))] == expected

    def test_both_hold_the_files_beside_the_code(self) -> None:
        for pattern in ("*-cp311-abi3-*.whl", "*-py3-none-any.whl"):
            with zipfile.ZipFile(package(pattern)) as archive:
                names = set(archive.namelist())
            source = ROOT / "src"
            beside = {it for kind in ("*.sql", "*.html", "py.typed") for it in (source / "zander").rglob(kind)}
            assert {str(it.relative_to(source)) for it in beside} <= names
