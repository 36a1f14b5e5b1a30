"""A request as a Session prepares it: what requests does, without what came out the same last time.

Remembered are headers found valid, what the environment says, and what .netrc says of a host; each is looked at again
for each request, and worked out again when it has changed. URLs that need no change get none. Where somebody replaced
one of requests' functions, or it would do more than usual, requests' own method does the work.
"""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Iterable
from http.cookiejar import CookieJar
from operator import attrgetter, is_
from typing import Any, NamedTuple, cast

import requests
import requests.sessions
import requests.utils
from requests.cookies import RequestsCookieJar
from requests.exceptions import InvalidHeader
from requests.models import PreparedRequest
from requests.structures import CaseInsensitiveDict

from ._own import is_own, own

__all__ = ["KEPT", "Preparing", "keep", "place"]

KEPT = 256  # entries in each table, at most

_cookies, _sessions, _utils = cast(
    "tuple[Any, ...]", (requests.cookies, requests.sessions, requests.utils)
)  # the stubs leave out much of what is used here


_PREPARE_REQUEST = own("requests", requests.Session, "prepare_request")
_MERGE_SETTINGS = own("requests", requests.Session, "merge_environment_settings")
_PATH_URL = own("requests", PreparedRequest, "path_url")
_STEPS = (
    *("__init__", "prepare", "prepare_method", "prepare_url", "prepare_headers", "prepare_cookies", "prepare_body"),
    *("prepare_content_length", "prepare_auth", "prepare_hooks"),
)
_preparing = attrgetter(*_STEPS)
_PREPARED_BY = tuple(own("requests", PreparedRequest, step) for step in _STEPS)
_proxying = attrgetter("get_environ_proxies", "should_bypass_proxies", "getproxies", "proxy_bypass")
_PROXIED_BY = (
    own("requests", requests.utils, "get_environ_proxies"),
    own("requests", requests.utils, "should_bypass_proxies"),
    urllib.request.getproxies_environment,  # elsewhere the system is asked, too
    urllib.request.proxy_bypass_environment,  # type: ignore[attr-defined]
)
_GET_NETRC_AUTH = own("requests", requests.utils, "get_netrc_auth")

# URLs that prepare_url() leaves as they are: nothing to encode, to decode or to resolve. A test compares.
_PLAIN_URL = re.compile(
    r"https?://[a-z0-9_-]+(?:\.[a-z0-9_-]+)*(?::(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}))?"
    r"/(?:[\w~:@,=+-][\w.~:@,=+-]*(?:/[\w~:@,=+-][\w.~:@,=+-]*)*/?)?(?:\?[\w.~:@,/=&+-]+)?",
    re.ASCII,
)
_PLAIN_QUERY = re.compile(r"(?:[\w.~=&+-]|%[0-9A-F]{2})*", re.ASCII)  # of what urlencode() makes
# Prepared URLs, as scheme, host, port and what is sent in the request line; without user or fragment.
_PLACE = re.compile(r"(https?)://([a-z0-9_.-]+)(?::([0-9]{1,5}))?(/[!\"$-~]*)(?<!\?)")

Store = OrderedDict[str, tuple[str, Any]]  # what CaseInsensitiveDict keeps: lower-case name -> name and value


def place(request: requests.PreparedRequest) -> re.Match[str] | None:
    """Return scheme, host, port and target of *request*; None if they take a closer look."""
    url = request.url
    if type(request) is not PreparedRequest or type(url) is not str or PreparedRequest.path_url is not _PATH_URL:
        return None
    return _PLACE.fullmatch(url)


