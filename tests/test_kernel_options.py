from kernel_ns import in_namespace


def test_window_is_per_destination() -> None:
    """A window of 10 ports gives exactly 10 connections to each destination, and to each from a second source."""
    counts = in_namespace("""
        listeners = [listen("127.0.0.1", port) for port in (8001, 8002, 8003)]
        held = [fill(end_of(each), window=(40020, 40029)) for each in listeners]
        held.append(fill(end_of(listeners[0]), source="127.0.0.9", window=(40020, 40029)))
        answer([len(each) for each in held])
        for each in (*listeners, *sum(held, [])): each.close()
    """)

    assert counts == [10, 10, 10, 10]


def test_window_above_32767() -> None:
    """A window's upper end may be above 32767, where the option's value no longer fits a C int, on IPv6 as well."""
    ports = in_namespace("""
        with listen("::1", 8001) as listener:
            clients = fill(end_of(listener), window=(40048, 65535))
            answer(sorted(client.getsockname()[1] for client in clients))
            for client in clients: client.close()
    """)

    assert ports == [40048, 40049]


def test_deferred_port() -> None:
    """With its port deferred, a bound source has the whole range for each of 3 destinations, else for all three."""
    deferred, naive = in_namespace("""
        import errno
        listeners = [listen("127.0.0.1", port) for port in (8001, 8002, 8003)]
        held = [fill(end_of(each), source="127.0.0.5") for each in listeners]
        naive = []
        for listener in listeners * 50:
            client = socket.socket()
            naive.append(client)
            try:
                client.bind(("127.0.0.6", 0))
                client.connect(listener.getsockname())
            except OSError as error:
                assert error.errno == errno.EADDRINUSE
                break
        answer([[len(each) for each in held], len(naive) - 1])
        for each in (*listeners, *naive, *sum(held, [])): each.close()
    """)

    assert deferred == [50, 50, 50]
    assert naive == 50


def test_no_time_wait() -> None:
    """A connection closed with TIME_WAIT skipped delivers its data and leaves nothing; a plain one leaves TIME_WAIT."""
    result = in_namespace("""
        from fewports.kernel import diag, options
        left = []
        for skip in (True, False):
            with connection("127.0.0.1") as (client, server, flow):
                if skip: options.skip_time_wait(client)
                client.sendall(b"all of it")
                client.close()
                received = server.recv(100), server.recv(100)
                server.close()
                assert received == (b"all of it", b"")
                row = diag.look_up(flow)
                left.append(row and row.state.name)
        answer(left)
    """)

    assert result == [None, "TIME_WAIT"]


def test_foreign_source() -> None:
    """An address that no interface carries can be bound once it is allowed, IPv4 and IPv6."""
    outcomes = in_namespace("""
        from fewports.kernel import options
        outcomes = []
        for source in ("192.0.2.77", "2001:db8::77"):
            for allowed in (False, True):
                with socket.socket(family_of(source)) as client:
                    if allowed: options.allow_foreign_source(client)
                    try: client.bind((source, 0))
                    except OSError as error: outcomes.append(error.errno)
                    else: outcomes.append(0)
        answer(outcomes)
    """)

    assert outcomes == [99, 0, 99, 0]  # EADDRNOTAVAIL


def test_state() -> None:
    """tcp_state tells ESTABLISHED from CLOSE_WAIT, in which the peer has closed first."""
    states = in_namespace("""
        from fewports.kernel import options
        with connection("::1") as (client, server, _):
            before = options.tcp_state(client)
            server.close()
            answer([before, options.tcp_state(client)])
    """)

    assert states == [1, 8]
