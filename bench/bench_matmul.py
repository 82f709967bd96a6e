"""Matrix products against NumPy, PyTorch and JAX in one run: `python bench/bench_matmul.py [--threads N] [--json F]`.

The cases are gradsmith.bench.cases_matmul; this is `gradsmith bench matmul --against numpy,torch,jax`.
"""

import sys

from gradsmith.bench import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not any(a.startswith("--against") for a in arguments):
        arguments = ["--against", "numpy,torch,jax", *arguments]
    sys.exit(main(["matmul", *arguments]))
