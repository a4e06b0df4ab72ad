"""What every role's process has in common."""

import subprocess
import sys

ROLE = """
import resource
from eastwest.cli import role

async def tell():
    print(resource.getrlimit(resource.RLIMIT_NOFILE))

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
role.run(tell)
"""


def test_a_role_may_open_as_many_files_as_the_host_lets_it() -> None:
    """A probe holds one for each VM; it does not end at what a shell or service manager begins with."""
    done = subprocess.run([sys.executable, "-c", ROLE], capture_output=True, text=True, check=True)
    assert done.stdout == "(512, 512)\n"
