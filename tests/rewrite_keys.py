"""Writes tests/keys.json and tests/stage_keys.json anew: ``make keys``."""

import json

from tests import test_keys, test_stage_keys

if __name__ == "__main__":
    for frozen in (test_keys, test_stage_keys):
        text = json.dumps(frozen.current(), indent=1, sort_keys=True)
        frozen.FROZEN.write_text(text + "\n")
