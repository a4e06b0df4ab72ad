"""Hosts on the network: what may be the name or address of one, by one rule, and the way there."""

import asyncio
import re
import socket

from eastwest.errors import RefusedError

_HOST = re.compile(rb"[A-Za-z0-9_.:%-]{1,253}")


def is_host(text: str | None) -> bool:
    """Whether it can be looked up at all. What is no name fails here, not with a UnicodeError later."""
    try:
        return bool(_HOST.fullmatch((text or "").encode("idna")))
    except UnicodeError:
        return False


def host_port(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, an IPv6 address in brackets. Raises RefusedError."""
    host, colon, port = text.rpartition(":")
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bare = plain is host and ":" in host
    if not colon or bare or not is_host(plain) or not re.fullmatch("[0-9]{1,5}", port):
        raise RefusedError(f"'{text}' is not HOST:PORT", "write it like 10.0.0.9:8471 or [fd00::9]:8471")
    if not 0 < int(port) < 1 << 16:
        raise RefusedError(f"'{text}': there is no port {port}", "choose 1 to 65535")
    return plain, int(port)


async def connect(
    host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM, unread_milliseconds: int = 0
) -> socket.socket:
    """A non-blocking socket to the first address of `host` that takes it. Raises OSError.

    `unread_milliseconds`: for how long what is sent by TCP may go unacknowledged; 0: as the system has it.
    """
    loop = asyncio.get_running_loop()
    problem = OSError(f"{host} has no address")
    for family, kind_, protocol, _, place in await loop.getaddrinfo(host, port, type=kind):
        made = socket.socket(family, kind_, protocol)
        try:
            made.setblocking(False)
            if unread_milliseconds and kind is socket.SOCK_STREAM:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unread_milliseconds)
            await loop.sock_connect(made, place)
        except OSError as error:
            made.close()
            problem = error
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise problem
