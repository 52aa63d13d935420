import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "serving"), str(TESTS / "vllm"), str(TESTS)]


def pytest_configure(config):
    config.addinivalue_line("markers", "served: starts SGLang servers (minutes)")
