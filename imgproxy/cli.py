"""The command line of `imgproxy`, put together from its commands."""

import typer

from imgproxy.commands.capture import capture
from imgproxy.commands.local import certs, hook
from imgproxy.commands.migrate import migrate_command
from imgproxy.commands.recover import recover_command
from imgproxy.commands.rounds import rounds
from imgproxy.commands.send import send
from imgproxy.commands.trap import spawn_command, trap_command

app = typer.Typer(
    help="Takes the images of `criu dump --stream` (or --remote) and brings them to imgcache on another node.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.callback(invoke_without_command=True)(capture)
app.command("migrate", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(migrate_command)
app.command()(rounds)
app.command()(send)
app.command("recover")(recover_command)
app.command("spawn", context_settings={"allow_extra_args": True})(spawn_command)
app.command("trap")(trap_command)
app.command()(certs)
app.command()(hook)
