import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "serving"))


def pytest_configure(config):
    config.addinivalue_line("markers", "served: starts vLLM servers (minutes)")
