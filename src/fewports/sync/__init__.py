"""Threads: wait, connect, recv, sendall."""
