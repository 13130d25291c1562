"""A grid of runs: on this machine in worker processes or on a Ray cluster, with its progress on the terminal."""
