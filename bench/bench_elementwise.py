"""Elementwise ops against the installed peers: python bench/bench_elementwise.py [--against numpy,torch] ..."""

import sys

from gradsmith.bench import main

if __name__ == "__main__":
    sys.exit(main(["elementwise", *sys.argv[1:]]))
