"""The process of an attacker.

    python -m attack.attacker NAME '<Order as JSON>'

It begins with a line on stdin, and writes its `Report` as JSON.
"""

from __future__ import annotations

import json
import resource
import sys

from attack.attacks import ATTACKS
from attack.line import Order


def main() -> None:
    """Run one attack, with as many connections as may be."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    attack, order = ATTACKS[sys.argv[1]], Order(**json.loads(sys.argv[2]))
    sys.stdin.readline()
    report = attack.run(order)
    print(json.dumps(report._asdict()), flush=True)


if __name__ == "__main__":
    main()
