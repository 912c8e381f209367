"""Checkpoints, pictures and engines that the tests of the vLLM plugin share; all of a session in one folder."""

import importlib.util
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.vllm.engines", "tests.vllm.server")
collect_ignore = ["environment"]
SKIP = pytest.mark.skip(reason="vLLM is not installed; make test-vllm has an environment with it")


def pytest_collection_modifyitems(items):
    """Skips the tests of this folder where there is no vLLM."""
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(SKIP)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Everything that the session writes."""
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def engines(folder):
    """Starts engines, see `tests.vllm.engines`."""
    from tests.vllm.engines import Engines

    return Engines(folder)


@pytest.fixture(scope="session")
def demo():
    """The bundled model's folder."""
    import vtc.demo

    return Path(vtc.demo.MODEL_DIR)


@pytest.fixture(scope="session")
def checkpoint(folder):
    """checkpoint(kind): the folder of a tiny random model by its name in `pictures.PLACES`, written once."""
    from tests.vllm import checkpoints

    def save(kind: str) -> Path:
        path = folder / kind
        if not path.is_dir():
            checkpoints.save(kind, path)
        return path

    return save
