"""`eastwest ledger`: every packet that was seen is stored, on its way, or lost at a named place."""

import click

from eastwest.cli.client import Api
from eastwest.cli.render import Column, Row, field, number, show_json, show_table


def _lost(row: Row) -> str:
    return ", ".join(f"{place} {packets:,}" for place, packets in row["lost"].items() if packets)


def _exact(value: int) -> str:
    # A ledger is compared digit by digit: no prefixes.
    return f"{value:,}"


COLUMNS = (
    Column("label", field("label"), "right"),
    Column("name", field("name"), keep=False),
    Column("seen", number("seen_packets", _exact), "right"),
    Column("stored", number("stored_packets", _exact), "right"),
    Column("pending", number("pending_packets", _exact), "right"),
    Column("lost", _lost),
    Column("balanced", lambda row: "yes" if row["balanced"] else "NO"),
)


TAP_COLUMNS = (
    Column("tap", field("tap")),
    Column("seen", number("seen_packets", _exact), "right"),
    Column("delivered", number("delivered_packets", _exact), "right"),
    Column("pending", number("pending_packets", _exact), "right"),
    Column("lost", _lost),
    Column("balanced", lambda row: "yes" if row["balanced"] else "NO"),
    Column("not matched", number("not_matched_packets", _exact), "right", drop="empty"),
)


@click.command("ledger")
@click.option("--taps", is_flag=True, help="Of the packets that taps copy, per tap.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(as_json: bool, taps: bool) -> None:
    """Show per label that packets seen = stored + pending + lost, and where they were lost.

    With --taps: per tap that packets seen (those that its filter takes) = delivered + pending + lost.
    Each term is a counter of its own; `balanced` says whether they agree.
    """
    with Api() as api:
        if taps:
            _show_taps(api.get("ledger/taps"), as_json)
            return
        rows = api.get("ledger")
        # Names are for people; the document that scripts read has labels only.
        names = {} if as_json else {row["label"]: row["name"] for row in api.get("labels", {"all": "true"})}
    if as_json:
        show_json(rows)
        return
    rows = [
        row | {"name": names.get(row["label"], "")}
        for row in rows
        if row["seen_packets"] or row["stored_packets"] or not row["balanced"]
    ]
    rows.sort(key=lambda row: (row["balanced"], -row["seen_packets"]))
    show_table(COLUMNS, rows, "nothing seen yet", lambda row: "" if row["balanced"] else "bold red")


def _show_taps(rows: list[Row], as_json: bool) -> None:
    if as_json:
        show_json(rows)
        return
    rows.sort(key=lambda row: (row["balanced"], row["tap"]))
    show_table(TAP_COLUMNS, rows, "nothing is tapped", lambda row: "" if row["balanced"] else "bold red")
