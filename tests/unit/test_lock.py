"""A file lock is held by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zander.lock import FileLock

HOLDING = """
import sys
from pathlib import Path
from zander.lock import FileLock
lock = FileLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_is_never_free_before_it_has_its_name(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "name.new").rename(tmp_path / "name.lock")
    with pytest.raises(BlockingIOError):
        FileLock(tmp_path / "name.lock")
    lock.release()
    FileLock(tmp_path / "name.lock").release(remove=True)
    assert os.listdir(tmp_path) == []


def test_a_lock_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(BlockingIOError):
                FileLock(tmp_path / "lock")
        finally:
            process.kill()
    FileLock(tmp_path / "lock").release()


def test_a_locked_file_says_what_was_written_last(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.write("a longer text")
    lock.write("4711")
    assert (tmp_path / "lock").read_text() == "4711"
    lock.release()


def test_the_client_can_be_imported_without_fcntl(tmp_path: Path) -> None:
    code = "import sys; sys.modules['fcntl'] = None; import zander.client"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