class Preparing(requests.Session):
    """requests' Session, which prepares what is usual in less time."""

    _checked: _Checked | None = None

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        method, url = request.method, request.url
        if (
            type(method) is not str
            or type(url) is not str
            or not is_own(super().prepare_request, _PREPARE_REQUEST)
            or _preparing(PreparedRequest) != _PREPARED_BY
            or _sessions.PreparedRequest is not PreparedRequest
        ):
            return super().prepare_request(request)
        cookies = self._merged_cookies(request)
        auth: Any = request.auth
        if self.trust_env and not auth and not self.auth:
            auth = _netrc_auth(url)
        prepared: Any = PreparedRequest()
        prepared.method = method.upper()
        self._prepare_url(prepared, request)
        self._prepare_headers(prepared, request)
        if cookies is None:
            prepared._cookies = RequestsCookieJar()
        else:
            prepared.prepare_cookies(cookies)
        data, files, json = request.data, request.files, request.json
        if data or files or json is not None or type(data) not in (dict, list):
            prepared.prepare_body(data, files, json)
        else:
            prepared.prepare_content_length(None)
        auth = _sessions.merge_setting(auth, self.auth)
        if auth is not None or not _PLACE.fullmatch(prepared.url):
            prepared.prepare_auth(auth, url)
        hooks = _sessions.merge_hooks(request.hooks, self.hooks)
        if hooks != {"response": []}:
            prepared.prepare_hooks(hooks)
        return cast(requests.PreparedRequest, prepared)

    def merge_environment_settings(self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any) -> Any:
        known = _surroundings() if self.trust_env and type(proxies) is dict and not proxies else None
        found = None if known is None or type(url) is not str else _PLACE.fullmatch(url)
        if (
            known is None
            or found is None
            or not is_own(super().merge_environment_settings, _MERGE_SETTINGS)
            or _proxying(requests.utils) != _PROXIED_BY
            or _sessions.get_environ_proxies is not _PROXIED_BY[0]
        ):
            return super().merge_environment_settings(url, proxies, stream, verify, cert)
        if known.proxied:
            proxies.update(known.proxies_to(url, found))
        if verify is True or verify is None:
            verify = known.bundle or verify
        merge = _sessions.merge_setting
        return {
            "proxies": merge(proxies, self.proxies) if proxies or self.proxies != {} else OrderedDict(),
            "stream": merge(stream, self.stream),
            "verify": merge(verify, self.verify),
            "cert": merge(cert, self.cert),
        }

    def _merged_cookies(self, request: requests.Request) -> Any:
        """Return the cookies of the session and of *request* in one jar; None if there are none."""
        given = request.cookies or {}
        if not given and type(self.cookies) is RequestsCookieJar and next(iter(self.cookies), None) is None:
            return None
        if not isinstance(given, CookieJar):
            given = _cookies.cookiejar_from_dict(given)
        return _cookies.merge_cookies(_cookies.merge_cookies(RequestsCookieJar(), self.cookies), given)

    def _prepare_url(self, prepared: Any, request: requests.Request) -> None:
        url, params = cast(str, request.url), request.params
        if self.params or type(params) is not dict:
            prepared.prepare_url(url, _sessions.merge_setting(params, self.params))
            return
        query = prepared._encode_params(params) if params else ""
        if not _PLAIN_URL.fullmatch(url) or not _PLAIN_QUERY.fullmatch(query):
            prepared.prepare_url(url, params)
        elif query:
            prepared.url = f"{url}{'&' if '?' in url else '?'}{query}"
        else:
            prepared.url = url

    def _prepare_headers(self, prepared: Any, request: requests.Request) -> None:
        given: Any = request.headers
        store = self._checked_headers() if type(given) is dict else None
        if store is not None and given:
            store = _add(given.items(), store)
        if store is None:
            merge = _sessions.merge_setting
            prepared.prepare_headers(merge(given, self.headers, dict_class=CaseInsensitiveDict))
            return
        prepared.headers = CaseInsensitiveDict()
        prepared.headers._store = store

    def _checked_headers(self) -> Store | None:
        """Return a copy of the session's headers; None if one is not plain, or not valid."""
        if type(self.headers) is not CaseInsensitiveDict:
            return None
        fields = tuple(cast(Any, self.headers)._store.values())
        known = self._checked
        # A field that is set again is another tuple, be it equal.
        if known is None or len(fields) != len(known.fields) or not all(map(is_, fields, known.fields)):
            store = _add(fields, OrderedDict())
            if store is None:
                return None
            known = self._checked = _Checked(fields, store)
        return known.store.copy()


class _Checked(NamedTuple):
    """A session's headers, found valid."""

    fields: tuple[tuple[str, Any], ...]
    store: Store


