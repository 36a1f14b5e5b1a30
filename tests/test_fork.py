"""After fork the child starts clean, and the parent's connections live on. All in processes of their own."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from faces import BODY, Aside, counts, fresh_server, run_script, states, until
from support.ns import in_namespace
from support.servers import H2Server, HttpProxy, HttpServer

import fewports
from fewports.urllib3 import PoolManager, proxy_from_url


class Forked:
    """A child that does *work* and hands back what it returns; it goes on until result() is asked for."""

    def __init__(self, work: Callable[[], object]) -> None:
        answers, answering = os.pipe()
        waits, self._go = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of a process with threads
            self.pid = os.fork()
        if self.pid == 0:
            signal.alarm(10)
            os.close(self._go)
            try:
                answer = pickle.dumps(work())
            except BaseException as error:
                answer = pickle.dumps(repr(error))
            os.write(answering, answer)
            os.read(waits, 1)
            gc.collect()
            os._exit(0)
        os.close(answering)
        os.close(waits)
        self._answers = answers
        self.answer = pickle.loads(os.read(answers, 60_000))

    def end(self) -> None:
        os.close(self._go)
        os.close(self._answers)
        os.waitpid(self.pid, 0)


@contextlib.contextmanager
def forked(work: Callable[[], object]) -> Iterator[Any]:
    child = Forked(work)
    try:
        yield child.answer
    finally:
        child.end()


def sockets() -> list[str]:
    """Return the TCP sockets that this process has open, by inode, its netlink sockets and listeners left out."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    with open("/proc/net/tcp") as file:
        inodes = {f"socket:[{line.split()[9]}]" for line in file.readlines()[1:]}
    return sorted(inodes.intersection(links))


@in_namespace()
def test_the_child_starts_clean_and_the_parent_goes_on() -> None:
    """The child has no lease, no idle connection, no descriptor; the parent reads on and sends on, plain and TLS."""
    book = fewports.Ledger()
    with HttpServer() as plain, HttpServer(tls=True) as secure:
        http = PoolManager(ledger=book, ca_certs=secure.ca_path)
        for server in (plain, secure):
            http.request("GET", server.url + "/")
        active = [
            http.request("GET", server.url + "/bytes?n=2000000", preload_content=False) for server in (plain, secure)
        ]
        for server in (plain, secure):
            http.request("GET", server.url + "/")
        raw = fewports.create_connection(plain.addresses[0], ledger=book)
        pools = [http.connection_from_url(server.url) for server in (plain, secure)]
        assert counts(book) == (3, 2, 0)
        assert len(sockets()) == 5

        def child() -> object:
            return (
                sockets(),
                book.usage(),
                [pool.home.quiet() for pool in pools],
                raw.fileno(),
                threading.active_count(),
            )

        with forked(child) as answer:
            assert answer == ([], [], [[], []], -1, 1)
        assert counts(book) == (3, 2, 0)
        assert [len(response.read()) for response in active] == [2_000_000] * 2
        raw.sendall(b"GET /close HTTP/1.1\r\n\r\n")
        assert raw.recv(12) == b"HTTP/1.1 200"
        raw.close()
        for server in (plain, secure):
            for _ in range(3):
                assert http.request("GET", server.url + "/", retries=False).json() == BODY

        assert plain.stats()["accepted"] == 3
        assert secure.stats()["accepted"] == 2
        http.clear()


@in_namespace()
def test_the_child_makes_its_own_requests() -> None:
    """The same manager serves the child over connections of the child's own, within a budget counted anew."""
    book = fewports.Ledger(2)
    with HttpServer() as plain, HttpServer(tls=True) as secure, HttpProxy() as proxy:
        http = PoolManager(ledger=book, ca_certs=secure.ca_path)
        tunnels = proxy_from_url(proxy.url, ledger=book, ca_certs=secure.ca_path)

        def work() -> object:
            told = [http.request("GET", server.url + "/", retries=False).json() for server in (plain, secure) * 2]
            told += [tunnels.request("GET", secure.url + "/", retries=False).json() for _ in range(2)]
            return told, counts(book)

        assert work() == ([BODY] * 6, (0, 3, 0))
        with forked(work) as answer, forked(work) as other:
            assert answer == other == ([BODY] * 6, (0, 3, 0))
            assert work() == ([BODY] * 6, (0, 3, 0))

        assert [server.stats()["accepted"] for server in (plain, secure, proxy)] == [3, 6, 3]
        http.clear()
        tunnels.clear()


@in_namespace()
def test_what_the_parent_closes_is_closed() -> None:
    """While the child lives the parent's close ends the connection at the server: the child holds no copy."""
    for tls in (False, True):
        with HttpServer(tls=tls) as server:
            http = PoolManager(ledger=fewports.Ledger(), ca_certs=server.ca_path)
            http.request("GET", server.url + "/")
            raw = fewports.create_connection(server.addresses[0])
            with forked(lambda: None):
                http.clear()
                raw.close()

                assert until(lambda: server.stats()["open"] == 0)
                assert "ESTABLISHED" not in states(server.port)


