"""Whether everything that `up` started does its work."""

from datetime import datetime

import httpx

from eastwest.cli.deploy import Deployment


async def missing(deployment: Deployment) -> str | None:
    """What is not there yet: the API's answer, or a report of this host's probe since the start."""
    try:
        async with httpx.AsyncClient(timeout=5.0, trust_env=False, headers=_headers(deployment)) as http:
            response = await http.get(f"{deployment.url}/api/v1/hosts")
    except httpx.HTTPError as error:
        return f"the server does not answer at {deployment.url} ({error or type(error).__name__})"
    if not response.is_success:
        return f"the server answers with {response.status_code}"
    if deployment.host in _reporting(response.json(), deployment.started):
        return None
    return f"the probe of host {deployment.host} has not reported"


def _reporting(hosts: list[dict[str, str]], since: datetime) -> set[str]:
    return {h["host"] for h in hosts if h["time"] and datetime.fromisoformat(h["time"]) >= since}


def _headers(deployment: Deployment) -> dict[str, str]:
    return {"Authorization": f"Bearer {deployment.token}"} if deployment.token else {}
