"""Writes tests/keys.json anew: ``make keys``."""

import json

from tests.test_keys import FROZEN, current

if __name__ == "__main__":
    FROZEN.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n")
