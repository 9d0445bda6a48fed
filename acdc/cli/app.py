"""The commands put together. What a command needs is imported when it runs: `acdc --help` must answer at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from acdc.cli import check, circuits, console, demo, jobs, listings, local_run, maps, service
from acdc.cli.failures import Edge
from acdc.version import __version__

app = typer.Typer(
    cls=Edge,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    help="Find circuits in transformer language models: the few heads, MLPs and connections behind a behaviour.",
)
task = typer.Typer(no_args_is_help=True, help="Look at a task's prompts as a model sees them.")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"{__version__}\n")
        raise typer.Exit


@app.callback()
def common(
    url: Annotated[
        str | None, typer.Option("--url", help="of the service; ACDC_URL or this machine's by default")
    ] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", help="its key; ACDC_API_KEY by default")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show where an error came from")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="show it")] = False,
) -> None:
    """Options of every command stand before its name."""
    console.begin(url, api_key, debug)


app.command(rich_help_panel="Search")(local_run.run)
app.command(rich_help_panel="Search")(jobs.submit)
app.command(rich_help_panel="Search")(jobs.plan)
app.command("try", rich_help_panel="Search")(circuits.try_prompt)
app.command("challenge", rich_help_panel="Search")(circuits.challenge)
app.command(rich_help_panel="Service")(service.serve)
app.command(rich_help_panel="Service")(demo.demo)
app.add_typer(jobs.app, name="jobs", rich_help_panel="Service")
app.add_typer(circuits.app, name="circuits", rich_help_panel="Service")
app.add_typer(maps.app, name="maps", rich_help_panel="Service")
app.command(rich_help_panel="What there is")(listings.models)
app.command(rich_help_panel="What there is")(listings.tasks)
app.command(rich_help_panel="What there is")(listings.methods)
task.command("check")(check.check)
app.add_typer(task, name="task", rich_help_panel="What there is")
