"""Reading the stream without taking anything from it."""

import nats
import nats.js.errors

from eastwest.bus.messages import STREAM
from tests.system.bus_server import RunningServer


async def messages(server: RunningServer, kind: str) -> list[bytes]:
    """The payloads of all messages of a kind ("flows", "totals", "workloads"), oldest first."""
    config = server.files.bus_config("server")
    assert config.password_file is not None
    password = config.password_file.read_text().strip()
    inbox = f"_INBOX_{config.user}"
    client = await nats.connect(config.url, user=config.user, password=password, inbox_prefix=inbox)
    try:
        stream = client.jetstream()
        state = (await stream.stream_info(STREAM)).state
        found = [await stream.get_msg(STREAM, n) for n in range(max(state.first_seq, 1), state.last_seq + 1)]
    except nats.js.errors.NotFoundError:
        return []
    finally:
        await client.close()
    return [m.data or b"" for m in found if m.subject and m.subject.startswith(f"eastwest.{kind}.")]
