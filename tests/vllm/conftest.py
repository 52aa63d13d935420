def pytest_configure(config):
    config.addinivalue_line("markers", "served: starts vLLM servers (minutes)")
