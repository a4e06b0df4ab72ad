"""The price list, one question after the other: what each part costs, as bench/RESULTS.md has it.

    python -m bench [--quick] [packets filters wire peers capture elsewhere collecting rows own query]

`--quick`: tiny sizes, to see it work; its figures mean nothing.
"""

import sys

from bench import capture, collecting, elsewhere, filters, machine, own, packets, peers, query, rows, wire

QUESTIONS = {
    "packets": packets.main,
    "filters": filters.main,
    "wire": wire.main,
    "peers": peers.main,
    "capture": capture.main,
    "elsewhere": elsewhere.main,
    "collecting": collecting.main,
    "rows": rows.main,
    "own": own.main,
    "query": query.main,
}
_PATIENCE = 600.0


def main(arguments: list[str]) -> None:
    quick = "--quick" in arguments
    names = [name for name in arguments if name != "--quick"] or list(QUESTIONS)
    if unknown := set(names) - QUESTIONS.keys():
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(QUESTIONS)}")
    for name in names:
        if not quick and not machine.until_quiet(_PATIENCE):
            print("(the machine did not become quiet: do not trust what follows)\n", flush=True)
        QUESTIONS[name](quick)


if __name__ == "__main__":
    main(sys.argv[1:])
