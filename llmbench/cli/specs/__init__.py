"""`llmbench specs`: list, show, import and check the descriptions of models."""

from __future__ import annotations

import typer

from llmbench.cli.specs.check import check_spec
from llmbench.cli.specs.listing import list_specs
from llmbench.cli.specs.toml import import_config, show_spec

command = typer.Typer(no_args_is_help=True, help="List, show, import and check model specs.", rich_markup_mode=None)
command.command("list")(list_specs)
command.command("show")(show_spec)
command.command("import")(import_config)
command.command("check")(check_spec)
