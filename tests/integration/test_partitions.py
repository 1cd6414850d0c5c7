"""Bad networks: connections that stall, break, or fall silent without either end hearing of it."""

import contextlib
from collections.abc import Iterator

import pytest
from sqlalchemy import make_url, text

from tests.proxy import Proxy, proxy
from tests.servers import PostgresServer, RedisServer
from tuner_service.broker import ring
from tuner_service.broker.ring import Ringer
from tuner_service.errors import UnavailableError
from tuner_service.settings import Settings
from tuner_service.storage import Database, database, postgres


@pytest.fixture
def network(postgres: PostgresServer) -> Iterator[Proxy]:
    with proxy(postgres.port) as one:
        yield one


@pytest.fixture
def far_db(
    network: Proxy, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    monkeypatch.setattr(database, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(database, "CONNECT_SECONDS", 1)
    url = make_url(postgres_url).set(port=network.port).render_as_string(hide_password=False)
    with contextlib.closing(Database.open(url)) as db:
        yield db


def ask(db: Database) -> int:
    with db.write() as connection:
        return int(connection.execute(text("SELECT 1")).scalar_one())


def test_a_connection_that_falls_silent_in_a_transaction_is_given_up(
    network: Proxy, far_db: Database
) -> None:
    def fall_silent() -> None:
        with far_db.write() as connection:
            connection.execute(text("SELECT 1"))
            assert network.silence() == 1
            connection.execute(text("SELECT 1"))

    with pytest.raises(UnavailableError):
        fall_silent()
    assert ask(far_db) == 1


def test_connections_that_fell_silent_while_idle_are_replaced(
    network: Proxy, far_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "IDLE_BEFORE_PING_SECONDS", 0.0)
    assert ask(far_db) == 1
    assert network.silence() == 1
    assert ask(far_db) == 1  # the pool's ping gave the old one up


def test_a_stalled_network_is_an_outage_and_ends_with_it(network: Proxy, far_db: Database) -> None:
    assert ask(far_db) == 1
    network.stall()
    with pytest.raises(UnavailableError):
        ask(far_db)
    network.resume()
    assert ask(far_db) == 1


def test_cut_connections_are_an_outage_and_end_with_it(network: Proxy, far_db: Database) -> None:
    assert ask(far_db) == 1
    network.cut(refuse=True)
    with pytest.raises(UnavailableError):
        ask(far_db)
    network.resume()
    assert ask(far_db) == 1


def test_a_ring_into_a_silent_redis_is_given_up(
    redis_private: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ring, "ANSWER_SECONDS", 0.5)
    with proxy(redis_private.port) as network:
        settings = Settings(
            data_dir=tmp_path_factory.mktemp("rings"),
            broker_url=f"redis://127.0.0.1:{network.port}/0",
        )
        ringer = Ringer(settings)
        ringer.ring("cpu")
        ringer.ping()
        network.stall()
        ringer.ring("cpu")  # logged, not raised, and above all not waiting for ever
        with pytest.raises(UnavailableError):
            ringer.ping()
        network.resume()
        ringer.ping()
        ringer.close()
