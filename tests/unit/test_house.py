"""The rules of the house (ARCHITECTURE.md), held against the source: who may import whom, SQL, C, wiring."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import eastwest

SOURCE = Path(eastwest.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

SQL = re.compile(
    r"\b(SELECT\s.+\sFROM|INSERT\s+INTO|CREATE\s+TABLE|ALTER\s+TABLE|DELETE\s+FROM|DROP\s+TABLE)\b", re.S
)
OWN_SQL = {"probe/journal.py"}
"""The probe's own notes, in a file that nobody else opens: not the store's tables."""

C_MODULES = {"cffi", "ctypes", *(f"eastwest.kernel._{part}" for part in ("blocks", "libbpf", "libpcap"))}
READING_STREAMS = ("eastwest.kernel.blocks.", "eastwest.kernel.pour.")
"""Behind the door to the kernel for its C alone: it asks the kernel for nothing."""
COMPONENTS = {
    "Bus",
    "Store",
    "Collector",
    "Manager",
    "Probe",
    "Metrics",
    "Exporter",
    "Watcher",
    "Fleet",
    "Streams",
}
LONGEST_FILE, LONGEST_FUNCTION = 400, 40


def name(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def package(path: Path) -> str:
    """The room of the house that a file is in; the file itself, where it stands in the hall."""
    return name(path).partition("/")[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module and name that a file imports, dotted, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(path: Path) -> set[str]:
    """Packages of eastwest that a file imports from."""
    modules = [module for module in imports(path) if not module.startswith(READING_STREAMS)]
    found = {module.split(".")[1] for module in modules if module.startswith("eastwest.")}
    return found & {file.stem if file.parent == SOURCE else package(file) for file in FILES}


def offenders(rooms_of: str, forbidden: set[str]) -> list[str]:
    return [name(path) for path in FILES if package(path) == rooms_of and rooms(path) & forbidden]


def strings(path: Path) -> Iterator[str]:
    """String constants that are not docstrings."""
    tree = ast.parse(path.read_text())
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value


def test_the_rooms_are_known() -> None:
    """The source is where these tests look for it."""
    found = {package(path) for path in FILES}
    assert {"cli", "kernel", "probe", "manager", "store", "collector", "bus", "meter", "labels"} <= found


def test_kernel_imports_only_errors() -> None:
    """The door to the kernel needs nothing of the house."""
    everything = {package(path) for path in FILES}
    assert offenders("kernel", everything - {"kernel", "errors"}) == []


def test_errors_import_nothing() -> None:
    """Everybody raises them."""
    assert rooms(SOURCE / "errors.py") == set()


def test_probe_and_manager_meet_on_the_bus_only() -> None:
    """Neither imports the other; nor does one reach the other's machinery through a third."""
    assert offenders("probe", {"manager", "collector", "store", "watch"}) == []
    for room in ("manager", "collector", "store", "export", "watch"):
        assert offenders(room, {"probe", "kernel", "inventory"}) == []


def test_nothing_waits_for_what_is_exported() -> None:
    """Numbers go out from what is there; nobody who makes them knows of it."""
    users = {package(path) for path in FILES if "export" in rooms(path)}
    assert users <= {"export", "cli"}


def test_nobody_imports_cli() -> None:
    """The command line uses the components, never they it."""
    users = [
        name(path) for path in FILES if package(path) not in ("cli", "__main__") and "cli" in rooms(path)
    ]
    assert users == []


def test_lab_stands_alone() -> None:
    """What the senders record must not come from what is measured against it."""
    everything = {package(path) for path in FILES}
    assert offenders("lab", everything - {"lab", "errors"}) == []


def test_only_store_writes_sql() -> None:
    """Tables and their columns are the store's affair."""
    writers = {name(path) for path in FILES if any(SQL.search(text) for text in strings(path))}
    assert {writer for writer in writers if not writer.startswith("store/")} == OWN_SQL
    assert any(writer.startswith("store/") for writer in writers)


def test_only_kernel_knows_c() -> None:
    """cffi, ctypes and the binding are imported behind the door only."""
    users = {package(path) for path in FILES if any(_is_c(module) for module in imports(path))}
    assert users == {"kernel"}


def _is_c(module: str) -> bool:
    return any(module == known or module.startswith(f"{known}.") for known in C_MODULES)


def test_components_are_wired_in_cli_only() -> None:
    """Components get what they depend on; only the command line makes them."""
    wiring = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in COMPONENTS:
                wiring.add(package(path))
    assert wiring == {"cli"}


def test_files_and_functions_are_short() -> None:
    """Much over these lengths, two ideas share a room."""
    long = [name(path) for path in FILES if len(path.read_text().splitlines()) > LONGEST_FILE]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{name(path)}: {node.name}"] if lines > LONGEST_FUNCTION else []
    assert long == []


def test_every_module_says_why_it_exists() -> None:
    """But for packages that hold nothing themselves."""
    silent = [
        name(path)
        for path in FILES
        if path.read_text().strip('" \n') and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []
