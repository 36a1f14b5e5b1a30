"""What is left when a program just ends: no port, no warning, no word. Each runs in an interpreter of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from faces import fresh_server, run_script, states, until

START = """
import sys
url, secure, ca = sys.argv[1:]
import fewports, fewports.requests
"""
IDLE = """
http = fewports.PoolManager(ca_certs=ca)
for address in (url, secure):
    both = [http.request("GET", address + "/bytes?n=1000", preload_content=False) for _ in range(2)]
    for response in both:
        response.drain_conn()
session = fewports.requests.Session()
session.get(url)
session.get(secure, verify=ca)
pool = fewports.urllib3.HTTPConnectionPool(*url[7:].split(":"))
pool.request("GET", "/")
"""

QUIET = {
    "just ends": IDLE,
    "exits within a with": """
with fewports.PoolManager() as http, fewports.requests.Session() as session:
    http.request("GET", url)
    session.get(url)
    sys.exit()
""",
    "exits in a function": """
def main():
    http = fewports.PoolManager(ca_certs=ca)
    held = [http.request("GET", address + "/") for address in (url, secure)]
    sys.exit()
main()
""",
    "from threads": """
import concurrent.futures, threading, time
http = fewports.PoolManager()
with concurrent.futures.ThreadPoolExecutor(5) as executor:
    list(executor.map(lambda _: http.request("GET", url + "/slow?s=0.05").status, range(5)))
concurrent.futures.ThreadPoolExecutor(1).submit(http.request, "GET", url + "/slow?s=0.1")
threading.Thread(target=lambda: (time.sleep(0.1), http.request("GET", url + "/"))).start()
""",
    "in reference cycles": """
class Client:
    def __init__(self):
        self.http, self.me = fewports.PoolManager(), self
        self.http.request("GET", url)
for _ in range(3):
    Client()
""",
    "retired connections": """
import time
http = fewports.PoolManager(idle_limit=0.05)
http.request("GET", url)
time.sleep(0.15)
""",
    "a last request from an exit handler": """
import atexit, logging
session = fewports.requests.Session()
session.get(url)
class Shipper(logging.Handler):
    def emit(self, record):
        pass
    def flush(self):
        print(session.get(url).status_code)
logging.getLogger().addHandler(Shipper())
late = fewports.PoolManager()
late.request("GET", url)
atexit.register(lambda: print(late.request("GET", url).status))
""",
    "responses unread": """
http = fewports.PoolManager(ca_certs=ca)
unread = [http.request("GET", address + "/bytes?n=3000000", preload_content=False) for address in (url, secure)]
stream = fewports.requests.Session().get(url + "/bytes?n=3000000", stream=True)
""",
    "waiting at the end": """
import threading
http = fewports.PoolManager(ledger=fewports.Ledger(1))
kept = http.request("GET", url + "/bytes?n=3000000", preload_content=False)
threading.Thread(target=lambda: http.request("GET", url), daemon=True).start()
""",
    "with subscribers": """
def tell(event):
    print(type(event).__name__)
fewports.configure().subscribe(tell)
http = fewports.PoolManager()
http.request("GET", url)
""",
}
PRINTED = {
    "a last request from an exit handler": "200\n200\n",
    "with subscribers": "PortReserved\nConnectionOpened\nConnectionClosed\n",
}


@pytest.mark.parametrize("program", QUIET)
def test_a_program_that_ends_leaves_nothing(program: str) -> None:
    """A program that ends without closing anything leaves no TIME_WAIT, no FIN_WAIT2 and not a word."""
    with fresh_server() as plain, fresh_server(tls=True) as secure:
        done = run_script(START + QUIET[program], plain.url, secure.url, secure.ca_path)

        assert (done.returncode, done.stderr, done.stdout) == (0, "", PRINTED.get(program, ""))
        assert until(lambda: states(plain.port, secure.port) == {}, 2), states(plain.port, secure.port)


def test_an_exception_ends_it_as_well() -> None:
    """A program that dies of an exception says so and leaves nothing either."""
    with fresh_server() as plain, fresh_server(tls=True) as secure:
        done = run_script(START + IDLE + "raise ArithmeticError('mine')", plain.url, secure.url, secure.ca_path)

        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "ArithmeticError: mine"
        assert "Exception ignored" not in done.stderr
        assert until(lambda: states(plain.port, secure.port) == {}, 2)


def test_ctrl_c_ends_it_as_well() -> None:
    """A program that is interrupted in the middle of a request leaves at most that request's port."""
    script = START + IDLE + 'print("ready", flush=True); http.request("GET", url + "/slow?s=9")'
    with fresh_server() as plain, fresh_server(tls=True) as secure:
        command = [
            sys.executable,
            "-X",
            "dev",
            "-W",
            "error",
            "-c",
            script,
            plain.url,
            secure.url,
            secure.ca_path or "",
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stderr
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            assert process.stderr.read().splitlines()[-1] == "KeyboardInterrupt"
        assert process.returncode == -signal.SIGINT

        assert until(lambda: sum(states(plain.port, secure.port).values()) <= 1, 2)


def test_a_socket_left_open_is_told_of() -> None:
    """A socket of create_connection() that nobody closed warns at the end, as one of the socket module does."""
    script = START + "host, port = url[7:].split(':')\nsock = {}((host, int(port)))"
    with fresh_server() as plain:
        told = []
        for connect in ("__import__('socket').create_connection", "fewports.create_connection"):
            done = run_script(script.format(connect), plain.url, "", "")
            assert done.returncode == 0
            told.append([line for line in done.stderr.splitlines() if "ResourceWarning: unclosed" in line])

        assert [len(lines) for lines in told] == [1, 1]
