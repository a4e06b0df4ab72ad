"""`top` with textual's pilot against a stub API."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static

from eastwest.cli.board import Board
from eastwest.cli.feed import Feed
from eastwest.cli.flowscreen import FlowScreen, add_up
from eastwest.cli.grid import Grid
from eastwest.cli.headline import headline
from eastwest.cli.rates import Rate, Rates
from tests.unit.cli_stub import Stub, entry, flow, host, label, serving

Script = Callable[[Board, "Pilot[None]", Stub], Awaitable[None]]


def counted(number: int, name: str, packets: int, octets: int, **fields: object) -> dict[str, object]:
    return label(number, name, egress_packets=packets, egress_bytes=octets, **fields)


def play(script: Script, size: tuple[int, int] = (80, 24)) -> None:
    """Run a script on the board of a stub with three labels."""

    async def scenario() -> None:
        with serving() as stub:
            stub.answers |= {
                "labels": [
                    counted(0, "unattributed", 1, 10),
                    counted(7, "web", 100, 1_000_000, tenant="red", kind="cgroup"),
                    counted(8, "db", 5, 2_000_000, tenant="blue", suspect_egress_packets=4),
                ],
                "hosts": [host()],
                "ledger": [entry(7, 100), entry(8, 9)],
                "health": {"server": {"cpu_percent": 3.0, "memory_bytes": 300_000_000}},
                "alerts": [{"state": "firing"}, {"state": "silenced"}],
            }
            async with Feed(stub.url) as feed:
                board = Board(feed, interval=0.02)
                async with board.run_test(size=size) as pilot:
                    await until(lambda: board.query_one(Grid).row_count == 3)
                    await script(board, pilot, stub)

    asyncio.run(scenario())


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition; fail if it does not hold in time."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def shown(board: Board) -> list[list[str]]:
    """Cells of the table, row by row."""
    grid = board.query_one(Grid)
    return [[cell.plain.strip() for cell in grid.get_row_at(i)] for i in range(grid.row_count)]


def names(board: Board) -> list[str]:
    return [row[1] for row in shown(board)]


def _is(board: Board, order: list[str]) -> bool:
    return names(board) == order


def head(board: Board) -> str:
    """What stands above the table."""
    parts = (board.screen_stack[0].query_one(name, Static) for name in ("#head", "#problem"))
    return "\n".join(str(part.visual) for part in parts if part.display)


def screen(board: Board) -> str:
    """The screen as the terminal has it."""
    strips = board.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


def test_rates_from_counters() -> None:
    """Difference over time, per direction; suspect packets are among them; the window slides."""
    rates = Rates(window=4.0)
    for second in range(10):
        octets = 1000 * second if second < 5 else 5000
        row = label(
            7, "web", ingress_packets=10 * second, suspect_ingress_packets=second, egress_bytes=octets
        )
        rates.feed([row], float(second))
    assert rates.of(7) == Rate(in_packets=10.0, in_bits=0.0, out_packets=0.0, out_bits=0.0, total=5000)
    assert rates.of(99) == Rate()


def test_suspect_bytes_are_not_counted_twice() -> None:
    """All of a label's traffic is suspect: rate and total are still those of the traffic."""
    rates = Rates(window=4.0)
    for second in (1, 2):
        octets = 500 * second
        rates.feed([counted(7, "web", second, octets, suspect_egress_bytes=octets)], float(second))
    assert rates.of(7) == Rate(out_packets=1.0, out_bits=4000.0, total=1000)


def test_rates_need_two_samples_and_never_fall() -> None:
    """Nothing is known after one answer; a counter that starts anew is no negative rate."""
    rates = Rates()
    rates.feed([counted(7, "web", 1000, 1000)], 1.0)
    assert rates.of(7) == Rate(total=1000)
    rates.feed([counted(7, "web", 10, 10), counted(8, "db", 5, 5)], 2.0)
    assert rates.of(7) == Rate(total=10)
    assert rates.of(8) == Rate(total=5)


def test_rows_and_head() -> None:
    """Every label with its numbers; host, cost of each program and process, and the ledger above."""

    async def script(board: Board, pilot: "Pilot[None]", stub: Stub) -> None:
        rows = {row[1]: row for row in shown(board)}
        assert rows["web"][:4] == ["7", "web", "red", "cgroup"]
        assert rows["web"][8:] == ["1.00 MB", "0"]
        assert rows["db"][9] == "4"
        text = head(board)
        assert "eastwest  h1  2 workloads  1 firing (eastwest alerts)" in text
        assert "port 95 / 99" in text
        assert "cgroup" not in text  # did not run in the last sample
        assert "probe 1.2 % 70.0 MB  server 3.0 % 300 MB" in text
        assert "balanced  seen 109  stored 109  pending 0  lost 0" in text

    play(script)


def test_rates_appear_and_sort() -> None:
    """Counters that grow become rates; each key sorts by its column."""

    async def script(board: Board, pilot: "Pilot[None]", stub: Stub) -> None:
        stub.answers["labels"] = [
            counted(0, "unattributed", 1, 10),
            counted(7, "web", 100_000, 9_000_000),
            counted(8, "db", 5, 2_000_000, suspect_egress_packets=4),
        ]
        await until(lambda: names(board)[0] == "web" and shown(board)[0][7] not in ("0 b", "–"))  # noqa: RUF001
        for key, order in (
            ("t", ["web", "db", "unattributed"]),
            ("s", ["db", "unattributed", "web"]),
            ("n", ["db", "unattributed", "web"]),
            ("l", ["unattributed", "web", "db"]),
            ("i", ["db", "unattributed", "web"]),
            ("o", ["web", "db", "unattributed"]),
            ("r", ["web", "db", "unattributed"]),
        ):
            await pilot.press(key)
            await until(partial(_is, board, order))

    play(script)


