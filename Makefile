# Every command runs in the environment that quickstart.py keeps in .venv.
# `make RUN= check` takes the tools on your PATH instead.
RUN = python3 quickstart.py

.PHONY: setup fmt check test slow smoke docs keys crash soak fuzz

SECONDS = 600
EXAMPLES = 100000

setup:  ## make the environment, with tests and linters
	$(RUN) ruff --version

fmt:  ## format, and repair what ruff can
	$(RUN) ruff format
	$(RUN) ruff check --fix

check:  ## what has to pass before a merge
	$(RUN) ruff format --check
	$(RUN) ruff check
	$(RUN) codespell
	$(RUN) mypy
	$(RUN) pytest

test:  ## the default tests
	$(RUN) pytest

slow:  ## the tests that take longer
	$(RUN) pytest -m "slow and not gpu and not data"

smoke:  ## every defense against every attack, as small as can be
	$(RUN) mibench run smoke

docs:  ## build the documentation site into build/site
	$(RUN) sphinx-build -W --keep-going -q -b html docs build/site

crash:  ## kill and fail a small run at every file-system operation (half an hour; needs strace)
	$(RUN) python -m tests.crash

soak:  ## eight processes in one store, killed and stopped at random, for SECONDS
	$(RUN) python -m tests.soak --seconds $(SECONDS)

fuzz:  ## EXAMPLES random inputs to everything that reads what others wrote
	$(RUN) python -m tests.fuzz --examples $(EXAMPLES)

keys:  ## rewrite the frozen keys and show what changed
	$(RUN) python tests/rewrite_keys.py
	git --no-pager diff -- tests
