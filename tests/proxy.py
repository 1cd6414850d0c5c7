"""A TCP proxy on loopback that plays a bad network: it stalls, cuts, and falls silent."""

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

CHUNK = 1 << 16
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Link:
    """One connection through the proxy. Silent, it takes what is sent and passes nothing on."""

    client: socket.socket
    server: socket.socket
    silent: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        """Cut both ends, as a router that forgot the connection does: with an RST."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Passes bytes on to a port of this machine, until it is told otherwise."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._flowing = threading.Event()
        self._flowing.set()
        self._refusing = threading.Event()
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def stall(self) -> None:
        """Hold every byte back; `resume` delivers them, late."""
        self._flowing.clear()

    def resume(self) -> None:
        """Pass bytes on, and take connections, again."""
        self._flowing.set()
        self._refusing.clear()

    def cut(self, *, refuse: bool = False) -> None:
        """Reset every connection, and, if so asked, every new one until `resume`."""
        if refuse:
            self._refusing.set()
        for link in self._all():
            link.reset()

    def silence(self, rng: random.Random | None = None) -> int:
        """Let connections fall silent for good, all or one drawn by `rng`; return how many.

        Neither end hears of it: a half-open connection. New connections work.
        """
        links = self._all()
        chosen = links if rng is None else rng.sample(links, min(1, len(links)))
        for link in chosen:
            link.silent.set()
        return len(chosen)

    def close(self) -> None:
        """End everything."""
        self._listening.close()
        self._flowing.set()
        self.cut()

    def _all(self) -> list[Link]:
        with self._lock:
            return sorted(self._links, key=lambda link: link.client.fileno())

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=5.0)
        except OSError:
            server = socket.socket()
            Link(client, server).reset()
            return
        server.settimeout(None)
        link = Link(client, server)
        if self._refusing.is_set():
            link.reset()
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._links.add(link)
        back = threading.Thread(target=self._pump, args=(link, server, client), daemon=True)
        back.start()
        self._pump(link, client, server)
        back.join()
        with self._lock:
            self._links.discard(link)

    def _pump(self, link: Link, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                self._flowing.wait()
                if not link.silent.is_set():
                    sink.sendall(data)
        if link.silent.is_set() and source is link.server:
            return  # the client does not hear that the server has given up either
        link.reset()


@contextlib.contextmanager
def proxy(target_port: int) -> Iterator[Proxy]:
    """Run a proxy for the block."""
    one = Proxy(target_port)
    try:
        yield one
    finally:
        one.close()
