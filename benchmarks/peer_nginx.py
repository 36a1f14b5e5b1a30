"""The server of peers.py: nginx, and what it serves."""

from __future__ import annotations

import http.client
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

START = 10.0  # seconds for nginx to listen
SMALL = '{"message": "%s"}' % ("x" * 185)  # 200 bytes: a small answer of an API
STATUS = "127.0.1.254"  # where nginx says how many connections there have been; clients have 127.0.1.1 and so on
SERVER_PORTS = range(10000, 30000)  # below Linux's own range for clients, which a listener would take a port from


class Nginx:
    """nginx with a configuration of ours, one process, on one core; with an address for each client.

    *place* is the directory of all its files; "big" in it is served, and "put" takes what is uploaded. *ca* is the
    file of the CA, None where trustme is not installed. HTTP/2 is offered on a port of its own: on the other one
    with TLS a client that could speak it does not.
    """

    def __init__(self, place: Path, addresses: dict[str, str], core: int | None) -> None:
        self._place, self._addresses, self._core = place, addresses, core
        self._status, self._plain, self._tls, self._http2 = random.sample(SERVER_PORTS, 4)
        self.ca = self._certify()

    def start(self) -> None:
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"  # where Debian keeps servers
        program = shutil.which("nginx", path=path)
        if program is None:
            sys.exit("nginx is not installed: apt-get install nginx-light, or put it on the PATH")
        config = self._place / "nginx.conf"
        config.write_text(self._config(_version(program)))
        # The kernel kills it when we die (PR_SET_PDEATHSIG = 1); this and the core survive exec.
        begin = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); core = sys.argv[1]; "
        begin += "core and os.sched_setaffinity(0, {int(core)}); os.execv(sys.argv[2], sys.argv[2:])"
        core = "" if self._core is None else str(self._core)
        command = [
            sys.executable,
            "-c",
            begin,
            core,
            program,
            "-p",
            str(self._place),
            "-c",
            str(config),
            "-e",
            "stderr",
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._asking = http.client.HTTPConnection(STATUS, self._status, timeout=START)
        deadline = time.monotonic() + START
        while True:
            try:
                self.accepted()
                return
            except ConnectionRefusedError:
                self._asking.close()
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                sys.exit(f"nginx does not start (exit code {self._process.returncode}); what it says stands above")
            time.sleep(0.01)

    def stop(self) -> None:
        self._asking.close()
        self._process.kill()
        self._process.wait()

    def where(self, client: str, *, tls: bool, http2: bool) -> tuple[str, int]:
        """Return the address for *client*, and the port."""
        return self._addresses[client], self._http2 if http2 else self._tls if tls else self._plain

    def accepted(self) -> int:
        """Return how many connections there have been; asked over one that is kept, so that the asking adds none."""
        self._asking.request("GET", "/")
        text = self._asking.getresponse().read().decode()
        found = re.search(r"requests\n (\d+) ", text)
        assert found, text
        return int(found[1])

    def _certify(self) -> str | None:
        try:
            import trustme  # optional
        except ImportError:
            return None
        authority = trustme.CA()
        leaf = authority.issue_cert(*self._addresses.values())
        authority.cert_pem.write_to_path(self._place / "ca.pem")
        leaf.private_key_and_cert_chain_pem.write_to_path(self._place / "server.pem")
        return str(self._place / "ca.pem")

    def _config(self, version: tuple[int, ...]) -> str:
        place = self._place
        root = os.geteuid() == 0
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        keys = f"ssl_certificate {place}/server.pem; ssl_certificate_key {place}/server.pem;"
        before = version < (1, 25, 1)  # the first with "http2 on"
        return "\n".join(
            [
                f"daemon off; master_process off; worker_processes 1; error_log stderr; pid {place}/nginx.pid;",
                "user root;" if root else "",
                "events { worker_connections 16384; }",
                "worker_rlimit_nofile 20000;" if root else "",
                "http {",
                *(f"{kind}_temp_path {place}/{kind};" for kind in kinds),
                "access_log off; keepalive_timeout 3600; keepalive_requests 100000000; sendfile on; tcp_nodelay on;",
                "ssl_protocols TLSv1.2 TLSv1.3; output_buffers 4 256k;",
                "client_max_body_size 0; client_body_buffer_size 1m;",
                f"server {{ listen {STATUS}:{self._status}; location / {{ stub_status; }} }}",
                *self._server(self._plain, ""),
                *(self._server(self._tls, " ssl", keys) if self.ca else ()),
                *(
                    self._server(self._http2, *((" ssl http2", keys) if before else (" ssl", f"{keys} http2 on;")))
                    if self.ca
                    else ()
                ),
                "}",
            ]
        )

    def _server(self, port: int, how: str, keys: str = "") -> list[str]:
        fields = {"Cache-Control": "no-cache", "X-Request-Id": "5f0c9a7e41d24b6d", "Vary": "Accept-Encoding"}
        place = self._place
        return [
            "server {",
            *(f"listen {address}:{port}{how} backlog=4096;" for address in self._addresses.values()),
            keys,
            "location /small { default_type application/json;",
            *(f"add_header {name} '{value}';" for name, value in fields.items()),
            f"return 200 '{SMALL}'; }}",
            f"location /big {{ root {place}; default_type application/octet-stream; }}",
            # PUT reads a body to its end, as `return 200` does not.
            f"location /put/ {{ root {place}; dav_methods PUT; create_full_put_path on; }}",
            "}",
        ]


def _version(program: str) -> tuple[int, ...]:
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", told)
    assert found, told
    return tuple(map(int, found.groups()))
