"""Whether everything that `up` started does its work."""

from datetime import datetime
from types import TracebackType
from typing import Self

import httpx

from eastwest.cli.deploy import Deployment


class Readiness:
    """Asks the API of a deployment while it is entered."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        headers = {"Authorization": f"Bearer {deployment.token}"} if deployment.token else {}
        # verify: loading certificates takes longer than all the rest, and the server speaks plain HTTP.
        self._http = httpx.AsyncClient(timeout=5.0, trust_env=False, verify=False, headers=headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def missing(self) -> str | None:
        """What is not there yet: the API's answer, or a report of this host's probe since the start."""
        url, host = self._deployment.url, self._deployment.host
        try:
            response = await self._http.get(f"{url}/api/v1/hosts")
        except httpx.HTTPError as error:
            return f"the server does not answer at {url} ({error or type(error).__name__})"
        if not response.is_success:
            return f"the server answers with {response.status_code}"
        if host in _reporting(response.json(), self._deployment.started):
            return None
        return f"the probe of host {host} has not reported"


def _reporting(hosts: list[dict[str, str]], since: datetime) -> set[str]:
    return {h["host"] for h in hosts if h["time"] and datetime.fromisoformat(h["time"]) >= since}
