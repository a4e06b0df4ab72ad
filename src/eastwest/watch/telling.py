"""Who was told what: each output's knowledge is brought up to date, whatever came in between.

An alert keeps which of its states each output was last told, also in the store. At every evaluation that is
held against its state now: "firing" is owed to whom it was not told, "resolved" to whom "firing" was, also
where a silence came between. So neither a full queue, nor the limit per minute, nor an output that was away,
nor a restart loses either. What was delivered just before a restart may be told twice.
"""

import time
from collections.abc import Iterable, Sequence

from eastwest.watch.alert import Alert
from eastwest.watch.document import document
from eastwest.watch.outputs import Output

_AGAIN_SECONDS = 300.0
"""After an output gave up on an alert, it is offered that again this much later."""
_OWED_NS = 86400 * 10**9
_RANKS = ("critical", "warning", "info")


class Telling:
    """What is owed to outputs. `most`: how many ended alerts it keeps for them."""

    def __init__(self, outputs: Sequence[Output], most: int) -> None:
        self._outputs = outputs
        self._most = most
        self._under_way: set[tuple[str, str]] = set()
        self._gave_up: dict[tuple[str, str], float] = {}
        self._over: dict[str, Alert] = {}

    def owed(self, alert: Alert) -> bool:
        """Whether somebody is still to be told that it has ended."""
        return alert.id in self._over

    def restore(self, alerts: Iterable[Alert]) -> None:
        """Alerts that had ended when the server was last there, and of which somebody was not told that."""
        self._over |= {alert.id: alert for alert in alerts}

    def ended(self, alert: Alert, silenced: bool) -> None:
        """One has just ended, of which nobody was to be told last where `silenced`. Who was not told of its
        beginning is not told of its end."""
        self._over[alert.id] = alert
        for output in self._outputs:
            key = output.name, alert.id
            if not (silenced or output.name in alert.told or key in self._under_way or key in self._gave_up):
                output.drop("never_told")

    def learn(self, alerts: Iterable[Alert]) -> list[Alert]:
        """Take what outputs have delivered since; the alerts whose document is to be written anew."""
        known = {alert.id: alert for alert in alerts} | self._over
        changed = {}
        for output in self._outputs:
            for name, state, delivered in output.outcomes:
                self._under_way.discard((output.name, name))
                if not delivered:
                    self._gave_up[output.name, name] = time.monotonic()
                elif name in known:
                    known[name].told[output.name] = state
                    changed[name] = known[name]
            output.outcomes.clear()
        return list(changed.values())

    def tell(self, alerts: Iterable[Alert], now: int) -> list[Alert]:
        """Offer what is owed, ends first, as far as there is room; `now`: unix ns. Returns ended alerts of
        which nothing is owed any more: those are to be written anew."""
        monotonic = time.monotonic()
        self._gave_up = {k: at for k, at in self._gave_up.items() if monotonic - at < _AGAIN_SECONDS}
        firing = [alert for alert in alerts if alert.state == "firing"]
        firing.sort(key=lambda alert: (_RANKS.index(alert.severity), alert.first_seen))
        for output in self._outputs:
            for alert in [*self._over.values(), *firing]:
                key = output.name, alert.id
                owed = _owed(alert, output)
                if not owed or key in self._under_way or key in self._gave_up:
                    continue
                if not output.offer(document(alert)):
                    break
                self._under_way.add(key)
        return self._settle(now)

    def _settle(self, now: int) -> list[Alert]:
        done = []
        for place, alert in enumerate(reversed(self._over.values())):
            lost = place >= self._most or now - alert.resolved_at > _OWED_NS
            owed = [output for output in self._outputs if _owed(alert, output)]
            under_way = any((output.name, alert.id) in self._under_way for output in self._outputs)
            if lost or not (owed or under_way):
                done.append(alert)
            for output in owed if lost else ():
                output.drop("never_told")
        for alert in done:
            del self._over[alert.id]
        return done


def _owed(alert: Alert, output: Output) -> bool:
    told = alert.told.get(output.name)
    return told == "firing" if alert.state == "resolved" else told != "firing"
