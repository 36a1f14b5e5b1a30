"""A client at work for once: in processes and a network of its own, watched by the kernel."""
