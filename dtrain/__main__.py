"""The one door of every dtrain process: the command line, and the hidden agent and supervisor that it starts.

The agent is taken before the command line is imported: it is started on every node and must be light.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command that `sys.argv` names; returns the exit code."""
    if sys.argv[1:2] == ["agent"]:
        from dtrain import node

        return node.main(sys.argv[2:])
    if sys.argv[1:2] == ["supervise"] and len(sys.argv) == 3:
        from dtrain import detached

        return detached.main(sys.argv[2])
    if sys.argv[1:2] == ["run"] and len(sys.argv) > 2:
        from dtrain import spare

        spare.start()
    from dtrain import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
