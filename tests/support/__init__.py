"""What the tests stand on: namespaces, real servers, and a referee. Imports nothing of fewports."""
