"""What the stand-ins for engines do: answer one path when ready and one streamed chat, write
counters, keep a child as an engine would. They say that each character of a question is a token.

FAKE_ENGINE says how to behave: "well", "broken" (ends during the start), "idle" (counts nothing),
"slow" (never ready).
"""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

MODE = os.environ.get("FAKE_ENGINE", "well")
VARIABLES = ("MATE_PLUGIN_CONFIG", "SGLANG_PLATFORM", "HF_HUB_OFFLINE")


def report(calls: int) -> None:
    folder = Path(os.environ["MATE_PLUGIN_REPORT"])
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"op": "ragged_m_gemm", "impl": "avx2", "calls": calls, "seconds": calls / 1000}]
    snapshot = {"pid": os.getpid(), "counters": [] if MODE == "idle" else rows}
    (folder / f"{os.getpid()}.json").write_text(json.dumps(snapshot))


class Handler(BaseHTTPRequestHandler):
    ready = "/"

    def do_GET(self) -> None:
        self.send_response(200 if self.path == self.ready else 503)
        self.end_headers()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        length = len(asked["messages"][0]["content"])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in ("ka", " lo", " mi"):
            self.chunk(choices=[{"index": 0, "delta": {"content": word}, "finish_reason": None}])
        usage = {"prompt_tokens": length, "completion_tokens": 3, "total_tokens": length + 3}
        self.chunk(choices=[], usage=usage)
        self.wfile.write(b"data: [DONE]\n\n")
        report(107)

    def chunk(self, **fields: object) -> None:
        body = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", **fields}
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())

    def log_message(self, *arguments: object) -> None:
        pass


def serve(ready: str, setting_up: str, building: str) -> None:
    """Start, log the two lines of an engine, and serve; ``ready`` is the path that says so."""
    port = int(sys.argv[sys.argv.index("--port") + 1])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    Path(os.environ["FAKE_ENGINE_PIDS"]).write_text(f"{os.getpid()} {child.pid}")
    for name in VARIABLES:
        print(f"INFO {name}={os.environ.get(name)}", flush=True)
    print(f"INFO arguments: {' '.join(sys.argv[1:])}", flush=True)
    print(f"INFO {setting_up}", flush=True)
    if MODE == "broken":
        print("ValueError: the seam came apart", flush=True)
        child.kill()
        sys.exit(3)
    if MODE == "slow":
        time.sleep(120)
    print(f"INFO {building}", flush=True)
    time.sleep(0.5)
    report(7)
    Handler.ready = ready
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()
