"""The published OpenAPI document is a contract: this snapshot shows every change of it.

After a wanted change: `python -m tests.unit.api.test_openapi`.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from tuner_service.api.app import create_app
from tuner_service.settings import Settings
from tuner_service.storage import migrate

SNAPSHOT = Path(__file__).with_name("openapi.json")


def document(directory: Path) -> dict[str, Any]:
    """Return the document as an application on loopback publishes it."""
    settings = Settings(data_dir=directory, host="127.0.0.1", database_url="", broker_url="")
    settings.directory.prepare()
    migrate(settings.resolved_database_url)
    app = create_app(settings)
    with TestClient(app):  # its end closes what it has opened, the dashboard's database too
        return app.openapi()


def test_the_document_is_the_published_one(tmp_path: Path) -> None:
    published = json.loads(SNAPSHOT.read_text())
    assert document(tmp_path) == published


def test_every_operation_says_what_can_go_wrong() -> None:
    published = json.loads(SNAPSHOT.read_text())
    for path, operations in published["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            if path.startswith("/v1"):
                assert {"401", "403", "503"} <= set(operation["responses"]), where
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    assert list(response["content"]) == ["application/problem+json"], where


def main() -> None:
    """Write the snapshot anew."""
    with tempfile.TemporaryDirectory() as directory:
        text = json.dumps(document(Path(directory)), indent=1, sort_keys=True, ensure_ascii=False)
    SNAPSHOT.write_text(text + "\n")


if __name__ == "__main__":
    main()
