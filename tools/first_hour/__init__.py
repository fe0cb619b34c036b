"""`python -m tools.first_hour`: the command; its parts are in benchmarks/first_hour/."""
