"""Answers /health and one streamed chat, writes counters, keeps a child as an engine would. It says
that each character of a question is a token.

FAKE_VLLM says how to behave: "well", "broken" (ends during the start), "idle" (counts nothing),
"slow" (never ready).
"""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

MODE = os.environ.get("FAKE_VLLM", "well")


def report(calls: int) -> None:
    folder = Path(os.environ["MATE_PLUGIN_REPORT"])
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"op": "ragged_m_gemm", "impl": "avx2", "calls": calls, "seconds": calls / 1000}]
    snapshot = {"pid": os.getpid(), "counters": [] if MODE == "idle" else rows}
    (folder / f"{os.getpid()}.json").write_text(json.dumps(snapshot))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
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


def main() -> None:
    port = int(sys.argv[sys.argv.index("--port") + 1])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    Path(os.environ["FAKE_VLLM_PIDS"]).write_text(f"{os.getpid()} {child.pid}")
    print(f"INFO MATE_PLUGIN_CONFIG={os.environ.get('MATE_PLUGIN_CONFIG')}", flush=True)
    print("INFO Resolved architecture: DeepseekV3ForCausalLM", flush=True)
    if MODE == "broken":
        print("ValueError: the seam came apart", flush=True)
        child.kill()
        sys.exit(3)
    if MODE == "slow":
        time.sleep(120)
    print("INFO Starting to load model", flush=True)
    time.sleep(0.5)
    report(7)
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


main()
