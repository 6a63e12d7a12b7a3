"""How a table is computed: stages, plans, executors."""
