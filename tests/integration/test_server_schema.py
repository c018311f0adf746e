"""Requests made of the OpenAPI schema: no answer that it does not describe, and no error of the server.

Needs `pip install schemathesis`; skipped without.
"""

import shutil
import subprocess

import pytest

from tests.integration.server_process import ServerProcess

PROGRAM = shutil.which("st")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.skipif(PROGRAM is None, reason="needs schemathesis")
def test_answers_are_those_of_the_schema(tmp_path):
    server = ServerProcess(tmp_path, "--max_streams", "0", "--max_queue", "1000").start()
    # Boundary values only, about 1,600 requests: random ones fail inside of schemathesis on binary fields.
    flags = ["--checks", CHECKS, "--phases", "coverage", "--generation-deterministic", "--request-timeout", "60"]
    command = [PROGRAM, "run", f"{server.url}/openapi.json", *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-4000:]
    assert server.stop() == 143
    assert "Traceback" not in server.log()
