"""The API under requests that its own OpenAPI document allows, almost allows, and forbids (schemathesis)."""

import asyncio
import os
import sys
import time
from pathlib import Path

from tests.system.fake_probe import FakeProbe, flow_rows, workload
from tests.system.server_site import site

EXAMPLES = os.environ.get("EASTWEST_FUZZ_EXAMPLES", "3")
"""Requests made up for each operation, beside those of its schema's corners; `make fuzz` wants more."""

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)


def test_every_answer_is_one_that_the_document_promises(tmp_path: Path) -> None:
    """No server error; status, content type and body as documented; what the document forbids is refused."""

    async def scenario() -> None:
        async with site(tmp_path) as s:
            probe = FakeProbe(s.probe_bus)
            await probe.workloads(workload(1, "web"), workload(2, "0"))
            await probe.send("eastwest.flows", flow_rows([0, 1, 2], [1, 2, 3], time.time_ns()).tobytes())
            await probe.totals()
            await probe.report(time.time_ns())
            await probe.answer()
            await s.settled(3)
            command = (
                sys.executable, "-m", "schemathesis.cli", "run", f"{s.api.base_url}/openapi.json",
                "--checks", ",".join(CHECKS), "--max-examples", EXAMPLES, "--phases", "coverage,fuzzing",
                "--generation-database", "none", "--seed", "1", "--no-color", "--continue-on-failure",
            )  # fmt: skip
            running = await asyncio.create_subprocess_exec(
                *command,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=tmp_path,
                env=os.environ | {"NO_PROXY": "127.0.0.1"},
            )
            output, _ = await running.communicate()
            assert running.returncode == 0, output.decode()[-8000:]
            assert (await s.get("health"))["collector"]["problem"] is None

    asyncio.run(scenario())
