"""In programs of gevent (gunicorn's gevent workers, locust), which puts classes of its own in the place of sockets."""

from __future__ import annotations

from importlib.metadata import distribution

import pytest
from faces import fresh_h2, fresh_server, run_script

GREENLETS = """
    import sys
    sys.path.append(sys.argv[3])
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gevent.monkey
        gevent.monkey.patch_all()
    import time
    import fewports.requests
    book = fewports.Ledger()
    with fewports.requests.Session(ledger=book, budget=4) as session:
        session.trust_env, session.verify = False, sys.argv[2] or True

        def get(path):
            return session.get(sys.argv[1] + path).status_code

        began = time.monotonic()
        greenlets = [gevent.spawn(get, "/slow?s=0.3") for _ in range(int(sys.argv[4]))]
        gevent.joinall(greenlets)
        assert {greenlet.get() for greenlet in greenlets} == {200}
        print("at once" if time.monotonic() - began < 0.9 else "one after the other")
        print(book.usage()[0].held)
        with gevent.Timeout(0.1, False):
            get("/slow?s=5")
        assert get("/") == 200
    assert not any(usage.active or usage.idle or usage.dialing for usage in book.usage()), book.usage()
"""


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_greenlets_wait_for_each_other_only_for_ports(http2: bool) -> None:
    """Requests of greenlets run at once, wait in line within the budget, and leave nothing when one is cut off."""
    with fresh_h2(tls=True) if http2 else fresh_server() as server:
        place = distribution("gevent").locate_file("")  # not imported: this process is none of gevent's
        done = run_script(GREENLETS, server.url, server.ca_path or "", place, 20 if http2 else 8)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"at once\n{1 if http2 else 4}\n"