def test_filter() -> None:
    """`/` selects, a mistake is told and kept, Escape shows all again."""

    async def script(board: Board, pilot: "Pilot[None]", stub: Stub) -> None:
        await pilot.press("slash", *"tenant=r*", "enter")
        await until(lambda: names(board) == ["web"])
        assert "filter: tenant=r*" in head(board)
        await pilot.press("slash", *",x=1", "enter")
        await until(lambda: "'x=1' is not a selector condition" in head(board))
        assert names(board) == ["web"]
        assert isinstance(board.focused, Input)
        await pilot.press("escape")
        await until(lambda: len(names(board)) == 3)
        assert "filter:" not in head(board)

    play(script)


def test_flows_of_the_selected_workload() -> None:
    """Enter shows its flows, records added up; Escape goes back."""

    async def script(board: Board, pilot: "Pilot[None]", stub: Stub) -> None:
        stub.answers["flows"] = [flow(), flow(tcp_flags=1), flow(src_port=9, bytes=99_000)]
        await pilot.press("n", "down", "down")
        await until(lambda: board.query_one(Grid).selected == "7")
        await pilot.press("enter")
        await until(
            lambda: isinstance(board.screen, FlowScreen) and board.screen.query_one(Grid).row_count == 2
        )
        grid = board.screen.query_one(Grid)
        rows = [[cell.plain.strip() for cell in grid.get_row_at(i)] for i in range(2)]
        assert rows[0][1:3] == ["10.0.0.1:9", "10.0.0.2:80"]
        assert rows[1] == ["out", "10.0.0.1:4000", "10.0.0.2:80", "tcp", "20", "3.00 kB", "FSA"]
        asked = next(query for _, path, query, _ in stub.asked if path == "flows")
        assert asked == {"label": ["label=7"], "since": ["1m"], "limit": ["2000"]}
        await pilot.press("escape")
        await until(lambda: not isinstance(board.screen, FlowScreen))

    play(script)


def test_nothing_is_cut_at_80_columns() -> None:
    """Titles with the mark of the order, the last key of the footer, a long error, and the flows' keys."""

    async def script(board: Board, pilot: "Pilot[None]", stub: Stub) -> None:
        for key, title in (("s", "susp▼"), ("l", "label▼"), ("o", "out b/s▼"), ("t", "total▼")):
            await pilot.press(key)
            await until(lambda title=title: title in screen(board))  # type: ignore[misc]
            assert "…" not in screen(board)
        assert "q Quit" in screen(board)
        assert "l Label" in screen(board)
        await pilot.press("slash", *"tennant=r*", "enter")
        known = "key=value[,key=value…] with a key of: label, name,"
        await until(lambda: known in " ".join(screen(board).split()))
        assert "port" in screen(board).partition("in/s")[0]
        await pilot.press("escape", "enter")
        await until(lambda: isinstance(board.screen, FlowScreen) and "esc Back" in screen(board))
        assert "Label" not in screen(board)
        await pilot.press("slash", "s")
        assert isinstance(board.screen, FlowScreen)

    play(script)


def test_server_that_goes_and_comes_back() -> None:
    """What is known stays on the screen, the trouble above it; then all is well again."""

    async def script(board: Board, pilot: "Pilot[None]", stub: Stub) -> None:
        rows, stub.answers["labels"] = stub.answers["labels"], (503, {"error": "no store", "remedy": "wait"})
        await until(lambda: "no store; wait" in head(board))
        assert len(names(board)) == 3
        stub.answers["labels"] = rows
        await until(lambda: "no store" not in head(board))

    play(script)


def test_unbalanced_ledger_is_named() -> None:
    """The label that does not balance stands above the table."""

    async def script(board: Board, pilot: "Pilot[None]", stub: Stub) -> None:
        stub.answers["ledger"] = [entry(7, 100, balanced=False), entry(8, 9, flow_map_full=3)]
        await until(lambda: "NOT balanced: label 7" in head(board))
        assert "lost 3" in head(board)

    play(script)


@pytest.mark.parametrize("width", [80, 133])
def test_fills_the_width(width: int) -> None:
    """80 columns are enough for every column; more go to the texts."""

    async def script(board: Board, pilot: "Pilot[None]", stub: Stub) -> None:
        grid = board.query_one(Grid)
        await until(lambda: width - 5 < sum(column.width for column in grid.columns.values()) <= width)

    play(script, (width, 24))


def test_q_quits() -> None:
    """From the table and from the flows."""

    async def script(board: Board, pilot: "Pilot[None]", stub: Stub) -> None:
        await pilot.press("enter")
        await until(lambda: isinstance(board.screen, FlowScreen))
        await pilot.press("q")
        await until(lambda: board._exit)

    play(script)


def test_head_of_an_empty_fleet() -> None:
    """Nothing reported yet is said as such."""
    from eastwest.cli.feed import Snapshot

    text = headline(Snapshot(), "").plain
    assert "0/0 hosts alive" in text
    assert "no host has reported yet" in text
    assert "nothing seen yet" in text


def test_flows_are_added_up() -> None:
    """Records of one flow become one line; directions stay apart."""
    flows = add_up([flow(), flow(), flow(direction="ingress", bytes=1)])
    assert [(f.way, f.packets, f.octets) for f in flows] == [("out", 20, 3000), ("in", 10, 1)]
