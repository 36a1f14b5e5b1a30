"""Servers that are installed, nginx and nghttpd: context managers, each a process that ends with the test process.

The test ends as need.missing() says where the program is not installed. Their ports lie outside of the ephemeral
range; "https" certificates are those of servers.authority().
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support import need
from support.http_server import HELLO
from support.listeners import free_port
from support.sampler import Kernel
from support.servers import Listening, authority

BIG = 100_000_000  # bytes of /big, all of them 0


class Program(Listening):
    """A program that listens; what it needs is in a directory of its own."""

    name: str

    def __init__(self, *addresses: str, tls: bool = False) -> None:
        self._addresses = addresses or ("127.0.0.1",)
        self._keys = authority(*self._addresses) if tls else None
        if self._keys:
            self.scheme, self.ca_path = "https", self._keys.ca_path

    def __enter__(self) -> Self:
        path = need.program(self.name)
        port = free_port(list(self._addresses))
        self.addresses = [(address, port) for address in self._addresses]
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix=f"fewports-{self.name}-"))
            with Path(place, "big").open("wb") as file:
                file.truncate(BIG)
            arguments = [path, *self.arguments(place)]
            # The kernel kills it when we die (PR_SET_PDEATHSIG = 1); the setting survives exec.
            start = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
            process = subprocess.Popen(
                [sys.executable, "-c", start, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            self._wait(process, port)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def arguments(self, place: str) -> list[str]:
        """Put what it reads into the directory *place*; return its arguments."""
        raise NotImplementedError

    def _wait(self, process: subprocess.Popen[bytes], port: int) -> None:
        """Wait until it listens, which the kernel says: a connection to try would leave a TIME_WAIT."""
        deadline = time.monotonic() + 10
        with contextlib.closing(Kernel()) as kernel:
            while len(kernel.listening(port)) < len(self._addresses):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"no {self.name} (exit code {process.poll()}); see the captured stderr")
                time.sleep(0.01)


class Nginx(Program):
    """nginx, one process: /big is a file of BIG bytes, every other path HELLO, 200 bytes of JSON.

    *http2*: over TLS it offers h2 and http/1.1; without TLS nginx before 1.25.1 speaks nothing else then.
    *streams* and *requests* are those of a connection, *keepalive_timeout* is in seconds. *app* is the URL of a
    server to which all paths but /hello and /big go, uploads as they come.
    """

    name = "nginx"

    def __init__(
        self,
        *addresses: str,
        tls: bool = False,
        keepalive_timeout: int = 3600,
        http2: bool = False,
        streams: int = 128,
        requests: int = 100_000_000,
        app: str | None = None,
    ) -> None:
        super().__init__(*addresses, tls=tls)
        self._keepalive, self._http2, self._streams, self._requests = keepalive_timeout, http2, streams, requests
        self._app = app

    def accepted(self) -> int:
        """Return how many connections it has accepted."""
        with contextlib.closing(http.client.HTTPConnection(self.host, self._status, timeout=5)) as asking:
            asking.request("GET", "/", headers={"Connection": "close"})
            text = asking.getresponse().read().decode()
        self._asked += 1
        found = re.search(r"requests\n (\d+) ", text)
        assert found, text
        return int(found[1]) - self._asked

    def arguments(self, place: str) -> list[str]:
        self._asked = 0
        self._status = free_port([self.host])
        Path(place, "nginx.conf").write_text("\n".join(self._config(place)))
        return ["-p", place, "-c", f"{place}/nginx.conf", "-e", "stderr"]

    def _config(self, place: str) -> list[str]:
        root = os.geteuid() == 0
        suffix = " ssl" if self._keys else ""
        protocol = ""
        if self._http2 and _version(need.program("nginx")) < (1, 25, 1):
            suffix += " http2"
        elif self._http2:
            protocol = "http2 on;"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        return [
            "daemon off; master_process off; error_log stderr; pid nginx.pid;",
            "user root;" if root else "",
            "events { worker_connections 16384; }",
            "worker_rlimit_nofile 20000;" if root else "",
            "http {",
            *(f"{kind}_temp_path {place}/{kind};" for kind in kinds),
            f"access_log off; keepalive_timeout {self._keepalive}; keepalive_requests {self._requests};",
            f"client_max_body_size 0; http2_max_concurrent_streams {self._streams};",
            f"server {{ listen {self.host}:{self._status}; location / {{ stub_status; }} }}",
            f"upstream app {{ server {self._app.partition('//')[2]}; keepalive 64; }}" if self._app else "",
            "server {",
            *(f"listen {url.partition('//')[2]}{suffix} backlog=8192;" for url in self.urls),
            protocol,
            f"ssl_certificate {self._keys.chain}; ssl_certificate_key {self._keys.key};" if self._keys else "",
            f"location = /big {{ root {place}; }}",
            f"location = /hello {{ default_type application/json; return 200 '{HELLO.decode()}'; }}",
            "location / {",
            *self._root(),
            "}}}",
        ]

    def _root(self) -> list[str]:
        if self._app is None:
            return ["default_type application/json;", f"return 200 '{HELLO.decode()}';"]
        return [
            "proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection '';",
            "proxy_buffering off; proxy_request_buffering off; proxy_set_header Host $http_host;",
            "proxy_next_upstream off;",
        ]


class Nghttpd(Program):
    """nghttpd, the server of nghttp2: HTTP/2 and nothing else. It sends uploads back.

    /hello is HELLO, /big a file of BIG bytes. *streams* are those of a connection; *trailer* ("name: value") follows
    each body.
    """

    name = "nghttpd"

    def __init__(self, address: str = "127.0.0.1", *, tls: bool = False, streams: int = 100, trailer: str = "") -> None:
        super().__init__(address, tls=tls)
        self._streams, self._trailer = streams, trailer

    def arguments(self, place: str) -> list[str]:
        for name in ("hello", "echo"):
            Path(place, name).write_bytes(HELLO)
        options: list[Any] = ["-a", self.host, "-d", place, "-m", self._streams, "--echo-upload"]
        if self._trailer:
            options += ["--trailer", self._trailer]
        if self._keys is None:
            return [*map(str, options), "--no-tls", str(self.port)]
        return [*map(str, options), str(self.port), self._keys.key, self._keys.chain]


@functools.cache
def _version(nginx: str) -> tuple[int, ...]:
    told = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", told)
    assert found, told
    return tuple(map(int, found.groups()))