@in_namespace()
def test_the_child_does_not_read_the_parents_response() -> None:
    """A response inherited by the child cannot be read there; its bytes stay the parent's."""
    with HttpServer() as server, PoolManager(ledger=fewports.Ledger()) as http:
        response = http.request("GET", server.url + "/bytes?n=3000000", preload_content=False)
        read = len(response.read(100_000))

        def child() -> object:
            try:
                return len(response.read(2_000_000))
            except Exception as error:
                return type(error).__name__

        with forked(child) as answer:
            assert answer == "ProtocolError"
        assert read + len(response.read()) == 3_000_000


@in_namespace(drop_all=True)
def test_a_fork_in_the_middle_of_everything() -> None:
    """With threads dialing, waiting in line, and in the ledger, the child is as clean, and can work."""
    book = fewports.Ledger(fewports.Budget(2, wait=0.6))
    with HttpServer() as server:
        kept = [fewports.create_connection(server.addresses[0], ledger=book) for _ in range(2)]

        def dial(address: tuple[str, int]) -> str:
            try:
                fewports.create_connection(address, 0.5, ledger=book)
            except Exception as error:
                return type(error).__name__
            return ""

        dialing, waiting = Aside(lambda: dial(("10.200.77.1", 80))), Aside(lambda: dial(server.addresses[0]))
        assert until(lambda: len(book.usage()) == 4 and any(usage.waiting for usage in book.usage()))

        def child() -> object:
            mine = [fewports.create_connection(server.addresses[0], ledger=book) for _ in range(2)]
            held = len(sockets())
            for sock in mine:
                sock.close()
            return held, counts(book)[0]

        with book._lock, forked(child) as answer:
            assert answer == (2, 0)
        assert dialing.result() == "TimeoutError"
        assert waiting.result() == "BudgetExhausted"
        assert counts(book)[0] == 2
        for sock in kept:
            sock.close()


@in_namespace()
def test_no_descriptor_is_between_two_owners() -> None:
    """However busy the other threads are with opening sockets, the child finds and closes its copy of each."""
    with HttpServer() as server:
        book, over = fewports.Ledger(), threading.Event()
        others = len(sockets())

        def dial() -> None:
            while not over.is_set():
                fewports.create_connection(server.addresses[0], ledger=book).close()

        threads = [Aside(dial) for _ in range(6)]
        try:
            left = []
            for _ in range(40):
                with forked(lambda: len(sockets())) as answer:
                    left.append(answer)
        finally:
            over.set()
            for thread in threads:
                thread.result()

        assert left == [others] * 40


def test_a_child_that_ends_by_itself_disturbs_nobody() -> None:
    """A child that ends through exit handlers and finalizers leaves the connections of its parent alone."""
    script = """
        import multiprocessing, os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import fewports
        http = fewports.PoolManager(ca_certs=sys.argv[2] or None)
        urls = sys.argv[1].split(",")
        active = [http.request("GET", url + "/bytes?n=500000", preload_content=False) for url in urls]
        idle = [http.request("GET", url + "/").status for url in urls]
        if os.fork() == 0:
            assert [http.request("GET", url + "/").status for url in urls] == [200, 200]
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
        def work(url):
            assert http.request("GET", url + "/").status == 200
        for url in urls:
            process = multiprocessing.get_context("fork").Process(target=work, args=(url,))
            process.start()
            process.join()
            assert process.exitcode == 0
        print([len(response.read()) for response in active])
        print([http.request("GET", url + "/", retries=False).status for url in urls * 2])
    """
    with fresh_server() as plain, fresh_server(tls=True) as secure:
        done = run_script(script, f"{plain.url},{secure.url}", secure.ca_path)

        assert (done.stdout, done.stderr) == ("[500000, 500000]\n[200, 200, 200, 200]\n", "")
        assert plain.stats()["accepted"] == secure.stats()["accepted"] == 4


def test_a_fork_while_another_thread_imports_h2() -> None:
    """The child can make its own request over HTTP/2: no half-done import is left to wait for."""
    script = """
        import importlib.abc, os, signal, sys, threading, time, warnings
        import fewports

        begun = threading.Event()

        class Slow(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "h2.settings":  # in the middle of h2
                    begun.set()
                    time.sleep(0.2)

        def ask():
            with fewports.PoolManager(ca_certs=sys.argv[2], ledger=fewports.Ledger()) as http:
                return http.request("GET", sys.argv[1], retries=False).version

        sys.meta_path.insert(0, Slow())
        thread = threading.Thread(target=ask)
        thread.start()
        assert begun.wait(10)
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of a process with threads
        child = os.fork()
        if child == 0:
            signal.alarm(5)
            os._exit(ask())
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        thread.join()
    """
    with H2Server(tls=True) as server:
        done = run_script(script, server.url, server.ca_path)

        assert (done.stdout, done.stderr) == ("20\n", "")
