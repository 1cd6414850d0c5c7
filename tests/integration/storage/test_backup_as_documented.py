"""The commands of docs/reliability.md bring everything back, also after a crash."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.readme import blocks
from tests.integration.lifecycle.hands import SETTINGS
from tests.integration.storage.written import answers, write_everything
from tests.invariants import check_invariants
from tests.servers import PostgresServer, postgres_bin
from tuner_service.access.keys import create_key, list_keys
from tuner_service.storage import Database, check_schema

PAGE = "docs/reliability.md"
CRASH = """
import os, signal, sys
from tuner_service.access.keys import create_key
from tuner_service.storage import Database
db = Database.open(sys.argv[1])
for number in range(100):
    create_key(db, f"later-{number}")
os.kill(os.getpid(), signal.SIGKILL)
"""


def script(part: str, kind: str) -> str:
    """Return a page's commands to back up or to restore a database of this kind."""
    kinds = {"sqlite", "postgresql"}
    found = [
        block.text
        for block in blocks(PAGE)
        if block.marks and block.marks[0] == part and not kinds - {kind} & set(block.marks)
    ]
    assert len(found) == {"backup": 3, "restore": 3}[part]
    return "".join(found)


def test_a_backup_of_a_file_that_is_missing_fails(tmp_path: Path) -> None:
    text = script("backup", "sqlite").replace("saved=/backup/", f"saved={tmp_path}/")
    env = os.environ | {"TUNER_DATA_DIR": str(tmp_path)}
    done = subprocess.run(["bash", "-e", "-c", text], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "unable to open database file" in done.stderr
    assert not (tmp_path / "tuner.db").exists()


def test_the_documented_commands_bring_everything_back(
    migrated_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kind = "sqlite" if migrated_url.startswith("sqlite") else "postgresql"
    data, backup = tmp_path / "data", tmp_path / "backup"
    data.mkdir()
    url = restored = migrated_url
    addresses = {"saved=/backup/": f"saved={backup}/"}
    if kind == "sqlite":
        shutil.move(migrated_url.removeprefix("sqlite:///"), data / "tuner.db")
        url = restored = f"sqlite:///{data}/tuner.db"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        restored = server.url(server.create_database())
        for name, of in {"tuner": url, "restored": restored}.items():
            documented = f"postgresql://tuner@DATABASE:5432/{name}"
            addresses[documented] = of.replace("+psycopg", "")

    def run(text: str) -> None:
        for old, new in addresses.items():
            text = text.replace(old, new)
        path = f"{Path(sys.executable).parent}:{postgres_bin()}:{os.environ['PATH']}"
        more = {"PATH": path, "TUNER_DATA_DIR": str(data), "TUNER_DATABASE_URL": restored}
        done = subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail", "-c", text],
            env=os.environ | more,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    model = data / "models" / "1" / "7" / "model.safetensors"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"weights")
    with contextlib.closing(Database.open(url)) as db:
        write_everything(db)
        key_id, _ = create_key(db, "kept")
        before, keys = answers(db), list_keys(db)
        run(script("backup", kind))
    subprocess.run([sys.executable, "-c", CRASH, url], check=False)
    if kind == "sqlite":
        assert (data / "tuner.db-wal").stat().st_size > 0

    (saved,) = backup.iterdir()
    run(f"saved={saved}\n" + script("restore", kind))

    assert model.read_bytes() == b"weights"
    with contextlib.closing(Database.open(restored)) as db:
        check_schema(db)
        assert answers(db) == before
        assert list_keys(db) == keys
        assert key_id in {key.id for key in keys}
        check_invariants(db, settings=SETTINGS)