def _add(fields: Iterable[tuple[Any, Any]], store: Store) -> Store | None:
    """Add header *fields* to *store*, and return it; None if one is not plain, or not valid."""
    for field in fields:
        name, value = field
        if type(name) is not str or type(value) not in (str, bytes):
            return None
        try:
            _utils.check_header_validity(field)
        except InvalidHeader:
            return None
        store[name.lower()] = field
    return store


class _Surroundings(NamedTuple):
    """What requests reads from the environment."""

    environ: dict[Any, Any]
    proxied: bool
    bundle: str | None
    netrc_paths: tuple[str, ...] | None  # None: they depend on more than the environment
    proxies: dict[tuple[str | Any, ...], dict[str, str]]  # by scheme, host and port

    def proxies_to(self, url: str, found: re.Match[str]) -> dict[str, str]:
        """Return what get_environ_proxies() does, which depends on nothing else."""
        key = found.groups()[:3]
        known = self.proxies.get(key)
        if known is None:
            known = _sessions.get_environ_proxies(url)
            if _environ() == self.environ:  # else it may be that of another
                keep(self.proxies, key, known)
        return cast("dict[str, str]", known)


_last_seen = _Surroundings({}, proxied=False, bundle=None, netrc_paths=None, proxies={})


def _environ() -> dict[Any, Any] | None:
    """Return the dict behind os.environ: to compare all of it takes less than os.environ takes for one variable."""
    environ: Any = os.environ
    behind = environ if type(environ) is dict else getattr(environ, "_data", None)
    return behind if type(behind) is dict else None


def _surroundings() -> _Surroundings | None:
    """Return what the environment says now; None if that cannot be told cheaply."""
    global _last_seen
    environ, known = _environ(), _last_seen
    if not environ:
        return None
    if known.environ == environ:
        return known
    seen = environ.copy()
    named = {os.fsdecode(name): os.fsdecode(value) for name, value in seen.items()}
    given = named.get("NETRC")
    paths: tuple[str, ...] | None = (given,) if given is not None else tuple(f"~/{name}" for name in _utils.NETRC_FILES)
    if given is None and "HOME" in named and os.name == "posix":
        paths = tuple(f"{named['HOME'].rstrip('/')}/{name}" for name in _utils.NETRC_FILES)
    elif given is None or given.startswith("~"):
        paths = None
    _last_seen = _Surroundings(
        seen,
        proxied=any(name.lower().endswith("_proxy") for name in named),
        bundle=named.get("REQUESTS_CA_BUNDLE") or named.get("CURL_CA_BUNDLE"),
        netrc_paths=paths,
        proxies={},
    )
    return _last_seen


SETTLED = 2_000_000_000  # nanoseconds; what changed less long ago may change again within a tick of the file's clock
_UNKNOWN = object()
_netrc_answers: dict[tuple[object, ...], Any] = {}


def _netrc_auth(url: str) -> Any:
    """Return what get_netrc_auth() does, which reads the file each time; here, if it has changed."""
    known, read = _surroundings(), _sessions.get_netrc_auth
    if read is not _GET_NETRC_AUTH or known is None or known.netrc_paths is None:
        return read(url)
    path = next(filter(os.path.exists, known.netrc_paths), None)
    if path is None:
        return None
    try:
        about = os.stat(path)
    except OSError:
        return read(url)
    found = _PLACE.fullmatch(url)
    if found is None or max(about.st_mtime_ns, about.st_ctime_ns) > time.time_ns() - SETTLED:
        return read(url)
    identity = (path, about.st_dev, about.st_ino, about.st_mtime_ns, about.st_ctime_ns, about.st_size)
    key = (*identity, found[2])
    answer = _netrc_answers.get(key, _UNKNOWN)
    if answer is _UNKNOWN:
        answer = read(url)
        if _environ() == known.environ:
            keep(_netrc_answers, key, answer)
    return answer


def keep(table: dict[Any, Any], key: object, value: object) -> None:
    """Put an entry into *table*, which is emptied when it has KEPT of them."""
    if len(table) >= KEPT:
        table.clear()
    table[key] = value
