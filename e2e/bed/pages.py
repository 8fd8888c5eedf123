"""Pages of the processes: those of admin listeners, and those of peer listeners, which want a certificate."""

import asyncio
import ssl
from pathlib import Path

ADMIN = 9090


def as_operator(secret: Path) -> ssl.SSLContext:
    """Speaks HTTP to peer listeners with the certificate of this directory. Names are SPIFFE IDs, which peers check."""
    context = ssl.create_default_context(cafile=str(secret / "ca.crt"))
    context.load_cert_chain(secret / "tls.crt", secret / "tls.key")
    context.set_alpn_protocols(["http/1.1"])
    context.check_hostname = False
    return context


async def get(
    address: str, path: str, timeout: float, method: str = "GET", body: bytes = b"",
    port: int = ADMIN, tls: ssl.SSLContext | None = None,
) -> tuple[int, str]:
    """A page: its status and text."""
    async def fetch() -> tuple[int, str]:
        reader, writer = await asyncio.open_connection(address, port, ssl=tls)
        try:
            head = f"{method} {path} HTTP/1.0\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.read()
        finally:
            writer.close()
        top, _, page = answer.partition(b"\r\n\r\n")
        if not top:
            raise ConnectionError(f"{address} said nothing")
        return int(top.split()[1]), page.decode()

    return await asyncio.wait_for(fetch(), timeout)
