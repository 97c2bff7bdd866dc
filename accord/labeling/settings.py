"""How a labeling page is served."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class PageSettings:
    """What ``accord label`` decides on; limits are generous to people and too small for floods."""

    project: str
    port: int = 8765
    host_names: tuple[str, ...] = ()
    """Names under which the page may be asked for, besides localhost and IP addresses."""
    tls: bool = False
    behind_proxy: bool = False
    reward_model: str = ""
    """The reward model that is compared with the votes; by default the registry's newest one."""
    session: timedelta = timedelta(days=7)
    body_bytes: int = 1_000_000
    requests_per_second: float = 20.0
    """Of one session, on average."""
    request_burst: int = 200
    login_failures_per_minute: float = 6.0
    """Of one client, on average."""
    login_burst: int = 10

    @property
    def secure(self) -> bool:
        """Whether browsers reach the page over TLS, so that cookies may be limited to it."""
        return self.tls or self.behind_proxy
