"""Shared pieces of the tests."""

import time

import numpy as np
import pytest


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")
    parser.addoption(
        "--until", type=float, metavar="T", help="leave out tests that start after T (time.time())"
    )


def pytest_runtest_setup(item):
    until = item.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.skip("left out: no time left")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def rng(request):
    """Fresh random numbers each run; the seed is printed when a test fails."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"rng seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """Runs the test on 1, 2 and 3 threads."""
    import gradsmith as gs

    before = gs.get_num_threads()
    gs.set_num_threads(request.param)
    yield request.param
    gs.set_num_threads(before)


@pytest.fixture
def conv_choice():
    """Gives back what a test sets: the choice of convolution, its precision, the threads."""
    import gradsmith as gs

    before = gs.get_num_threads()
    yield
    gs._cpu.conv_force("")
    gs.set_conv_precision("default")
    gs.set_num_threads(before)
