"""The subcommands of `florence2`, by the table in `florence2_client.cli`.

Each module has `add_arguments(parser)` and `run(options)`, which returns the exit code.
"""
